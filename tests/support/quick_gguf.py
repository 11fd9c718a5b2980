"""GGUF files read in less time; transformers reads one anew for the config, the weights and the tokenizer."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within the block, a file is read once by the package gguf, and its names of tensors are made once."""
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(np.ndarray)  # each of a million slices of a memmap is a memmap, made slowly

    quick = {"GGUFReader": functools.cache(Reader), "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map)}
    with patch.multiple(gguf, **quick):
        yield
