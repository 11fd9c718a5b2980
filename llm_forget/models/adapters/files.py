"""Write adapters to disk atomically, and read them only if they match their manifest."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, ModelError
from llm_forget.core.files import write_json
from llm_forget.core.formats.models import Manifest
from llm_forget.models.adapters.compatibility import refuse_misfit
from llm_forget.models.adapters.logit_fingerprint import describe, probe, refuse_without_effect, warn_without_effect
from llm_forget.models.adapters.lora import ADAPTER, activate_all, frozen_adapters, quantization_of
from llm_forget.models.adapters.lora_config import read_config
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, MAX_WEIGHTS, read_header
from llm_forget.models.adapters.verification import EFFECT, LOAD, record_first_effect, recorded_effect, verify_adapter
from llm_forget.models.tensor_digests import describe_tensors, tensors_digest

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FILES = frozenset({ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, EFFECT})
_NAME = re.compile(r"[a-z0-9-]{1,64}")


def adapter_state_dict(
    model: Any, name: str = ADAPTER, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of one adapter on the CPU, with the keys of PEFT's files.

    If the model is sharded (FSDP, ZeRO-3), ``state_dict`` must contain its gathered weights. Raise ModelError if the
    adapter has no tensors, or if a tensor is empty or not finite.
    """
    from peft import get_peft_model_state_dict

    # The default of save_embedding_layers would ask the Hub whether the vocabulary grew.
    state = get_peft_model_state_dict(model, state_dict=state_dict, adapter_name=name, save_embedding_layers=False)
    tensors = {key: state[key].detach().cpu().contiguous() for key in sorted(state)}
    if not tensors:
        raise ModelError(f"adapter '{name}' has no tensors in this state dict; gather the weights of all ranks first")
    for key, tensor in tensors.items():
        if tensor.numel() == 0:
            raise ModelError(f"adapter '{name}': tensor '{key}' is empty; gather the weights of all ranks first")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"adapter '{name}': tensor '{key}' is not finite; it is not saved")
    return tensors


