"""A merged folder without results, once closing has removed the lists of rows that its run was made by."""

from pathlib import Path

import pytest

from llm_forget.compliance.requests.closing_evidence import ClosingEvidence, apply_policy
from llm_forget.core.files import write_json
from llm_forget.core.run_directory import Run
from llm_forget.models.merging.merge_report import Merged
from tests.support import request_cases as cases


def closer(folder: Path, ids: Path) -> ClosingEvidence:
    """Of an unmeasured merge; the run's recipe names a list of ids."""
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"forget: {{path: rows.jsonl, ids: {ids}}}\n")
    write_json(run / "run.json", {"kind": "unlearn", "status": "complete"})
    merged = folder / "merged"
    merged.mkdir()
    return ClosingEvidence(Run(run), "sha256:a", Merged(merged, *[None] * (len(Merged.__dataclass_fields__) - 1)))


def test_without_its_list_of_rows_a_merge_is_not_advised_again(tmp_path: Path) -> None:
    ids = tmp_path / "requests" / "req-0001" / "forget-0123456789ab.txt"
    ids.parent.mkdir(parents=True)
    ids.write_text("a\n")
    made = closer(tmp_path, ids)
    with pytest.raises(ValueError, match="merge again with --measure"):
        apply_policy(made, str(cases.policy(tmp_path)))
    ids.unlink()
    with pytest.raises(ValueError, match="req-0001, is closed and its list of rows removed") as said:
        apply_policy(made, str(cases.policy(tmp_path)))
    assert "merge again" not in str(said.value)
