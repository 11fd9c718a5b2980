"""Attacks without training: sampling, answer prefixes, paraphrases, membership inference, and other templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines


@attack_kind(paper="arXiv:2511.04934", suite="robustness")
def sample(context: AttackContext) -> dict[str, Lines]:
    """Score the best of eight answers sampled at temperature 1 (leak@k), and compare it with the greedy answer."""
    return _line(context, "sampled_rouge", "forget_rouge")


@attack_kind(paper="arXiv:2202.07646", suite="robustness")
def prefix(context: AttackContext) -> dict[str, Lines]:
    """Add the first half of the true answer to the prompt, and score the rest that the model generates. Compare the
    score with that of the answer to the plain prompt.
    """
    return _line(context, "prefix_rouge", "forget_rouge")


@attack_kind(paper="arXiv:2406.10890", suite="robustness")
def paraphrase(context: AttackContext) -> dict[str, Lines]:
    """Score the best answer to four paraphrases of the prompt, and compare it with the answer to the prompt itself."""
    return _line(context, "asked_rouge", "forget_rouge")


@attack_kind(paper="arXiv:1912.07942", suite="privacy", recovers_rows=False)
def two_models(context: AttackContext) -> dict[str, Lines]:
    """Infer membership from the unlearned model and the model before. Compare with the unlearned model alone."""
    return _line(context, "mia_two_models", "mia_loss")


@attack_kind()
def template(
    context: AttackContext, *, prompt_template: str = "User: {prompt}\nAssistant: ", chat: bool = False
) -> dict[str, Lines]:
    """Evaluate with another ``prompt_template`` than the run's or, if ``chat``, with the tokenizer's chat template."""
    changes: dict[str, Any] = {"use_chat_template": True} if chat else {
        "use_chat_template": False, "prompt_template": prompt_template
    }  # fmt: skip
    return {role: context.measure(name, **changes) for role, name in context.models.items()}


def _line(context: AttackContext, line: str, plain: str) -> dict[str, Lines]:
    """Return, for each role, the metric ``line`` of the suite under the name ``plain``.

    attack.json compares values of the same name: ``plain`` before the attack, and ``line`` after it.
    """
    return {role: {plain: context.plain[role][line]} for role in context.models}
