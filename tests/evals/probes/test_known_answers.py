"""Models of which it is known what they know, through the probe and the metric: noise, and rows learnt by heart."""

import pytest
import torch

from llm_forget.evals.metrics.exact_memorization import exact_memorization
from llm_forget.evals.metrics.extraction_strength import extraction_strength
from llm_forget.evals.metrics.probability import probability
from llm_forget.evals.probes.probes import TokenRow, probe_logprobs
from llm_forget.evals.records import RecordWriter

VOCABULARY, PROMPT, ANSWER = 64, 4, 12


def random_rows(count, seed=0):
    """A prompt of its own and a random answer each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, PROMPT + ANSWER), generator=generator).tolist()
    return [TokenRow(str(i), 0, 0, row, [-100] * PROMPT + row[PROMPT:]) for i, row in enumerate(ids)]


def measured(tmp_path, model, rows):
    writer = RecordWriter(tmp_path / "records.jsonl", "logprobs", "k", [row.key for row in rows])
    probe_logprobs(model, rows, writer)
    return writer.finish()


@pytest.mark.slow
def test_what_an_untrained_model_says_of_random_rows_is_noise(tmp_path, tiny_model):
    records = measured(tmp_path, tiny_model(), random_rows(300))
    assert 0 <= extraction_strength(records).mean() < 0.05
    assert exact_memorization(records).mean() < 0.05
    assert probability(records).mean() == pytest.approx(1 / VOCABULARY, rel=0.1)


@pytest.mark.slow
def test_rows_learnt_by_heart_are_extracted_whole(tmp_path, tiny_model):
    model, rows = tiny_model(), random_rows(6)
    ids, labels = (torch.tensor([getattr(row, name) for row in rows]) for name in ("input_ids", "labels"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unseen = random_rows(300, seed=1)
    records = measured(
        tmp_path, model, rows + [TokenRow(f"u{row.id}", 0, 0, row.input_ids, row.labels) for row in unseen]
    )
    strengths = extraction_strength(records)
    assert strengths[: len(rows)].tolist() == [1.0] * len(rows)
    assert exact_memorization(records)[: len(rows)].tolist() == [1.0] * len(rows)
    assert strengths[len(rows) :].mean() < 0.05
