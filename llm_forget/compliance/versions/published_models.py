"""Models that hold deleted data and were given away: pushed to the Hub, and not withdrawn since.

Who has such a model and the one that forgot can tell which rows were deleted (the attack `mia_two_models`).
"""

from __future__ import annotations

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.deletion_check import Deletions


def given_away(ledger: Ledger, request: str) -> list[tuple[str, str]]:
    """Repository and tag of every push of a model that holds rows of a closed request, without those withdrawn."""
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
        and any(met.body.get("request") == request for met in deletions.met(event.body["weights"]))
    ]
