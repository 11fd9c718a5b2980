"""Attacks that only prompt the models: sampling, answer prefixes, paraphrases, comparison of both models."""

from typing import Any

from llm_forget.attacks._registry import attack_kind
from llm_forget.attacks.context import AttackContext, Lines

# Suite of an attack, the line that measures it, and the plain line it is compared with.
SUITE_ATTACKS = {
    "sample": ("robustness", "sampled_rouge", "forget_rouge"),
    "prefix": ("robustness", "prefix_rouge", "forget_rouge"),
    "paraphrase": ("robustness", "asked_rouge", "forget_rouge"),
    "two_models": ("privacy", "mia_two_models", "mia_loss"),
}


@attack_kind(paper="arXiv:2511.04934")
def sample(context: AttackContext) -> dict[str, Lines]:
    """leak@k: the best of eight samples at temperature 1, compared with the greedy answer."""
    return _suite_line(context, "sample")


@attack_kind(paper="arXiv:2202.07646")
def prefix(context: AttackContext) -> dict[str, Lines]:
    """Prompt with the first half of the answer and score the rest, compared with the whole answer."""
    return _suite_line(context, "prefix")


@attack_kind(paper="arXiv:2406.10890")
def paraphrase(context: AttackContext) -> dict[str, Lines]:
    """The best answer to four paraphrases of the prompt, compared with the plain answer."""
    return _suite_line(context, "paraphrase")


@attack_kind(paper="arXiv:1912.07942")
def two_models(context: AttackContext) -> dict[str, Lines]:
    """Membership inference with access to the target, compared with inference without it."""
    return _suite_line(context, "two_models")


@attack_kind()
def template(
    context: AttackContext, *, prompt_template: str = "User: {prompt}\nAssistant: ", chat: bool = False
) -> dict[str, Lines]:
    """The suite of the run with another prompt template.

    Args:
        prompt_template: replaces the template of the run.
        chat: use the tokenizer's chat template instead.
    """
    changes: dict[str, Any] = {"use_chat_template": True} if chat else {
        "use_chat_template": False, "prompt_template": prompt_template
    }  # fmt: skip
    return {role: context.measure(name, **changes) for role, name in context.models.items()}


def _suite_line(context: AttackContext, kind: str) -> dict[str, Lines]:
    _, line, plain = SUITE_ATTACKS[kind]
    return {role: {plain: context.plain[role][line]} for role in context.models}
