"""Write a changed copy of an attacked model, for attacks that change weights without training, such as pruning."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext


@contextmanager
def changed_model(context: AttackContext, role: str, change: Callable[[Any], Any], *, keep: bool) -> Iterator[str]:
    """Write a changed copy of the model of ``role`` (``unlearned`` or ``oracle``), and yield the folder of the copy.

    The adapters of the model are first merged into its weights. ``change`` takes this full model, in the precision of
    the run (dequantised if the run uses 4 or 8 bit), and returns the model to write. The folder is as large as the base
    model. It is deleted at the end of the ``with`` block, unless ``keep`` is true.
    """
    from llm_forget.core.config import model_part
    from llm_forget.models.adapters.files import disk_errors, replacing
    from llm_forget.models.load import load_base, load_tokenizer

    names: dict[str, Any] = {"model_name_or_path": context.models[role], "model_revision": "main"}
    arguments = dataclasses.replace(model_part(context.config), **names)
    folder = context.folder / role / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    model = change(merged(load_base(arguments, dequantize=True)))
    try:
        with replacing(folder) as temporary, disk_errors(temporary):
            model.save_pretrained(temporary)
            load_tokenizer(arguments).save_pretrained(temporary)
        del model
        yield str(folder)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def merged(model: Any) -> Any:
    """Merge all adapters of a model into its weights, and return it. A model without adapters is returned unchanged."""
    from peft import PeftModel

    from llm_forget.models.merging.full_model import untie_adapted_head

    if not isinstance(model, PeftModel):
        return model
    untie_adapted_head(model)
    return model.merge_and_unload(safe_merge=True, adapter_names=list(model.peft_config))


def adapter_folder(name: str) -> Path:
    """Return the adapter folder of the run in the folder ``name``, or ``name`` itself if it contains no run."""
    return Path(name) / "adapter" if (Path(name) / "run.json").is_file() else Path(name)
