"""Find published models that contain deleted data: models that were pushed to the Hub and not withdrawn since.

Comparing such a model with the unlearned one reveals which rows were deleted (the attack `mia_two_models`).
"""

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.deletion_check import Deletions


def published_with_deleted_rows(ledger: Ledger, request: str) -> list[tuple[str, str]]:
    """Return repository and tag of each pushed model that contains rows of a closed request and was not withdrawn."""
    deletions, pushes = Deletions(ledger), ledger.events("publish")
    withdrawn = {
        (event.body["repository"], commit)
        for event in pushes
        if event.body["action"] == "withdraw" and event.body.get("verified") is not False
        for commit in event.body["commits"]
    }
    return [
        (event.body["repository"], event.body["tag"])
        for event in pushes
        if event.body["action"] == "push"
        and "weights" in event.body
        and (event.body["repository"], event.body["commit"]) not in withdrawn
        and any(deletion.body.get("request") == request for deletion in deletions.contained_in(event.body["weights"]))
    ]
