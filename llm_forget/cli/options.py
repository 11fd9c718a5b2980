"""Options that several groups of commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EVIDENCE = Path("evidence")
Evidence = Annotated[
    Path,
    typer.Option(
        "--evidence", envvar="LLM_FORGET_EVIDENCE", help="Folder with ledger, requests and versions.", metavar="DIR",
        readable=False,  # who may not read it is told by who opens it
    ),
]  # fmt: skip
