"""Record files: whole or recognisably not, resumable, exact."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llm_forget.core.digests import content_key
from llm_forget.evals.records import (
    GenerationRecord,
    GradientRecord,
    RecordWriter,
    TokenRecord,
    aligned,
    load_records,
    row_means,
    write_records,
)


def token_record(row, answer=0, n=3):
    rng = np.random.default_rng(abs(hash((row, answer))) % 2**32)
    return TokenRecord(row, answer, -rng.exponential(size=n).astype(np.float32), rng.random(n) < 0.5)


RECORDS = [token_record(f"r{i}", answer) for i in range(4) for answer in range(2)]
KEYS = [record.key for record in RECORDS]


def test_log_probs_survive_the_file_bit_for_bit(tmp_path):
    write_records(tmp_path / "forget.jsonl", "logprobs", "k", RECORDS)
    loaded = load_records(tmp_path / "forget.jsonl", "k")
    for before, after in zip(RECORDS, loaded, strict=True):
        assert after.key == before.key
        assert after.logps.tobytes() == before.logps.tobytes()
        assert after.hits.tolist() == before.hits.tolist()


def test_records_of_other_content_are_not_used(tmp_path):
    write_records(tmp_path / "forget.jsonl", "logprobs", "k", RECORDS)
    assert load_records(tmp_path / "forget.jsonl", "other") is None
    assert load_records(tmp_path / "absent.jsonl", "k") is None


def test_a_reference_text_is_never_written(tmp_path):
    path = tmp_path / "text.jsonl"
    write_records(path, "generate", "k", [GenerationRecord("a", 0, "said", 1, reference="CANARY")])
    assert "CANARY" not in path.read_text()
    assert load_records(path)[0].text == "said"


def test_a_killed_measurement_resumes_where_it_stopped(tmp_path):
    path = tmp_path / "forget.jsonl"
    RecordWriter(path, "logprobs", "k", KEYS).append(RECORDS[3:6])
    with open(path.with_name("forget.jsonl.partial"), "a") as file:
        file.write('{"id": "r0", "answer_index": 0, "logps": [-0.1')  # torn by the kill

    again = RecordWriter(path, "logprobs", "k", KEYS)
    assert again.missing() == set(KEYS) - {r.key for r in RECORDS[3:6]}
    assert load_records(path, "k") is None
    again.append(RECORDS[6:])
    again.append(RECORDS[:3])
    assert [r.key for r in again.finish()] == KEYS
    assert [r.key for r in load_records(path, "k")] == KEYS
    assert [p.name for p in tmp_path.iterdir()] == ["forget.jsonl"]


def test_a_partial_of_other_content_is_dropped(tmp_path):
    path = tmp_path / "forget.jsonl"
    RecordWriter(path, "logprobs", "old", KEYS).append(RECORDS)
    assert RecordWriter(path, "logprobs", "new", KEYS).missing() == set(KEYS)


def test_a_truncated_file_is_incomplete_and_measuring_resumes_from_it(tmp_path):
    path = tmp_path / "forget.jsonl"
    write_records(path, "logprobs", "k", RECORDS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    assert load_records(path, "k") is None
    assert RecordWriter(path, "logprobs", "k", KEYS).missing() == set(KEYS[3:])


@pytest.mark.parametrize("line", ["5", "null", '"id"', '["id"]'])
def test_a_line_that_is_no_object_is_measured_again(tmp_path, line):
    path = tmp_path / "forget.jsonl"
    write_records(path, "logprobs", "k", RECORDS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], f"{line}\n", *lines[5:]]))
    assert load_records(path, "k") is None
    assert RecordWriter(path, "logprobs", "k", KEYS).missing() == {KEYS[3]}


def test_a_full_disk_loses_no_complete_record_and_leaves_no_other_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "forget.jsonl"
    RecordWriter(path, "logprobs", "k", KEYS).append(RECORDS[:2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("forget.jsonl.partial").stat().st_size + 50, before[1]))
    try:
        writer = RecordWriter(path, "logprobs", "k", KEYS)
        with pytest.raises(OSError, match="too large"):
            writer.append(RECORDS[2:])
        with pytest.raises(OSError, match="too large"):
            write_records(path, "logprobs", "k", RECORDS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["forget.jsonl.partial"]
    assert RecordWriter(path, "logprobs", "k", KEYS).missing() == set(KEYS[2:])


def test_a_file_without_records_is_complete(tmp_path):
    path = tmp_path / "empty.jsonl"
    RecordWriter(path, "logprobs", "k", []).finish()
    assert load_records(path, "k") == []


def test_record_files_are_for_their_owner_only(tmp_path):
    path = tmp_path / "text.jsonl"
    writer = RecordWriter(path, "generate", "k", [("a", 0)])
    assert writer.partial.stat().st_mode & 0o077 == 0
    writer.append([GenerationRecord("a", 0, "said", 1)])
    writer.finish()
    assert path.stat().st_mode & 0o077 == 0


def test_minus_infinity_survives(tmp_path):
    record = TokenRecord("a", 0, np.array([-np.inf, -1e-30], dtype=np.float32), np.array([False, True]))
    write_records(tmp_path / "x.jsonl", "logprobs", "k", [record])
    assert load_records(tmp_path / "x.jsonl")[0].logps.tolist() == record.logps.tolist()


def test_the_key_depends_on_every_part_and_not_on_their_order():
    assert content_key(model="a", data="b") == content_key(data="b", model="a")
    assert content_key(model="a", n=1) != content_key(model="a", n="1")
    assert content_key(model="ab", data="c") != content_key(model="a", data="bc")


def test_probes_over_different_rows_are_refused_by_id():
    with pytest.raises(ValueError, match=r"1 ids are in only one of them .*r3"):
        aligned(RECORDS, RECORDS[:6])


def test_rows_are_paired_by_id_in_any_order():
    pairs = aligned(RECORDS, RECORDS[::-1])
    assert all(left[0].id == right[0].id for left, right in pairs)


def test_lines_are_plain_json(tmp_path):
    write_records(tmp_path / "x.jsonl", "logprobs", "k", RECORDS)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[0] == {"format": 2, "kind": "logprobs", "key": "k", "lines": 8}
    assert set(lines[1]) == {"id", "answer_index", "logps", "hits", "means", "variances", "n"}


def test_the_compressed_size_of_an_answer_is_never_written(tmp_path):
    record = replace(RECORDS[0], zlib_bytes=4242)
    write_records(tmp_path / "forget.jsonl", "logprobs", "k", [record])
    assert "4242" not in (tmp_path / "forget.jsonl").read_text()
    assert load_records(tmp_path / "forget.jsonl")[0].zlib_bytes == 0


def test_gradient_norms_survive_the_file_and_a_kill(tmp_path):
    path = tmp_path / "gradients.jsonl"
    records = [GradientRecord(f"r{i}", 0, {"1": 0.1 * i, "2": 1 / 3, "inf": 2.0}) for i in range(3)]
    keys = [record.key for record in records]
    RecordWriter(path, "gradients", "k", keys).append(records[:2])
    again = RecordWriter(path, "gradients", "k", keys)
    assert again.missing() == {("r2", 0)}
    again.append(records[2:])
    assert again.finish() == records
    assert load_records(path, "k") == records


def test_a_row_is_the_mean_of_its_scored_answers():
    values = {("a", 0): 1.0, ("b", 0): np.nan, ("a", 1): 3.0, ("c", 0): np.nan, ("c", 1): 5.0}
    means = row_means([token_record(*key) for key in values], lambda record: values[record.key])
    np.testing.assert_array_equal(means, [2.0, np.nan, 5.0])
