"""Commands on adapters that were made elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

adapters = typer.Typer()


@adapters.command()
def adopt(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA adapter that another tool wrote.")
    ],
    output_dir: Annotated[str, typer.Option("--output_dir", help="The run directory to create.")],
    base: Annotated[
        str | None, typer.Option(help="The base model; default: the one that the adapter names.", metavar="MODEL")
    ] = None,
    base_revision: Annotated[str, typer.Option("--base_revision", help="Revision of a base on the Hub.")] = "main",
    dtype: Annotated[str, typer.Option(help="Precision of the base: float32, bfloat16 or float16.")] = "float32",
    trust: Annotated[
        bool, typer.Option("--trust", help="Load the adapter; without this option its files are only inspected.")
    ] = False,
) -> None:
    """Check an adapter that another tool wrote, or that was pulled, and copy it into a run.

    Other commands load only adapters of runs, unchanged. Always refused, even with `--trust`: links and archives,
    pickled weights, patterns instead of module names, ranks above 1024, missing, unexpected, misshapen or non-finite
    tensors, and adapters without effect. Exit code 4: refused.
    """
    from llm_forget.cli.evaluate import speak
    from llm_forget.core.errors import AdapterRefused
    from llm_forget.workflows.adopt import adopt as take, inspect_adapter

    speak()
    description = inspect_adapter(adapter)
    claimed = ascii(description["base"])[1:-1][:100] if description["base"] else "none"
    typer.echo(
        f"LoRA of rank {description['rank']} on {', '.join(description['modules'][:12])}: {description['tensors']:,} "
        f"tensors with {description['parameters']:,} numbers; the base it claims: {claimed}"
    )
    if not trust and not description["manifest"]:
        raise AdapterRefused(
            f"adapter '{adapter}' was not loaded because its origin is unknown; if you trust it, "
            "run the command again with --trust"
        )
    run = take(adapter, output_dir, base=base, base_revision=base_revision, dtype=dtype)
    typer.echo(f"wrote '{run.path}'; name it in place of the adapter")
