"""Read and check results.json and the attack.json files of a run."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from llm_forget.core import formats, resources
from llm_forget.core.errors import RunError
from llm_forget.core.formats.results import Attack, Results
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.evals.suite import Suite, load_suite
from llm_forget.models.merging.merge_report import Merged


def read_results(run: Run) -> dict[str, Any]:
    """Read results.json of an evaluated run.

    Raises RunError if the run was not evaluated, and LlmForgetError if the file is damaged or of another version.
    """
    again = f"llm-forget evaluate {run.path}"
    if not run.results_file.is_file():
        kind = kind_of(run)
        if kind.trained and not kind.forgotten:
            raise RunError(
                f"run '{run.path}' is a {kind.name} run: it has no target, no forget rows and no results; name a run "
                f"of unlearn, or evaluate a run on this model with --target {run.path} or --oracle {run.path}"
            )
        raise RunError(f"run '{run.path}' is not evaluated: it has no results.json; first: {again}")
    return formats.read_content(run.results_file, Results, advice=f"delete it and evaluate again: {again}")


def read_attacks(run: Run) -> dict[str, dict[str, Any]]:
    """Read the attacks on a run, and return the content of each attack.json by folder name.

    Raises LlmForgetError if a file is damaged or of another version.
    """
    files = sorted((run.path / "attacks").glob("*/attack.json"))
    return {file.parent.name: formats.read_content(file, Attack, advice="run the attack again") for file in files}


def current_attacks(attacks: Mapping[str, dict[str, Any]], results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the attacks on the models and rows of ``results`` that changed no recipe key and measured all rows."""
    return {name: attack for name, attack in attacks.items() if _is_current(attack, results)}


def _is_current(attack: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    if attack.get("overrides") or attack.get("limit") is not None or "splits" not in attack:  # 0.1.0 wrote no splits
        return False
    suites = [suite for suite in results["suites"].values() if not suite.get("overrides")]
    rows = [pair for suite in suites for pair in suite.get("splits", {}).items()]
    same_rows = all(attack["splits"].get(name, digest) == digest for name, digest in rows)
    return same_rows and _attacked_digests(attack) == _attacked_digests(results)


def _attacked_digests(measured: Mapping[str, Any]) -> list[str | None]:
    return [(measured["models"][role] or {}).get("digest") for role in ("unlearned", "oracle")]


def holds_suite(run: Run, suite: Suite) -> bool:
    """Return whether results.json has results of the suite as it is defined now, on all rows and without overrides."""
    results = formats.read_if_current(run.results_file, Results)
    content = results["suites"].get(suite.name) if results is not None else None
    return (
        content is not None
        and content.get("definition") == suite.digest
        and not content.get("limit")
        and not content.get("overrides")
    )


def differs_from_shipped(name: str, definition: str | None) -> bool:
    """Return whether a suite has the name of a shipped suite but another definition: a custom file or another version.

    ``definition`` is the digest that results.json or attack.json has; None if an early version wrote none.
    """
    return definition is not None and _shipped_digest(name) not in (None, definition)


@cache
def _shipped_digest(name: str) -> str | None:
    return load_suite(resources.locate("eval", name)).digest if name in resources.names("eval") else None


def is_measured(merged: Merged) -> bool:
    """Return whether the results of a merged folder were measured on the weights that are in the folder now.

    The model must have been evaluated in the dtype that the folder's config file states. If the folder has no config
    file, any dtype is accepted.
    """
    from llm_forget.core.config import model_part
    from llm_forget.core.unsupported_keys import DTYPES
    from llm_forget.models.digest import identity_of

    run = Run(merged.folder)
    measured = read_results(run)["models"]["unlearned"]
    configs = [run.config] if run.config_file.is_file() else [{}, *({"dtype": dtype} for dtype in DTYPES)]
    digests = (identity_of(model_part(config), base=merged.weights).digest for config in configs)
    return measured is not None and measured["digest"] in digests
