"""Prepare the facts of a run for publication: replace row ids, which may be names of people, and remove local paths."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from llm_forget.core.digests import json_digest
from llm_forget.publish.row_digests import public_data, public_results, row_key
from llm_forget.report.run_evidence import Evidence

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def public(evidence: Evidence) -> Evidence:
    """Return evidence to publish: row ids become numbers, digests of rows are keyed, and local paths are removed."""
    key = row_key(evidence.run.path)
    results, verification = public_results(evidence.results, key), evidence.verification
    if verification is not None and evidence.verification_is_current:  # it stays current: no number changed
        verification = {**verification, "results": json_digest(results["suites"])}
    return replace(
        evidence,
        results=results,
        verification=verification,
        rows=_numbered(evidence.rows),
        provenance=public_data(_public_base(evidence.provenance), key),
        oracle=public_data(_public_base(evidence.oracle), key) if evidence.oracle else None,
        attacks={
            name: {**attack, "settings": _public_settings(attack.get("settings", {}))}
            for name, attack in evidence.attacks.items()
        },
    )


def hub_id(base: Mapping[str, Any]) -> str | None:
    """Return the Hub id of a base model from its entry in provenance.json, or None for a model from another source."""
    # A folder may have the same name as a Hub repository, but only a Hub model has a commit as digest.
    return str(base["name"]) if str(base.get("digest", "")).startswith("commit:") else None


def model_name(base: Mapping[str, Any]) -> str:
    """Return the public name of a base model: its Hub id, the built-in name, or the last part of its path."""
    name = str(base.get("name", ""))
    if hub_id(base) or name.startswith("builtin:"):
        return name
    return PureWindowsPath(PurePosixPath(name).name).name


def _public_base(provenance: dict[str, Any]) -> dict[str, Any]:
    base = provenance.get("base")
    return {**provenance, "base": {**base, "name": model_name(base)}} if base else provenance


def _public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if value is not None and key != "keep" and (not isinstance(value, str) or WORD.fullmatch(value))
    }


def _numbered(rows: dict[str, Any]) -> dict[str, Any]:
    """Replace row ids by ``row 1``, ``row 2`` and so on. An id has the same number in all models and metrics."""
    numbers: dict[str, str] = {}

    def replaced(content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("ids"), list):
            ids = [numbers.setdefault(row_id, f"row {len(numbers) + 1}") for row_id in content["ids"]]
            return {**content, "ids": ids}
        return {key: replaced(value) for key, value in content.items()} if isinstance(content, dict) else content

    return replaced(rows)
