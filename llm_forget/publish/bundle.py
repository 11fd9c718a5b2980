"""Collect the files of a run that are published: weights, tokenizer, model card, results and report.

Other files of a run contain row ids, texts or local paths, and are never published. `publication` raises an error if a
published file contains a local path or a plain digest of rows, which would confirm guesses of the rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.signing import fingerprint, public_key, sign
from llm_forget.core import formats
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import PublishError
from llm_forget.core.files import read_json
from llm_forget.core.formats.models import Manifest
from llm_forget.core.formats.publication import PublicationSignature, PublishedFiles
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical
from llm_forget.evals.results_file import read_results
from llm_forget.publish.anonymise import hub_id, model_name, public
from llm_forget.publish.card.card import Place, card, with_results_of
from llm_forget.publish.card.statements import saved_statements
from llm_forget.publish.consistency import EXPORT_REPORT, FullModel, full_model_of, require_measured_weights
from llm_forget.publish.row_digests import plain_digests, public_results, row_key
from llm_forget.report.run_evidence import Evidence, read_run

logger = logging.getLogger("llm_forget")
LISTING = "published.json"  # digests of all other files
SIGNATURE = "published.sig"  # signature of the listing with the key of an evidence folder
PURPOSE = "llm-forget publication"  # part of the signed bytes, so that signatures for other purposes are invalid
CARD, RESULTS, REPORT = "README.md", "results.json", "report.html"
WEIGHTS = re.compile(r"adapter_model\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors|model-[a-z0-9_]{1,20}\.gguf")
ADAPTER_FILES = ("adapter_config.json", "manifest.json", "effect.json")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "merge.json", "export.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
LOCAL_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")  # JSON fields that describe this machine


def allowed(name: str) -> bool:
    """Return whether `push` and `pull` may transfer a file of this name."""
    return bool(WEIGHTS.fullmatch(name)) or name in (
        LISTING, SIGNATURE, CARD, RESULTS, REPORT, *ADAPTER_FILES, *MODEL_FILES, *TOKENIZER_FILES,
    )  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of a publication: an unchanged file on disk, or rewritten content in memory."""

    name: str
    content: Path | bytes
    digest: str  # sha256:...
    size: int  # bytes

    @classmethod
    def of(cls, name: str, content: Path | bytes) -> File:
        """Return a `File` with the digest and the size in bytes of its content."""
        if isinstance(content, Path):
            return cls(name, content, file_digest(content), content.stat().st_size)
        return cls(name, content, "sha256:" + hashlib.sha256(content).hexdigest(), len(content))

    def read(self) -> bytes:
        """Return the content of the file."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class Publication:
    """All files that are published in a repository, and the tag of this version."""

    repository: str
    kind: str  # adapter | model
    tag: str  # derived from the content: equal files have equal tags
    files: tuple[File, ...]

    @property
    def card(self) -> str:
        """Return the text of the model card."""
        return next(file for file in self.files if file.name == CARD).read().decode()

    @property
    def digests(self) -> dict[str, str]:
        """Return the digest of each file by file name, without the listing and its signature."""
        return {file.name: file.digest for file in self.files if file.name not in (LISTING, SIGNATURE)}


def publication(
    run: str | Path,
    repository: str,
    *,
    merged: str | Path | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    signed_in: Path | None = None,
) -> Publication:
    """Collect the files that `push` sends. This needs no network.

    Args:
        merged: folder of a full model written by `merge` or `export`, which is published instead of the adapter.
        history: entries for the model card, from `ledger_gate.history`.
        signed_in: evidence folder with the key that signs the listing (``published.json``).

    Raise RunError if the run is unfinished or was not evaluated. Raise PublishError if the weights are not those that
    were evaluated, or if a file contains a local path or a plain digest of rows.
    """
    from llm_forget.models.adapters.verification import verify_adapter

    evidence = read_run(run)
    adapter = evidence.run.adapter
    folder, kind = (adapter, "adapter") if adapter.is_dir() else (evidence.run.model, "model")
    full_model = full_model_of(evidence, merged) if merged is not None else None
    if full_model is not None:
        folder, kind = full_model.folder, "model"
    own_results = full_model is not None and full_model.has_results
    if not own_results:
        require_measured_weights(evidence, verify_adapter(adapter) if adapter.is_dir() else None)
    base_id = saved_statements(evidence.run.path).base_model or hub_id(evidence.provenance.get("base", {}))
    files = list(_adapter_files(folder, base_id) if kind == "adapter" else _model_files(folder, full_model))
    files += [File.of(n, _without_local_fields(folder / n)) for n in TOKENIZER_FILES if (folder / n).is_file()]
    results = read_results(Run(folder)) if own_results else evidence.results
    files.append(File.of(RESULTS, _json(public_results(results, row_key(evidence.run.path)))))
    try:
        files.append(File.of(REPORT, report_without_ids(with_results_of(evidence, folder if own_results else None))))
    except ImportError as error:  # matplotlib is an extra
        logger.warning("%s is not published: %s", REPORT, error)
    card_options: dict[str, Any] = {"merged": Path(merged) if merged is not None else None, "history": history}
    # The card names the tag, and the tag depends on all files. So compute the tag with a card that names main.
    untagged_card = File.of(CARD, card(evidence, place=Place(repository), **card_options).encode())
    tag = f"v-{json_digest({file.name: file.digest for file in [*files, untagged_card]}).removeprefix('sha256:')[:12]}"
    files.append(File.of(CARD, card(evidence, place=Place(repository, tag), **card_options).encode()))
    files.append(File.of(LISTING, _listing(kind, files)))
    if signed_in is not None:
        files.append(File.of(SIGNATURE, _signature(signed_in, repository, files[-1].read())))
    refuse_paths(files, evidence.run.path)
    row_digests = (plain_digests(content, evidence.provenance) for content in (results, evidence.results))
    refuse_plain_digests(files, set().union(*row_digests))
    return Publication(repository, kind, tag, tuple(sorted(files, key=lambda file: file.name)))


def _listing(kind: str, files: Sequence[File]) -> bytes:
    content = {"format": PublishedFiles.FORMAT, "kind": kind, "files": {file.name: file.digest for file in files}}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def signed_bytes(repository: str, listing: bytes) -> bytes:
    """Return the bytes that are signed: canonical JSON with the repository name and the digest of the listing."""
    return canonical({"purpose": PURPOSE, "repository": repository, "listing": hashlib.sha256(listing).hexdigest()})


def _signature(evidence: Path, repository: str, listing: bytes) -> bytes:
    signature = sign(evidence, signed_bytes(repository, listing))
    return formats.encoded(PublicationSignature(fingerprint(public_key(evidence)), signature)).encode()


def _adapter_files(folder: Path, base: str | None) -> Iterator[File]:
    """Yield the files of an adapter, with a public name of the base model in place of a local path."""
    weights, config, manifest, effect = (folder / name for name in ("adapter_model.safetensors", *ADAPTER_FILES))
    yield from (File.of(file.name, file) for file in (weights, effect) if file.is_file())
    fields, manifest_fields = read_json(config), formats.read_content(manifest, Manifest)
    base = base or without_path(fields.get("base_model_name_or_path"))
    if fields.get("base_model_name_or_path") == base:
        yield from (File.of(file.name, file) for file in (config, manifest))
        return
    config_file = File.of(config.name, _json({**fields, "base_model_name_or_path": base}))
    yield config_file
    yield File.of(
        manifest.name,
        _json({**manifest_fields, "files": {**manifest_fields["files"], config.name: config_file.digest}}),
    )


def without_path(name: str | None) -> str | None:
    """Return a model name without folders: a Hub id unchanged, or the last part of a path. None stays None."""
    if name is None:
        return None
    like_hub = name.count("/") <= 1 and name[:1] not in ("/", ".", "~", "\\") and ":\\" not in name
    if like_hub and not Path(name).exists():
        return name
    return model_name({"name": name})


def _model_files(folder: Path, full_model: FullModel | None) -> Iterator[File]:
    single_file = full_model.file if full_model is not None else None
    weights = [folder / single_file] if single_file else sorted(folder.glob("*.safetensors"))
    weights = [path for path in weights if WEIGHTS.fullmatch(path.name)]
    if not weights or not (single_file or (folder / "config.json").is_file()):
        raise PublishError(
            f"'{folder}' holds no full model in safetensors; `llm-forget merge RUN --output_dir DIR` writes one"
        )
    yield from (File.of(path.name, path) for path in weights)
    for name in MODEL_FILES:
        if (folder / name).is_file():
            yield File.of(name, _without_local_fields(folder / name))


def _without_local_fields(file: Path) -> Path | bytes:
    """Return the file itself or, if its JSON contains local fields or paths, the JSON without them."""
    if file.suffix != ".json" or file.name in ("tokenizer.json", "vocab.json"):
        return file
    content = read_json(file)
    public_fields = {key: value for key, value in content.items() if key not in LOCAL_KEYS}
    if "base" in public_fields:
        public_fields["base"] = without_path(str(public_fields["base"]))
    if file.name in ("merge.json", EXPORT_REPORT):
        public_fields["files"] = {n: digest for n, digest in content.get("files", {}).items() if WEIGHTS.fullmatch(n)}
    return file if public_fields == content else _json(public_fields)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def report_without_ids(evidence: Evidence) -> bytes:
    """Render the HTML report with numbers in place of row ids, and without texts of rows."""
    from llm_forget.report.page import report_document
    from llm_forget.report.render.html import to_html

    return to_html(report_document([public(evidence)])).encode()


def refuse_paths(files: Sequence[File], run: Path) -> None:
    """Raise PublishError if a text file names the home, working or temporary folder, or the folder around the run."""
    folders = {Path.home(), Path.cwd(), run.resolve().parent, Path(tempfile.gettempdir())}
    prefixes = [f"{folder}/".encode() for folder in folders if len(folder.parts) > 1]
    for file in files:
        if WEIGHTS.fullmatch(file.name):
            continue
        content = file.read()
        if any(folder in content for folder in prefixes):
            raise PublishError(f"{file.name} contains the path of a folder of this machine; nothing was sent")


def refuse_plain_digests(files: Sequence[File], digests: Collection[str]) -> None:
    """Raise PublishError if a text file contains one of ``digests``, which are hex digests of rows."""
    for file in files:
        if not WEIGHTS.fullmatch(file.name):
            content = file.read()
            if any(digest.encode() in content for digest in digests):
                raise PublishError(
                    f"{file.name} contains a plain digest of rows, which allows testing guesses of rows; nothing was "
                    "sent. Find out where it comes from"
                )
