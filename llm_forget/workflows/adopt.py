"""Adopt an adapter from another source: check its files, and copy it with a manifest into a new run."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import PartialState
from trl import ModelConfig

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.environment import environment
from llm_forget.core.errors import AdapterRefused, ModelError
from llm_forget.core.formats.run import Provenance
from llm_forget.core.launch import refuse_processes
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.adopt import ADOPT
from llm_forget.models.adapters import safe_read
from llm_forget.models.adapters.compatibility import saved_embeddings
from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora_config import read_config
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base


def inspect_adapter(folder: str | Path) -> dict[str, Any]:
    """Describe an adapter from its files, without reading weights.

    Return ``base`` (from its configuration, unverified), ``rank``, ``modules`` (names), the numbers of ``tensors`` and
    ``parameters``, and ``manifest`` (whether it has a manifest of this package). Raise AdapterRefused or
    FileNotFoundError as `models.adapters.verification.verify_adapter` does.
    """
    folder = Path(folder)
    manifest = verify_adapter(folder, trust=True)
    config, header = read_config(folder), safe_read.read_header(folder / ADAPTER_WEIGHTS)
    claimed = safe_read.read_strict_json(folder / ADAPTER_CONFIG, safe_read.MAX_CONFIG).get("base_model_name_or_path")
    sizes = [tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1) for tensor in header.values()]
    return {
        "base": claimed if isinstance(claimed, str) else None,
        "rank": max([config.r, *(config.rank_pattern or {}).values()]),
        "modules": sorted([*(config.target_modules or ()), *(config.target_parameters or ())]),
        "tensors": len(header),
        "parameters": sum(sizes),
        "manifest": bool(manifest),
    }


def adopt(
    folder: str | Path,
    output_dir: str | Path,
    *,
    base: str | None = None,
    base_revision: str = "main",
    dtype: str = "float32",
) -> Run:
    """Check an adapter from another source, copy it with a manifest into a run, and return the run.

    The adapter must be plain LoRA, complete and finite, fit the base, and change the logits. These checks do not show
    that it is good or has forgotten anything. The run can be used like a model: as the target of `unlearn`, in
    `evaluate` and in `merge`. The source folder is not changed. Embeddings that PEFT saved with the adapter are left
    out if they equal the base's. If they differ, the adapter is refused.

    Args:
        folder: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        output_dir: folder of the run. It must be empty or not exist.
        base: name of the base model. Default: the name in the adapter's configuration.
        base_revision: revision of a base on the Hub.
        dtype: dtype in which the base is loaded.

    Raises:
        AdapterRefused: see `models.adapters.files.load_adapter`.
        ModelError: the name of the base is missing, or output_dir is not empty.
    """
    refuse_processes("adopt", PartialState())
    folder, run, description = Path(folder), Run(Path(output_dir)), inspect_adapter(folder)
    if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise ModelError(f"output_dir '{run.path}' exists and is not empty; choose another")
    name = base or description["base"]
    if not name:
        raise ModelError(f"adapter '{folder}' does not name its base model; give it with --base")
    args = ModelConfig(model_name_or_path=name, model_revision=base_revision, dtype=dtype)
    digest = source_digest(name, base_revision)
    model = load_base(args)
    with _without_embeddings(model, folder) as plain:
        model = load_adapter(model, plain, base_digest=digest, trust=not description["manifest"])
    effect = effect_of(model)
    if effect is None or effect["max_abs"] is None:
        raise AdapterRefused(f"adapter '{folder}' makes the logits of '{name}' not finite, so it is refused")
    config = {"model_name_or_path": name, "model_revision": base_revision, "dtype": dtype, "use_peft": True}
    origin = {"files": {file: file_digest(folder / file) for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}}
    run = Run.start(run.path, ADOPT.name, config, {**config, **origin}, False)
    save_adapter(
        model, run.adapter, base_digest=digest, base_name=name, effect=effect, extra={"adopted": origin["files"]}
    )
    facts = {"name": name, "revision": base_revision, "digest": digest}
    provenance = {"kind": ADOPT.name, "base": facts, "adopted": origin, "environment": environment()}
    formats.write(run.provenance_file, provenance, Provenance)
    run.finish()
    return run


@contextmanager
def _without_embeddings(model: Any, folder: Path) -> Iterator[Path]:
    """Yield the folder, or a temporary copy without the base's embeddings. Raise AdapterRefused if these differ."""
    from safetensors.torch import load_file, save_file

    extra = saved_embeddings(model, safe_read.read_header(folder / ADAPTER_WEIGHTS))
    if not extra:
        yield folder
        return
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for key, module in extra.items():
        if not _same(tensors.pop(key), module.weight):
            raise AdapterRefused(
                f"'{folder / ADAPTER_WEIGHTS}' contains embeddings ({key!a}) that differ from the base's; save it "
                "again with save_embedding_layers=False if they were not trained, or merge it into its base with PEFT"
            )
    with TemporaryDirectory(prefix="llm-forget-adopt-") as temporary:
        shutil.copy(folder / ADAPTER_CONFIG, temporary)
        save_file(tensors, Path(temporary) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        yield Path(temporary)


def _same(saved: Any, weight: Any) -> bool:
    """Return whether two tensors are equal after one of them is cast to the dtype of the other."""
    import torch

    weight = weight.detach().cpu()
    if saved.shape != weight.shape:
        return False
    return torch.equal(saved.to(weight.dtype), weight) or torch.equal(weight.to(saved.dtype), saved)
