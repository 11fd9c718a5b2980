"""Options that several groups of commands share."""

from pathlib import Path
from typing import Annotated

import typer

EVIDENCE = Path("evidence")
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Evidence = Annotated[
    Path,
    typer.Option(
        "--evidence", envvar="LLM_FORGET_EVIDENCE", help="Folder with ledger, requests and versions.", metavar="DIR",
        readable=False,  # a missing permission is reported when the folder is opened
    ),
]  # fmt: skip
Limit = Annotated[int | None, typer.Option(min=1, help="Measure at most this many rows of each probe.")]
BatchSize = Annotated[int, typer.Option("--batch_size", "--batch-size", min=1, help="Largest batch, in sequences.")]
Suite = Annotated[str | None, typer.Option(help="Suite to evaluate; default: the run's.")]
Target = Annotated[str | None, typer.Option(help="The target model; default: what the run started from.")]
Oracle = Annotated[
    str | None,
    typer.Option(help="Model that never saw the forget rows, or several with commas; default: the run's `oracle`."),
]
NumProcesses = Annotated[
    int | None, typer.Option("--num_processes", min=1, help="In place of the config's num_processes.")
]
