"""What leaves the machine: a list of allowed names, and of each file what may be seen.

Weights, tokenizer, card, results and report. Never records, rows, ledger, caches, recipe or provenance: these hold ids,
text or paths. What names a local path is written anew, and digests of rows are keyed, since rows can be guessed; a path
or a plain digest that is still found anywhere stops everything.
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
from llm_forget.publish.card.card import Place, card, measured_as
from llm_forget.publish.card.statements import kept_statements
from llm_forget.publish.consistency import EXPORT_REPORT, Written, refuse_other_weights, written_from
from llm_forget.publish.row_digests import plain_digests, public_results, row_key
from llm_forget.report.render.document import Document
from llm_forget.report.run_evidence import Evidence, read_run

logger = logging.getLogger("llm_forget")
LISTING = "published.json"  # every other file with its digest
SIGNATURE = "published.sig"  # of that, by the key of an evidence folder
PURPOSE = "llm-forget publication"  # is signed with it, so that no other signature of the key passes for one
CARD, RESULTS, REPORT = "README.md", "results.json", "report.html"
WEIGHTS = re.compile(r"adapter_model\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors|model-[a-z0-9_]{1,20}\.gguf")
OF_ADAPTER = ("adapter_config.json", "manifest.json", "effect.json")
OF_MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json", "merge.json", "export.json")
OF_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
LOCAL_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")  # of a machine, not of a model


def allowed(name: str) -> bool:
    """Whether a file of this name, at the top of a repository, is ever pushed or pulled."""
    return bool(WEIGHTS.fullmatch(name)) or name in (
        LISTING, SIGNATURE, CARD, RESULTS, REPORT, *OF_ADAPTER, *OF_MODEL, *OF_TOKENIZER,
    )  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of a publication: on disk as it is, or written anew in memory."""

    name: str
    content: Path | bytes
    digest: str  # sha256:...
    size: int

    @classmethod
    def of(cls, name: str, content: Path | bytes) -> File:
        if isinstance(content, Path):
            return cls(name, content, file_digest(content), content.stat().st_size)
        return cls(name, content, "sha256:" + hashlib.sha256(content).hexdigest(), len(content))

    def read(self) -> bytes:
        """Its bytes."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class Publication:
    """All that will be in the repository."""

    repository: str
    kind: str  # adapter | model
    tag: str  # names the content: the same files have the same tag
    files: tuple[File, ...]

    @property
    def card(self) -> str:
        """The model card."""
        return next(file for file in self.files if file.name == CARD).read().decode()

    @property
    def digests(self) -> dict[str, str]:
        """Of every file but the listing and its signature."""
        return {file.name: file.digest for file in self.files if file.name not in (LISTING, SIGNATURE)}


def publication(
    run: str | Path,
    repository: str,
    *,
    merged: str | Path | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    signed_in: Path | None = None,
) -> Publication:
    """Everything that `push` would send; asks nothing of the network.

    Args:
        run: a finished and measured run.
        repository: ``org/name``.
        merged: a folder that `merge` or `export` wrote, in place of the adapter.
        history: see `card`.
        signed_in: evidence folder whose key signs the listing.

    Raises:
        OSError: see `keyed.row_key`.
        ValueError: the run was not measured, its weights are not those that were, or a file names a local path or says
            a plain digest of rows.
    """
    from llm_forget.models.adapters.files import verify_adapter

    evidence = read_run(run)
    adapter = evidence.run.adapter
    folder, kind = (adapter, "adapter") if adapter.is_dir() else (evidence.run.model, "model")
    written = written_from(evidence, merged) if merged is not None else None
    if written is not None:
        folder, kind = written.folder, "model"
    own = written is not None and written.measured
    if not own:
        refuse_other_weights(evidence, verify_adapter(adapter) if adapter.is_dir() else None)
    named = kept_statements(evidence.run.path).base_model or hub_id(evidence.provenance.get("base", {}))
    files = list(_of_adapter(folder, named) if kind == "adapter" else _of_model(folder, written))
    files += [File.of(name, _without_place(folder / name)) for name in OF_TOKENIZER if (folder / name).is_file()]
    results = read_results(Run(folder)) if own else evidence.results
    files.append(File.of(RESULTS, _json(public_results(results, row_key(evidence.run.path)))))
    try:
        files.append(File.of(REPORT, report_without_ids(measured_as(evidence, folder if own else None))))
    except ImportError as error:  # matplotlib is an extra
        logger.warning("no %s goes along: %s", REPORT, error)
    given: dict[str, Any] = {"merged": Path(merged) if merged is not None else None, "history": history}
    # The card names the tag, which names the content: so the tag is taken from the card of the head.
    undated = File.of(CARD, card(evidence, place=Place(repository), **given).encode())
    tag = f"v-{json_digest({file.name: file.digest for file in [*files, undated]}).removeprefix('sha256:')[:12]}"
    files.append(File.of(CARD, card(evidence, place=Place(repository, tag), **given).encode()))
    files.append(File.of(LISTING, _listing(kind, files)))
    if signed_in is not None:
        files.append(File.of(SIGNATURE, _signature(signed_in, repository, files[-1].read())))
    refuse_paths(files, evidence.run.path)
    known = (plain_digests(found, evidence.provenance) for found in (results, evidence.results))
    refuse_plain_digests(files, set().union(*known))
    return Publication(repository, kind, tag, tuple(sorted(files, key=lambda file: file.name)))


def _listing(kind: str, files: Sequence[File]) -> bytes:
    content = {"format": PublishedFiles.FORMAT, "kind": kind, "files": {file.name: file.digest for file in files}}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def signed(repository: str, listing: bytes) -> bytes:
    """What a signature is over: these files, in this repository."""
    return canonical({"purpose": PURPOSE, "repository": repository, "listing": hashlib.sha256(listing).hexdigest()})


def _signature(evidence: Path, repository: str, listing: bytes) -> bytes:
    from llm_forget.compliance.ledger.signing import fingerprint, public_key, sign

    signature = sign(evidence, signed(repository, listing))
    return formats.encoded(PublicationSignature(fingerprint(public_key(evidence)), signature)).encode()


def _of_adapter(folder: Path, base: str | None) -> Iterator[File]:
    """Weights as they are; config and manifest with the base's name on the Hub, and never with a path to it."""
    weights, config, manifest, effect = (folder / name for name in ("adapter_model.safetensors", *OF_ADAPTER))
    yield from (File.of(file.name, file) for file in (weights, effect) if file.is_file())
    fields, known = read_json(config), formats.read_content(manifest, Manifest)
    base = base or without_folders(fields.get("base_model_name_or_path"))
    if fields.get("base_model_name_or_path") == base:
        yield from (File.of(file.name, file) for file in (config, manifest))
        return
    told = File.of(config.name, _json({**fields, "base_model_name_or_path": base}))
    yield told
    yield File.of(manifest.name, _json({**known, "files": {**known["files"], config.name: told.digest}}))


