"""Attack an unlearned model and its oracle in the same way, and write ``attacks/<name>/attack.json`` into the run."""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm_forget.attacks.context import AttackContext, Lines, lines_of
from llm_forget.attacks.excess import excess
from llm_forget.attacks.kinds import KINDS
from llm_forget.core import formats
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import EvaluationError
from llm_forget.core.formats.results import Attack
from llm_forget.core.launch import refuse_processes
from llm_forget.core.run_directory import ROLES, Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.data.sources import load_source
from llm_forget.workflows.evaluate import DEFAULT_SUITE, evaluate

logger = logging.getLogger("llm_forget")


def attack(
    run: str | Path,
    kind: str,
    suite: str | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Attack a run and its oracle, evaluate both with one suite, and write attack.json. Return the content of the file.

    Args:
        run: directory of a finished unlearn run.
        kind: name of an attack in `llm_forget.attacks.kinds`.
        suite: name or file of the suite to measure; default: the attack's suite, if it has one, or the run's first.
        limit: maximum number of rows per probe; default: all rows.
        overrides: recipe keys that replace those of the run, as for `evaluate`.
        settings: options of the attack, such as ``share=0.05``.

    Raises ConfigError for an unknown attack or option, RunError for an unfinished run, and EvaluationError if the run
    is not an unlearn run or the attack cannot measure the suite.
    """
    refuse_processes("attack", PartialState())
    entry = KINDS.get(kind)
    # YAML parses `--bits 4` as a number; convert it to text, so that the check of `bits` lists the allowed values.
    words = {key for key, value in settings.items() if isinstance(entry.defaults.get(key), str) and type(value) is int}
    arguments = entry.arguments({key: str(value) if key in words else value for key, value in settings.items()})
    finished = Run.open(run)
    if not kind_of(finished).forgotten:
        raise EvaluationError(f"run '{run}' is a {finished.state['kind']} run; only an unlearn run can be attacked")
    if entry.suite and suite is not None:
        raise EvaluationError(f"attack '{kind}' measures the suite '{entry.suite}'; leave --suite out")
    began = time.perf_counter()
    default = entry.suite or (finished.config.get("suite") or DEFAULT_SUITE).split(",")[0].strip()
    suite = suite or default
    if "," in suite:
        raise EvaluationError(f"an attack measures one suite, not '{suite}'; name one of them with --suite")
    changed_keys = {key: value for key, value in (overrides or {}).items() if value is not None}
    logger.info("attack %s: '%s' and its oracle, suite %s", kind, finished.path.name, suite)
    measured_rows, left_out = entry.prepare({**finished.config, **changed_keys}, arguments)
    row_keys = {"forget": measured_rows} if measured_rows is not None else {}
    # Metrics on fewer or other rows are not stored as results of the run.
    whole = limit is None and not changed_keys and not row_keys
    keys = {**changed_keys, **row_keys}
    results = evaluate(finished.path, suite, limit=limit, batch_size=batch_size, quiet=True, keep=whole, **keys)
    measured_suite = results["suites"][Path(suite).stem]
    plain = {role: lines_of(measured_suite, role) for role in ROLES}
    changed_settings = {key: value for key, value in arguments.items() if value != entry.defaults[key]}
    name = _name(kind, changed_settings, suite if suite != default else None, limit, changed_keys)
    folder = finished.path / "attacks" / name
    context = AttackContext(finished, suite, folder, plain, limit, batch_size, changed_keys)
    attacked = entry.function(context, **arguments)
    content = {
        "format": Attack.FORMAT,
        "kind": kind,
        "settings": {k: v if isinstance(v, str | int | float | None) else "given" for k, v in arguments.items()},
        "suite": Path(suite).stem,
        "definition": measured_suite["definition"],
        "limit": limit,
        "overrides": sorted(changed_keys),
        "changed": sorted(changed_settings),
        "splits": {**measured_suite["splits"], **_whole_splits(row_keys, {**finished.config, **changed_keys})},
        "left_out": left_out,
        "models": results["models"],
        "metrics": _compared(measured_suite, plain, attacked),
        "seconds": round(time.perf_counter() - began, 1),
    }
    formats.write(folder / "attack.json", content, Attack)
    return content


def _whole_splits(narrowed: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of all rows for each split in ``narrowed``, of which the attack measures only some rows.

    Later, the digests show whether any row of these splits has changed since the attack.
    """
    options = {"data_path": config.get("data_path"), "fields": config.get("fields")}
    return {name: json_digest(list(load_source(config[name], split_name=name, **options))) for name in narrowed}


def _name(kind: str, settings: dict[str, Any], suite: str | None, limit: int | None, keys: dict[str, Any]) -> str:
    """Return the folder name of an attack. Attacks with different settings get different names."""
    labels = {**settings, **({"suite": suite} if suite else {}), **({"limit": limit} if limit is not None else {})}
    words = [str(value) for value in labels.values()]
    # The report shows the name, so it must not contain local paths.
    public = [Path(word).name if word.startswith(("/", "~")) else word for word in words]
    name = "-".join([kind, *(f"{key}-{word}" for key, word in zip(labels, public, strict=True))])
    readable = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)[:80]
    digests = [f"keys-{_digest(keys)}"] if keys else []
    # Two templates or two files may have the same readable name; the digest tells them apart.
    digests += [_digest(labels)] if readable != name or public != words else []
    return "-".join([readable, *digests])


def _digest(content: dict[str, Any]) -> str:
    return json_digest(content).removeprefix("sha256:")[:8]


def _compared(suite: dict[str, Any], plain: dict[str, Lines], attacked: dict[str, Lines]) -> dict[str, Any]:
    """Return, by metric name, the values of all models before and after the attack, and the excess."""
    metrics = {}
    for name, line in attacked["unlearned"].items():
        oracle = attacked.get("oracle", {}).get(name)
        compared = {
            **{key: suite["metrics"][name][key] for key in ("metric", "goal")},
            **{role: plain[role].get(name, {}).get("value") for role in ROLES},
            "unlearned_attacked": line,
            "oracle_attacked": oracle,
        }
        metrics[name] = {**compared, "excess": excess(name, compared)}
    return metrics
