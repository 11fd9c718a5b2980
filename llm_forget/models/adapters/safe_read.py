"""Check adapter folders that are not trusted, before a library reads any file in them.

This module refuses links, archives, pickled weights and files that are too large. It also checks the header of a
safetensors file before a library allocates tensors.
"""

import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeGuard

from llm_forget.core.errors import AdapterRefused, MissingFileError
from llm_forget.core.strict_json import strict_loads

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
MAX_CONFIG = 2**20  # bytes
MAX_MANIFEST = 2**26
MAX_HEADER = 2**26
MAX_WEIGHTS = 2**34  # 16 GiB; rank 256 on all linear layers of a 70B model needs 13 GiB
MAX_TENSORS = 200_000
MAX_KEY = 512  # characters
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst", ".rar")
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # allowed types of LoRA weights, and their bytes


class Header(NamedTuple):
    """The header entry of one tensor in a safetensors file: its type and shape."""

    dtype: str  # F32 | F16 | BF16
    shape: tuple[int, ...]


def inspect_folder(folder: Path) -> None:
    """Check kinds and sizes of the files in an adapter folder, without opening a file.

    Raise MissingFileError if the folder or one of its two adapter files does not exist, and AdapterRefused for a link,
    a device, a pipe, an archive, pickled adapter weights, or a file above its size limit.
    """
    if folder.is_file():
        raise AdapterRefused(f"adapter '{folder}' is a file; archives are not unpacked, give the folder of an adapter")
    if not folder.is_dir():
        raise MissingFileError(f"adapter folder '{folder}' does not exist")
    limits = {ADAPTER_CONFIG: MAX_CONFIG, ADAPTER_WEIGHTS: MAX_WEIGHTS, MANIFEST: MAX_MANIFEST}
    names, pickled = set(), None
    for entry in os.scandir(folder):
        path, facts = Path(entry.path), entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
            description = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "not a regular file"
            raise AdapterRefused(f"'{path}' is {description}, which no adapter folder may hold; copy the file itself")
        if path.suffix.lower() in ARCHIVES:
            raise AdapterRefused(f"'{path}' is an archive, which no adapter folder may hold; remove it")
        if entry.name.startswith("adapter_model") and any(path.match(pattern) for pattern in PICKLES):
            pickled = path
        if facts.st_size > limits.get(entry.name, facts.st_size):
            raise AdapterRefused(f"'{path}' has {facts.st_size:,} bytes; at most {limits[entry.name]:,} are read")
        if stat.S_ISREG(facts.st_mode):
            names.add(entry.name)
    if pickled is not None:
        raise AdapterRefused(f"'{pickled}' is pickled, which can run code, so not opened; convert it to safetensors")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in names:
            raise MissingFileError(f"adapter folder '{folder}' has no {name}")


def refuse_unverified(folder: Path) -> NoReturn:
    """Raise AdapterRefused with the message for an adapter that has no manifest of this package."""
    raise AdapterRefused(
        f"adapter '{folder}' has no {MANIFEST} of this package, so its content cannot be verified; to trust it, copy "
        f"it with `llm-forget adopt {folder} --trust --output_dir RUN`, and use that run"
    )


def read_plain(path: Path, limit: int, *, length: int | None = None, start: int = 0) -> bytes:
    """Return the content of a regular file, or ``length`` bytes from ``start``. Do not follow links or wait for pipes.

    Raise AdapterRefused for a link, a special file, or more than ``limit`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AdapterRefused(f"'{path}' is not opened ({error.strerror}); give a folder of plain files") from error
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise AdapterRefused(f"'{path}' is not a regular file; give a folder of plain files")
        size = facts.st_size if length is None else length
        if size > limit:
            raise AdapterRefused(f"'{path}' asks for {size:,} bytes, more than the {limit:,} that are read")
        file.seek(start)
        return file.read(size)


def read_strict_json(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file of at most ``limit`` bytes. Raise AdapterRefused for other content."""
    return parse_object(read_plain(path, limit), path)


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in ``data``, parsed with `strict_loads`. Raise AdapterRefused for other content."""
    try:
        content = strict_loads(data, len(data))
    except ValueError as error:
        raise AdapterRefused(f"'{path}' is not valid JSON ({error}): it is damaged, or no adapter file") from error
    if not isinstance(content, dict):
        raise AdapterRefused(f"'{path}' is not a JSON object: it is damaged, or no adapter file")
    return content


def read_header(path: Path) -> dict[str, Header]:
    """Return type and shape of each tensor in a safetensors file, by name.

    Raise AdapterRefused if the file is incomplete, or if tensors overlap, leave gaps or have an unsupported type.
    """
    size = os.lstat(path).st_size
    length = int.from_bytes(read_plain(path, 8, length=8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise AdapterRefused(f"'{path}' is not a whole safetensors file: its header is cut off or absurdly long")
    entries = parse_object(read_plain(path, MAX_HEADER, length=length, start=8), path)
    entries.pop("__metadata__", None)
    if not 0 < len(entries) <= MAX_TENSORS:
        raise AdapterRefused(f"'{path}' holds {len(entries):,} tensors; an adapter has 1 to {MAX_TENSORS:,}")
    headers = {key: _tensor(key, entry, path) for key, entry in entries.items()}
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in entries.values()):
        if start != end:
            raise AdapterRefused(f"'{path}' is not a whole safetensors file: tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise AdapterRefused(f"'{path}' is not a whole safetensors file: its header lists {end:,} bytes of tensors")
    return headers


def _tensor(key: str, entry: Any, path: Path) -> Header:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (_naturals(shape) and len(shape) <= 4 and _naturals(offsets) and len(offsets) == 2 and len(key) <= MAX_KEY):
        raise AdapterRefused(f"'{path}' is not a whole safetensors file: an entry of its header is malformed")
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise AdapterRefused(f"'{path}' holds a tensor that is not of float32, float16 or bfloat16")
    if math.prod(shape) == 0 or math.prod(shape) * WIDTHS[dtype] != offsets[1] - offsets[0]:
        raise AdapterRefused(f"'{path}' is not a whole safetensors file: the shape of a tensor is not that of its data")
    return Header(dtype, tuple(shape))


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)
