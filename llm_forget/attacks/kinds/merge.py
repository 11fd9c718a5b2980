"""Merge another adapter into the unlearned model, as users do, and measure how much of the forget rows it recovers."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind
from llm_forget.core.errors import AdapterRefused, EvaluationError

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines

logger = logging.getLogger("llm_forget")


def _check_adapter(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    """Raise an error if the adapter is missing or has another base.

    Return (None, 0), which means that all forget rows are measured and 0 rows are left out (see `Prepare`).
    """
    from llm_forget.attacks.changed_models import adapter_folder
    from llm_forget.models.adapters.verification import verify_adapter
    from llm_forget.models.digest import source_digest

    if not isinstance(arguments["adapter"], str):
        raise EvaluationError("merge needs another adapter of the same base; name its run or folder: --adapter DIR")
    base = source_digest(config["model_name_or_path"], config.get("model_revision"))
    verify_adapter(adapter_folder(arguments["adapter"]), base)
    return None, 0


@attack_kind(paper="arXiv:2212.04089", prepare=_check_adapter)
def merge(context: AttackContext, *, adapter: str | None = None, keep: bool = False) -> dict[str, Lines]:
    """Add the weight change of another adapter to the unlearned model and to the oracle, and evaluate both.

    If the adapter does not fit the shapes of the oracle's weights, the oracle is not attacked, and its metrics before
    the attack are used. The excess is then the whole change of the unlearned model. This is an upper bound of the
    excess that an attacked oracle would give, unless the attack makes the oracle forget.

    Args:
        adapter: a run or an adapter folder, trained on the base of the attacked run.
        keep: keep the merged models, which are as large as the base model, in the folder of the attack.
    """
    from llm_forget.attacks.changed_models import adapter_folder, changed_model

    assert adapter is not None  # `_check_adapter`
    other = adapter_folder(adapter)
    lines = {}
    for role in context.models:
        logger.info("merge: %s and '%s'", role, Path(adapter).name)
        try:
            with changed_model(context, role, lambda model: _with_adapter(model, other), keep=keep) as name:
                lines[role] = context.measure(name)
        except AdapterRefused as refusal:
            if role != "oracle":
                raise
            logger.warning("the adapter does not fit the oracle, whose lines stay those before the attack: %s", refusal)
            lines[role] = context.plain[role]
    return lines


def _with_adapter(model: Any, folder: Path) -> Any:
    """Merge the adapter in ``folder`` into a model, and return the model. Raise AdapterRefused if it does not fit."""
    from llm_forget.attacks.changed_models import merged
    from llm_forget.models.adapters.files import load_adapter
    from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, ADAPTER_WEIGHTS

    with tempfile.TemporaryDirectory() as temporary:
        # Leave out the manifest: it records the effect on the adapter's own base, but these weights differ.
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(folder / name, Path(temporary) / name)
        return merged(load_adapter(model, temporary, trust=True))