def without_folders(name: str | None) -> str | None:
    """A Hub id as it is; of a path the last part."""
    if name is None:
        return None
    like_hub = name.count("/") <= 1 and name[:1] not in ("/", ".", "~", "\\") and ":\\" not in name
    if like_hub and not Path(name).exists():
        return name
    return model_name({"name": name})


def _of_model(folder: Path, written: Written | None) -> Iterator[File]:
    one = written.file if written is not None else None
    weights = [folder / one] if one else sorted(folder.glob("*.safetensors"))
    weights = [path for path in weights if WEIGHTS.fullmatch(path.name)]
    if not weights or not (one or (folder / "config.json").is_file()):
        raise PublishError(
            f"'{folder}' holds no full model in safetensors; `llm-forget merge RUN --output_dir DIR` does"
        )
    yield from (File.of(path.name, path) for path in weights)
    for name in OF_MODEL:
        if (folder / name).is_file():
            yield File.of(name, _without_place(folder / name))


def _without_place(file: Path) -> Path | bytes:
    """The file itself, or its JSON without what tells about a machine."""
    if file.suffix != ".json" or file.name in ("tokenizer.json", "vocab.json"):
        return file
    content = read_json(file)
    kept = {key: value for key, value in content.items() if key not in LOCAL_KEYS}
    if "base" in kept:
        kept["base"] = without_folders(str(kept["base"]))
    if file.name in ("merge.json", EXPORT_REPORT):
        kept["files"] = {name: digest for name, digest in kept.get("files", {}).items() if WEIGHTS.fullmatch(name)}
    return file if kept == content else _json(kept)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def report_without_ids(evidence: Evidence) -> bytes:
    """The report made anew, whatever lies in the run: with row numbers for ids, and never with text."""
    from llm_forget.report.page import report_document
    from llm_forget.report.render.html import to_html

    page: Document = report_document([public(evidence)])
    return to_html(page).encode()


def refuse_paths(files: Sequence[File], run: Path) -> None:
    """Raise ValueError where a file that is text names a folder of this machine."""
    places = {Path.home(), Path.cwd(), run.resolve().parent, Path(tempfile.gettempdir())}
    named = [f"{place}/".encode() for place in places if len(place.parts) > 1]
    for file in files:
        if WEIGHTS.fullmatch(file.name):
            continue
        content = file.read()
        if any(place in content for place in named):
            raise PublishError(
                f"{file.name} names a folder of this machine; nothing was sent. Look where it comes from"
            )


def refuse_plain_digests(files: Sequence[File], digests: Collection[str]) -> None:
    """Raise ValueError where a file that is text says one of these digests of rows, given as hex digits."""
    for file in files:
        if not WEIGHTS.fullmatch(file.name):
            content = file.read()
            if any(digest.encode() in content for digest in digests):
                raise PublishError(
                    f"{file.name} says a plain digest of rows, by which guesses of them can be tested; nothing was "
                    "sent. Look where it comes from"
                )
