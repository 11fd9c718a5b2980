"""Commands on adapters that were made elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

adapters = typer.Typer()


@adapters.command()
def adopt(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA adapter made elsewhere.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="The run directory that gets a copy.")],
    base: Annotated[
        str | None, typer.Option(help="The model beneath; default: the one that the adapter claims.", metavar="MODEL")
    ] = None,
    base_revision: Annotated[str, typer.Option("--base_revision", help="Of a base on the Hub.")] = "main",
    dtype: Annotated[str, typer.Option(help="Of the base: float32, bfloat16 or float16.")] = "float32",
    trust: Annotated[bool, typer.Option("--trust", help="Load it. Without, its files are only looked at.")] = False,
) -> None:
    """Check an adapter that this package did not write, or that was pulled, and copy it into a run.

    Other commands load adapters of runs only, and exactly as they were written. Refused, also with `--trust`, are links
    and archives, pickled weights, patterns in place of module names, ranks above 1024, missing, unexpected, misshapen
    or non-finite tensors, and an adapter that changes nothing. Exit code 4: refused.
    """
    from llm_forget.cli.evaluate import speak
    from llm_forget.core.errors import AdapterRefused
    from llm_forget.workflows.adopt import adopt as take
    from llm_forget.workflows.adopt import inspect_adapter

    speak()
    found = inspect_adapter(adapter)
    claimed = ascii(found["base"])[1:-1][:100] if found["base"] else "none"
    typer.echo(
        f"LoRA of rank {found['rank']} on {', '.join(found['modules'][:12])}: {found['tensors']:,} tensors with "
        f"{found['parameters']:,} numbers; the base it claims: {claimed}"
    )
    if not trust and not found["manifest"]:
        raise AdapterRefused(
            f"adapter '{adapter}' was not loaded: nobody vouches for it; if you do, give the command again with --trust"
        )
    run = take(adapter, output_dir, base=base, base_revision=base_revision, dtype=dtype)
    typer.echo(f"wrote '{run.path}'; name it in place of the adapter")
