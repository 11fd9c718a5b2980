"""Find the model that a name refers to: a Hub id, folder, GGUF file, built-in model, run, or adapter on one of them."""

from dataclasses import dataclass
from pathlib import Path

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, MissingFileError, ModelError, library_errors
from llm_forget.core.formats.models import ExportReport
from llm_forget.core.run_directory import Run
from llm_forget.models import demo_models
from llm_forget.models.adapters import safe_read
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, MANIFEST, read_strict_json

EXPORT_REPORT = "export.json"  # in the folder that `export` writes


@dataclass(frozen=True)
class Source:
    """The location of a model's full weights, and of the adapters on top of them."""

    name: str  # as the user wrote it
    kind: str  # "hub" | "folder" | "gguf" | "demo"
    location: str  # Hub id, folder or file of the full weights
    adapters: tuple[Path, ...] = ()  # folders of frozen adapters, in the order of training
    revision: str | None = None  # revision of a Hub id, as recorded by the run or adapter

    @property
    def tokenizer_folders(self) -> tuple[Path, ...]:
        """Return folders that may have a tokenizer: those of adapters, newest first, then that of an exported GGUF."""
        beside = Path(self.location).parent
        # A GGUF file describes the tokenizer less completely than tokenizer files, and is slow to read.
        report = formats.read_if_valid(beside / EXPORT_REPORT, ExportReport) if self.kind == "gguf" else None
        ours = report is not None and report.file == Path(self.location).name  # other programs also write export.json
        return (*reversed(self.adapters), *([beside] if ours else []))


@library_errors(ModelError, ValueError, OSError, ImportError)
def find_source(name: str | None) -> Source:
    """Return the full weights and the adapters that a model name refers to.

    Raises:
        MissingFileError: the path does not exist, or the folder contains no model.
        ModelError: no name, an unknown built-in model, an unfinished run, no safetensors weights, or a chain of more
            than 8 adapters.
        AdapterRefused: an adapter is an archive, or has no manifest. Its base is then not looked up.
    """
    if not name:
        raise ModelError("model_name_or_path is not set; give a Hub id, a folder, a .gguf file or builtin:NAME")
    return _find(name, name, ())


def _find(name: str, original: str, above: tuple[Path, ...], revision: str | None = None) -> Source:
    if len(above) > 8:
        raise ModelError(f"model '{original}' is a chain of more than 8 adapters; merge some of them first")
    if name.startswith("builtin:"):
        kind, location = demo_models.find(name.removeprefix("builtin:"))
        return Source(original, kind, location, above)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MissingFileError(f"GGUF file '{name}' does not exist")
        return Source(original, "gguf", str(path), above)
    if not path.exists():
        return Source(original, "hub", _hub_id(name), above, revision)
    if path.is_file() and path.suffix.lower() in safe_read.ARCHIVES:
        raise AdapterRefused(f"'{name}' is an archive, which is not unpacked; give a folder of plain files")
    if (path / "run.json").is_file():
        path = _model_of_run(path)
    if (path / ADAPTER_CONFIG).is_file():
        if not (path / MANIFEST).is_file():
            safe_read.refuse_unverified(path)
        base, revision = _base_of(path)
        return _find(base, original, (path, *above), revision)
    if not (path / "config.json").is_file():
        if (file := next(iter(sorted(path.glob("*.gguf"))), None)) is not None:
            raise MissingFileError(f"'{name}' holds GGUF and no config.json; name the file: {file}")
        raise MissingFileError(f"'{name}' holds neither config.json, {ADAPTER_CONFIG} nor run.json: it is not a model")
    if not any(path.glob("*.safetensors")):
        pickled = any(next(path.glob(pattern), None) for pattern in safe_read.PICKLES)
        contents = "pickled weights, which can run code when opened" if pickled else "no weights"
        raise ModelError(f"'{name}' holds {contents}; only safetensors are read: convert with save_pretrained first")
    return Source(original, "folder", str(path), above)


def _hub_id(name: str) -> str:
    parts = name.split("/")
    # If the first part is a local folder, the name is a mistyped path: do not send it to the Hub.
    if len(parts) > 2 or name.startswith((".", "~")) or not all(parts) or (len(parts) > 1 and Path(parts[0]).is_dir()):
        raise MissingFileError(
            f"model '{name}' does not exist: neither a folder here nor a Hub id (org/name); a run must be made first"
        )
    return name


def refuse_adapter_on_hub(hub_id: str, revision: str | None) -> None:
    """Raise ModelError if a Hub id is an adapter. The error states the command that downloads the adapter.

    The reason is that transformers attaches such an adapter itself. `reference_mode` would then switch it off together
    with adapter "unlearn", so that the reference would be the base without the adapter, which is not the target.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(hub_id, revision=revision or "main") is not None:
        raise ModelError(
            f"'{hub_id}' is an adapter on the hub; get it with `hf download {hub_id} --local-dir DIR` and give DIR"
        )


def _model_of_run(run: Path) -> Path:
    opened = Run.open(run)
    for folder in (opened.model, opened.adapter):
        if folder.is_dir():
            return folder
    raise MissingFileError(f"run '{run}' holds neither model/ nor adapter/; name a finetune or unlearn run")


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Return (name, revision) of an adapter's base, from the adapter's run or, without a run, from PEFT's config."""
    run = Run(adapter.parent)
    if run.state_file.is_file() and run.config_file.is_file():
        config = run.config
        base, revision = config.get("model_name_or_path"), config.get("model_revision")
    else:
        _refuse_other_config(adapter)  # before its base is looked up
        config = read_strict_json(adapter / ADAPTER_CONFIG, safe_read.MAX_CONFIG)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base:
        raise ModelError(f"adapter '{adapter}' does not say which model it belongs to (base_model_name_or_path)")
    return str(base), revision


def _refuse_other_config(adapter: Path) -> None:
    stated = read_strict_json(adapter / MANIFEST, safe_read.MAX_MANIFEST).get("files")
    safe_read.inspect_folder(adapter)
    if not isinstance(stated, dict) or stated.get(ADAPTER_CONFIG) != file_digest(adapter / ADAPTER_CONFIG):
        raise AdapterRefused(f"'{adapter / ADAPTER_CONFIG}' is not what {MANIFEST} says was written; restore it")