def save_adapter(
    model: Any,
    folder: str | Path,
    *,
    base_digest: str | None = None,
    base_name: str | None = None,
    extra: Mapping[str, Any] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    effect: Mapping[str, Any] | None = None,
) -> Path:
    """Write adapter "unlearn" and its manifest to ``folder``, atomically and in PEFT's format. Return the folder.

    The manifest contains digests of files, tensors, base and frozen adapters, and the quantisation of the base. An
    adapter that is already in the folder is replaced. Other files remain.

    Args:
        base_digest: `source_digest` of the model that `load_base` returned.
        base_name: value of base_model_name_or_path in the adapter's configuration. A path is cut to its last part.
        extra: further keys of the manifest.
        state_dict: see `adapter_state_dict`.
        effect: result of `logit_fingerprint.effect_of`; None for checkpoints and for sharded weights.

    Raises:
        ModelError: see `adapter_state_dict`; also if ``extra`` has a key that the manifest already has.
        OSError: the disk is full. The previous adapter is unchanged.
    """
    folder = Path(folder)
    tensors = adapter_state_dict(model, ADAPTER, state_dict)
    config = _config_json(model.peft_config[ADAPTER], base_name)
    with replacing(folder) as temporary:
        _save_tensors(tensors, temporary / ADAPTER_WEIGHTS)
        write_json(temporary / ADAPTER_CONFIG, config)
        manifest = {
            "files": {name: file_digest(temporary / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)},
            "tensors": describe_tensors(tensors),
            "base": base_digest,
            "beneath": [{"name": n, "digest": _frozen_digest(model, n, state_dict)} for n in frozen_adapters(model)],
            "quantization": quantization_of(model),
            "load": {**LOAD, "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")},
            "effect": effect,
        }
        reserved = manifest.keys() & (extra or {}).keys()
        if reserved:
            raise ModelError(f"manifest keys {', '.join(sorted(reserved))} are its own; choose other names")
        formats.write(temporary / MANIFEST, {**manifest, **(extra or {})}, Manifest)
    warn_without_effect(effect, folder)
    return folder


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_WEIGHTS:
        raise ModelError(f"the adapter has {size:,} bytes, more than the {MAX_WEIGHTS:,} that are read; lower lora_r")
    with disk_errors(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise disk errors of safetensors and tokenizers as OSError, within a ``with`` block."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:  # tokenizers raises a plain Exception
        number = re.search(r"\(os error (\d+)\)", str(error))
        if not isinstance(error, SafetensorError) and (type(error) is not Exception or number is None):
            raise
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def _frozen_digest(model: Any, name: str, state_dict: Mapping[str, Tensor] | None) -> str | None:
    # Sharded training may gather only the trained weights. The digest of the base also covers frozen adapters.
    if state_dict is not None and not any(f".{name}." in key for key in state_dict):
        return None
    return tensors_digest(adapter_state_dict(model, name, state_dict))


def _exchange_folders(first: Path, second: Path) -> bool:
    """Swap two folders atomically. Return False, and change nothing, if the system does not support this."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, on most file systems
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. It replaces ``folder`` if the ``with`` block succeeds, and is deleted otherwise.

    If ``folder`` contains files that do not belong to an adapter, the new files are moved into it instead.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists() and not {path.name for path in folder.iterdir()} <= ADAPTER_FILES:
            # Manifest first: if moving is interrupted, the manifest does not match the files, and loading refuses them.
            for path in sorted(temporary.iterdir(), key=lambda path: path.name != MANIFEST):
                os.replace(path, folder / path.name)
            return
        if not folder.exists():
            os.replace(temporary, folder)
        elif not _exchange_folders(temporary, folder):
            os.replace(folder, old)
            try:
                os.replace(temporary, folder)
            except OSError:
                os.replace(old, folder)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():  # otherwise `old` is the only copy
            shutil.rmtree(old, ignore_errors=True)


def _config_json(config: Any, base_name: str | None) -> dict[str, Any]:
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    base = base_name or config.base_model_name_or_path
    # A full path may contain the name of a person or machine, so keep only its last part.
    if base and (base.endswith(".gguf") or Path(base).is_absolute() or Path(base).exists()):
        base = Path(base).name
    fields["base_model_name_or_path"] = base
    fields["inference_mode"] = True
    return dict(sorted(fields.items()))


def load_adapter(
    model: Any,
    folder: str | Path,
    *,
    name: str = ADAPTER,
    trainable: bool = False,
    base_digest: str | None = None,
    trust: bool = False,
) -> PeftModel:
    """Check a saved adapter, attach it to a model, and activate it together with earlier adapters. Return the model.

    Every adapter must be loaded with this function. PEFT alone only warns about an adapter that does not fit.

    Args:
        name: name of the adapter in the model: lower-case letters, digits and hyphens.
        trainable: allow training of the adapter's weights.
        base_digest: digest of the base model. It is compared with the digest in the manifest, if both exist.
        trust: accept an adapter without a manifest. Everything except the digests is still checked.

    Raises:
        AdapterRefused: the adapter has no manifest; files or base differ from the manifest; tensors do not fit the
            model or are not finite; a file or the configuration is unsafe; or the effect on the logits is zero or
            differs from the recorded one.
        MissingFileError: the folder contains no adapter.
    """
    from peft import PeftModel, get_peft_model

    if not _NAME.fullmatch(name):
        raise AdapterRefused(f"adapter name {name[:80]!a} must be 1 to 64 lower-case letters, digits and hyphens")
    folder = Path(folder)
    manifest = verify_adapter(folder, base_digest, trust=trust)
    config = read_config(folder)
    refuse_misfit(model, read_header(folder / ADAPTER_WEIGHTS), config, folder / ADAPTER_WEIGHTS)
    config.inference_mode = not trainable
    before = probe(model)
    try:
        if not isinstance(model, PeftModel):
            model = get_peft_model(model, config, adapter_name=name, **LOAD)
        else:
            frozen = list(model.peft_config)
            model.add_adapter(name, config, **LOAD)
            activate_all(model)
            model.set_requires_grad([*frozen, *([] if trainable else [name])], False)
    except ValueError as error:  # a layer that PEFT cannot adapt
        raise AdapterRefused(f"'{folder / ADAPTER_CONFIG}' does not fit this model: {error}") from error
    load_adapter_state(model, _read_weights(folder), name=name, origin=str(folder / ADAPTER_WEIGHTS))
    model.eval()
    _check_effect(model, folder, manifest, before)
    return model


def _check_effect(model: Any, folder: Path, manifest: dict[str, Any], before: Tensor | None) -> None:
    after = probe(model) if before is not None else None
    effect = describe(model, before, after) if before is not None and after is not None else None
    recorded = recorded_effect(folder, manifest)
    refuse_without_effect(effect, recorded, folder)
    if manifest and recorded is None:
        record_first_effect(folder, effect)


def load_adapter_weights(model: Any, folder: str | Path, *, base_digest: str | None = None) -> None:
    """Load saved weights into the attached adapter, with all checks of `load_adapter` except the check of logits."""
    folder = Path(folder)
    verify_adapter(folder, base_digest)
    load_adapter_state(model, _read_weights(folder), origin=str(folder / ADAPTER_WEIGHTS))


def load_adapter_state(
    model: Any, tensors: Mapping[str, Tensor], *, name: str = ADAPTER, origin: str = "the state dict"
) -> None:
    """Load tensors with the keys of PEFT's files into adapter ``name``. ``origin`` names their source in errors.

    Raise AdapterRefused if keys are missing or unexpected, shapes differ, or a value is not finite.
    """
    from peft import set_peft_model_state_dict

    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterRefused(f"'{origin}': tensor '{key}' is not finite")
    try:
        result: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=name)
    except (RuntimeError, KeyError) as error:  # from torch: shapes differ; from PEFT: a tensor is missing
        raise AdapterRefused(f"'{origin}' does not fit this model: {error}") from error
    missing = [key for key in result.missing_keys if f".{name}." in f"{key}."]
    if missing or result.unexpected_keys:
        raise AdapterRefused(
            f"'{origin}' does not fit this model: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(result.unexpected_keys)} unexpected {list(result.unexpected_keys)[:3]}"
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    try:
        return load_file(path)
    except SafetensorError as error:
        raise AdapterRefused(f"'{path}' is not a whole safetensors file ({error})") from error
