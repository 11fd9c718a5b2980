"""Compute digests that identify the weights of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.core.config import model_part
from llm_forget.core.digests import content_key, file_digest, json_digest
from llm_forget.core.errors import ModelError, library_errors
from llm_forget.core.run_kinds import kind_of
from llm_forget.models import demo_models
from llm_forget.models.adapters.safe_read import inspect_folder
from llm_forget.models.model_source import Source, find_source, refuse_adapter_on_hub
from llm_forget.models.tensor_digests import tensors_digest

if TYPE_CHECKING:
    from trl import ModelConfig

    from llm_forget.core.run_directory import Run

# Files that determine the outputs of a model. The tokenizer has a separate digest.
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")
PRECISION = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")


@dataclass(frozen=True)
class ModelIdentity:
    """The facts that determine a model's outputs: base weights, adapter, and the precision of the loaded weights."""

    base: str  # `source_digest` of the model without the adapter
    adapter: str | None  # `adapter_digest` of the adapter; None for a model without one
    precision: dict[str, str]  # values of the settings in `PRECISION`

    @property
    def digest(self) -> str:
        """Return a digest of all fields. It is stored in results.json, and is part of each measurement's cache key."""
        return content_key(base=self.base, adapter=self.adapter, precision=self.precision)


def identity_of(model: ModelConfig, *, base: str | None = None, adapter: Path | None = None) -> ModelIdentity:
    """Return the identity of a model with an optional adapter. ``base`` is the base's digest, if it is known."""
    precision = {key: str(getattr(model, key)) for key in PRECISION}
    layer = adapter_digest(adapter) if adapter is not None else None
    return ModelIdentity(base or source_digest(model.model_name_or_path, model.model_revision), layer, precision)


def run_identity(run: Run, *, base: str | None = None) -> ModelIdentity:
    """Return the identity of the model that a run wrote. ``base`` is the digest of its base, if it is known."""
    model = model_part(run.config)
    if kind_of(run).forgotten and run.adapter.is_dir():
        return identity_of(model, base=base, adapter=run.adapter)
    return identity_of(model, base=source_digest(str(run.path)))


@library_errors(ModelError, ValueError, OSError, ImportError)
def source_digest(name: str | None, revision: str | None = None) -> str:
    """Return a digest of the weights that a model name refers to, including adapters.

    For a Hub id, the digest is ``commit:`` and the commit hash. For other models, it is ``sha256:`` and a hash of the
    weight and config files (folder), the bytes (GGUF file) or the tensors (demo model).
    """
    return digests_by_layer(find_source(name), revision)[-1]


def digests_by_layer(source: Source, revision: str | None) -> list[str]:
    """Return the digests of the base alone, of the base with the first adapter, and so on up to the whole model."""
    base = _base_digest(source, source.revision or revision)
    parts, digests = [base], [base]
    for folder in source.adapters:
        parts.append(adapter_digest(folder))
        digests.append(json_digest(parts))
    return digests


def _base_digest(source: Source, revision: str | None) -> str:
    if source.kind == "demo":
        return tensors_digest(demo_models.demo_model().state_dict())
    if source.kind == "gguf":
        return file_digest(Path(source.location))
    if source.kind == "folder":
        return folder_digest(Path(source.location))
    return f"commit:{_commit(source.location, revision)}"


def _commit(hub_id: str, revision: str | None) -> str:
    from transformers.utils import cached_file

    refuse_adapter_on_hub(hub_id, revision)
    # Read the commit from the cache path: the configuration of transformers 5.23 no longer contains it.
    folder = Path(str(cached_file(hub_id, "config.json", revision=revision or "main"))).parent.name
    if not re.fullmatch("[0-9a-f]{40}", folder):
        raise ModelError(f"the hub did not say which commit '{hub_id}' is at; give model_revision as a commit hash")
    return folder


def folder_digest(folder: Path) -> str:
    """Return one digest of the names and contents of all weight and config files in a folder."""
    files = {path.name: file_digest(path) for pattern in WEIGHT_FILES for path in folder.glob(pattern)}
    return json_digest(files)


def adapter_digest(folder: Path) -> str:
    """Return the `folder_digest` of an adapter folder, after a check with `inspect_folder`."""
    inspect_folder(folder)
    return folder_digest(folder)
