"""A run's evidence as strangers may see it: no row ids, since names of people are ids, and no place on a machine.

Digests of rows are keyed, since rows can be guessed (`publish.row_digests`).
"""

from __future__ import annotations

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
    """The same numbers; rows are numbered, models go by name, settings that are places are left out.

    Raises:
        OSError, ValueError: see `keyed.row_key`.
    """
    key = row_key(evidence.run.path)
    results, verification = public_results(evidence.results, key), evidence.verification
    if verification is not None and evidence.verification_is_current:  # as it still is: no number changed
        verification = {**verification, "results": json_digest(results["suites"])}
    return replace(
        evidence,
        results=results,
        verification=verification,
        rows=_numbered(evidence.rows),
        provenance=public_data(_public_base(evidence.provenance), key),
        oracle=public_data(_public_base(evidence.oracle), key) if evidence.oracle else None,
        attacks={
            name: {**attack, "settings": _plain_settings(attack.get("settings", {}))}
            for name, attack in evidence.attacks.items()
        },
    )


def hub_id(base: Mapping[str, Any]) -> str | None:
    """The Hub's name of a base model as provenance.json describes it; None for folders, files and built-in models."""
    # Only of the Hub is a commit known; a folder may be called just like something there.
    return str(base["name"]) if str(base.get("digest", "")).startswith("commit:") else None


def model_name(base: Mapping[str, Any]) -> str:
    """What to call a base model: its Hub id, a built-in's name, or the last part of its path."""
    name = str(base.get("name", ""))
    if hub_id(base) or name.startswith("builtin:"):
        return name
    return PureWindowsPath(PurePosixPath(name).name).name


def _public_base(provenance: dict[str, Any]) -> dict[str, Any]:
    base = provenance.get("base")
    return {**provenance, "base": {**base, "name": model_name(base)}} if base else provenance


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if value is not None and key != "keep" and (not isinstance(value, str) or WORD.fullmatch(value))
    }


def _numbered(rows: dict[str, Any]) -> dict[str, Any]:
    """Row ids replaced by ``row 1``, ``row 2``: one id has one number everywhere, so models stay comparable."""
    numbers: dict[str, str] = {}

    def replaced(content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("ids"), list):
            ids = [numbers.setdefault(one, f"row {len(numbers) + 1}") for one in content["ids"]]
            return {**content, "ids": ids}
        return {key: replaced(value) for key, value in content.items()} if isinstance(content, dict) else content

    return replaced(rows)
