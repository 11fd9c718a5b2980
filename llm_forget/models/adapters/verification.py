"""Before an adapter is loaded, compare its files, tensors and base with its manifest, and read its recorded effect."""

import os
from pathlib import Path
from typing import Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.formats.models import Effect, Manifest
from llm_forget.models.adapters import safe_read
from llm_forget.models.adapters.logit_fingerprint import is_effect
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, Header

EFFECT = "effect.json"  # written at the first load if training could not measure the effect
# Options for attaching an adapter: the adapter's weights are float32, even if the base is in 16 bit.
LOAD: dict[str, Any] = {"autocast_adapter_dtype": True}
RESTORE = "restore it or train again"
# Fields in which a manifest describes the quantisation of the base (`lora.quantization_of`).
QUANTIZATION = frozenset(
    {"load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"}
    | {"quant_method"}
)
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def verify_adapter(folder: Path, base_digest: str | None = None, *, trust: bool = False) -> dict[str, Any]:
    """Compare an adapter folder with its manifest, and return the manifest.

    If there is no manifest and ``trust`` is set, return an empty dictionary. Raise MissingFileError or AdapterRefused
    as `inspect_folder` and `read_header` do, and AdapterRefused if files, tensors or base differ from the manifest.
    """
    safe_read.inspect_folder(folder)
    header = safe_read.read_header(folder / ADAPTER_WEIGHTS)
    if not (folder / MANIFEST).is_file():
        if trust:
            return {}
        safe_read.refuse_unverified(folder)
    manifest = safe_read.read_strict_json(folder / MANIFEST, safe_read.MAX_MANIFEST)
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("tensors"), dict):
        if trust:
            return {}
        safe_read.refuse_unverified(folder)
    _refuse_malformed(manifest, folder)
    _refuse_other_tensors(manifest["tensors"], header, folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if manifest["files"].get(name) != file_digest(folder / name):
            raise AdapterRefused(f"'{folder / name}' is not what {MANIFEST} says was written; {RESTORE}")
    if manifest.get("load", LOAD).get("autocast_adapter_dtype") is not True:
        raise AdapterRefused(f"'{folder / MANIFEST}' asks for other adapter weights than float32 to be loaded")
    if base_digest is not None and manifest.get("base") not in (None, base_digest):
        raise AdapterRefused(
            f"adapter '{folder}' was trained on another base ({str(manifest['base'])[:80]!a}) than the one given "
            f"({base_digest}); restore that one, name its commit with model_revision, or train again"
        )
    return manifest


def _refuse_malformed(manifest: dict[str, Any], folder: Path) -> None:
    """Raise AdapterRefused for a manifest with a value of a wrong type or an unknown quantisation setting."""
    formats.checked(manifest, Manifest, folder / MANIFEST, advice=RESTORE, error=AdapterRefused)
    unknown = sorted(set(manifest.get("quantization") or {}) - QUANTIZATION)
    if unknown:
        raise AdapterRefused(f"'{folder / MANIFEST}' has an unknown key {unknown[0][:60]!a} in quantization; {RESTORE}")


def _refuse_other_tensors(stated: dict[str, Any], header: dict[str, Header], folder: Path) -> None:
    """Raise AdapterRefused if tensor names, shapes or types differ from the manifest. This is faster than hashing."""
    stored = {key: (DTYPES[tensor.dtype], list(tensor.shape)) for key, tensor in header.items()}
    written = {key: (entry.get("dtype"), entry.get("shape")) for key, entry in stated.items()}
    if stored != written:
        missing, unexpected = sorted(written.keys() - stored.keys()), sorted(stored.keys() - written.keys())
        raise AdapterRefused(
            f"'{folder / ADAPTER_WEIGHTS}' is not what {MANIFEST} says was written ({len(missing)} tensors missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}); {RESTORE}"
        )


def recorded_effect(folder: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the effect that was measured when the adapter was saved or first loaded; None if never measured."""
    effect = manifest.get("effect")
    if effect is None and (folder / EFFECT).is_file():
        effect = safe_read.read_strict_json(folder / EFFECT, safe_read.MAX_MANIFEST)
        formats.checked(effect, Effect, folder / EFFECT, advice=RESTORE, error=AdapterRefused)
    if effect is not None and not is_effect(effect):
        raise AdapterRefused(f"the effect recorded of adapter '{folder}' is not as this package writes it; {RESTORE}")
    return effect


def record_first_effect(folder: Path, effect: dict[str, Any] | None) -> None:
    """Write the effect of a run's adapter to ``effect.json``, for adapters whose training could not measure it.

    Do nothing in a job of several processes, for a folder that is not part of a run, or if ``effect`` is None.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if effect is not None and alone and (folder.parent / "run.json").is_file() and os.access(folder, os.W_OK):
        formats.write(folder / EFFECT, effect, Effect)
