"""Sharpness-aware steps beside a teacher: only the forget loss is taken at the perturbed weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_forget.core.ignore_label import IGNORE
from llm_forget.objectives.gradient_rules import perturbation, perturbed
from llm_forget.training.distillation.teacher_logprobs import TeacherLogprobs
from tests.training.test_resume import EVERY_STEP, _DieAt, same, weights

pytestmark = pytest.mark.slow

RATE = 0.1


@pytest.fixture
def teacher(splits: Any, tiny_tokenizer: Any) -> TeacherLogprobs:
    """A teacher with random distributions for the targets of the forget rows."""
    labels = [torch.tensor([label for label in row[1:] if label != IGNORE]) for row in splits["forget"]["labels"]]
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(len(gold), len(tiny_tokenizer), generator=generator) for gold in labels]
    return TeacherLogprobs.of(logits, labels, [len(gold) for gold in labels], 2.0)


def test_the_forget_gradient_is_that_of_the_perturbed_weights_and_the_retain_gradient_is_not(
    make_trainer: Any, teacher: TeacherLogprobs
) -> None:
    trainer = make_trainer("distil", 7, gradient="sam", teacher=teacher, optim="sgd", learning_rate=RATE, max_steps=1)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    batches: list[Any] = []
    step = trainer.training_step
    trainer.training_step = lambda m, b, n=None: batches.append((b, n)) or step(m, b, n)
    trainer.train()
    update = [(before - p.detach()) / RATE for before, p in zip(start, parameters, strict=True)]

    def loss(side: str) -> Tensor:
        return trainer.side_losses(trainer.model, *batches[0])[side]

    def gradient(side: str) -> list[Tensor]:
        return list(torch.autograd.grad(loss(side), parameters))

    back_at_the_start = [before - p.detach() for before, p in zip(start, parameters, strict=True)]
    with perturbed(parameters, back_at_the_start):
        forget, retain, level = gradient("forget"), gradient("retain"), loss("forget").item()
        with perturbed(parameters, perturbation(forget)):
            nearby = gradient("forget")
            assert loss("forget").item() > level
    torch.testing.assert_close(update, [f + r for f, r in zip(nearby, retain, strict=True)], rtol=1e-3, atol=1e-5)
    assert max((a - b).abs().max().item() for a, b in zip(nearby, forget, strict=True)) > 1e-4


def test_a_resumed_run_with_a_teacher_ends_with_the_same_weights(
    make_trainer: Any, teacher: TeacherLogprobs, tmp_path: Path
) -> None:
    how = {"method": "distil", "gradient": "sam", "teacher": teacher, "max_steps": 6, **EVERY_STEP}
    whole = make_trainer(folder="whole", **how)
    whole.train()
    broken = make_trainer(folder="broken", callbacks=[_DieAt(4)], **how)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make_trainer(folder="broken", **how)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.resumed_from.name == "checkpoint-3"
    assert same(weights(whole), weights(resumed))
    plain = make_trainer(folder="plain", **{**how, "gradient": "sum"})
    plain.train()
    assert not same(weights(whole), weights(plain))
