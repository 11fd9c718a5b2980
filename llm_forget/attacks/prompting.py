"""Attacks that leave the models alone: samples, the beginning of the answer, other words, both models at once."""

from __future__ import annotations

from typing import Any

from llm_forget.attacks._registry import attack_kind
from llm_forget.attacks.context import AttackContext, Lines

# What a kind measures instead of the run's suite, the line that is the attack, and the plain one it is compared with.
SUITE_ATTACKS = {
    "sample": ("robustness", "sampled_rouge", "forget_rouge"),
    "prefix": ("robustness", "prefix_rouge", "forget_rouge"),
    "paraphrase": ("robustness", "asked_rouge", "forget_rouge"),
    "two_models": ("privacy", "mia_two_models", "mia_loss"),
}


@attack_kind(paper="arXiv:2511.04934")
def sample(context: AttackContext) -> dict[str, Lines]:
    """leak@k: the best of eight samples at temperature 1, beside the greedy answer."""
    return _suite_line(context, "sample")


@attack_kind(paper="arXiv:2202.07646")
def prefix(context: AttackContext) -> dict[str, Lines]:
    """The first half of the answer is given away and the rest compared, beside the whole answer."""
    return _suite_line(context, "prefix")


@attack_kind(paper="arXiv:2406.10890")
def paraphrase(context: AttackContext) -> dict[str, Lines]:
    """The best answer to four other ways of asking, beside the plain one."""
    return _suite_line(context, "paraphrase")


@attack_kind(paper="arXiv:1912.07942")
def two_models(context: AttackContext) -> dict[str, Lines]:
    """Telling forgotten rows from rows never seen with the model before at hand, beside doing so without."""
    return _suite_line(context, "two_models")


@attack_kind()
def template(
    context: AttackContext, *, prompt_template: str = "User: {prompt}\nAssistant: ", chat: bool = False
) -> dict[str, Lines]:
    """The run's suite with the prompt in another form.

    Args:
        context: the models under attack.
        prompt_template: in place of the chat template, or of the run's own.
        chat: take the tokenizer's chat template instead.
    """
    changes: dict[str, Any] = {"use_chat_template": True} if chat else {
        "use_chat_template": False, "prompt_template": prompt_template
    }  # fmt: skip
    return {role: context.measure(name, **changes) for role, name in context.models.items()}


def _suite_line(context: AttackContext, kind: str) -> dict[str, Lines]:
    _, line, plain = SUITE_ATTACKS[kind]
    return {role: {plain: context.plain[role][line]} for role in context.models}
