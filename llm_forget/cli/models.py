"""Commands that write or import models: merge, export, adopt. Heavy imports are inside the commands."""

from typing import Annotated, Any

import typer

from llm_forget.cli.evaluate import keys_and_values, speak
from llm_forget.cli.options import PASS_ON, BatchSize, Limit, Oracle, Suite, Target
from llm_forget.core.errors import AdapterRefused, ConfigError

models = typer.Typer()
LOST = 0.1  # report a KL from rounding above this share of the adapters' KL
NOISE = 1e-7  # nats; a smaller KL may come from the order of float32 sums and is not reported


@models.command()
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories with adapters on one base.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder of the merged model.")],
    scales: Annotated[str | None, typer.Option(help="One number per run; -1 subtracts a run.", metavar="S,...")] = None,
    combination: Annotated[
        str | None,
        typer.Option(help="cat (the exact sum; default), svd, ties, magnitude_prune, dare_linear, dare_ties."),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of each task vector to keep; default 0.5.")] = None,
    majority: Annotated[str | None, typer.Option(help="Sign election of ties: total (default) or frequency.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of dare; default 0.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of svd.")] = None,
    as_adapter: Annotated[bool, typer.Option("--as_adapter", help="Write a run with one adapter instead.")] = False,
    base_precision: Annotated[
        str,
        typer.Option(
            "--base_precision",
            help="If trained in 4 or 8 bit: trained (that base dequantised; exact) or original (measured again).",
        ),
    ] = "trained",
    tolerance: Annotated[float | None, typer.Option(help="Largest logit difference; default: by dtype.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as trained.")] = None,
    max_shard_size: Annotated[
        str | None, typer.Option("--max_shard_size", help="Largest size of one weights file.", metavar="2GB")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no_measure", help="Evaluate the merged model; default: only with --base_precision original."
        ),
    ] = None,
) -> None:
    """Merge adapters into their base model, and verify on probe prompts that the logits are the same.

    Several or scaled adapters are combined as products B A of their LoRA matrices. The error of combining A and B
    separately, as PEFT's `linear` does, is printed. `merge.json` holds the settings and the digests of the sources and
    of all files. If there is an evidence folder (LLM_FORGET_EVIDENCE, or evidence/), the merge is recorded there.
    """
    from llm_forget.workflows.merge import merge as write

    report = write(
        runs, output_dir, scales=_numbers(scales), combination=combination, density=density, majority=majority,
        seed=seed, rank=rank, as_adapter=as_adapter, base_precision=base_precision, tolerance=tolerance, dtype=dtype,
        max_shard_size=max_shard_size, measure=measure,
    )  # fmt: skip
    kind = f"adapter of rank {report['rank']}" if as_adapter else report["dtype"]
    typer.echo(
        f"wrote '{output_dir}' ({kind}): logits differ from {_expected(report)} by at most "
        f"{report['max_abs_logit_difference']:.2e} (tolerance {report['tolerance']:.2e}); "
        f"KL {report['mean_kl']:.2e}, from its base {report['mean_kl_of_adapter']:.2e}"
    )
    for line in _notes(report):
        typer.echo(line)
    _note(output_dir, runs)


def _note(folder: str, runs: list[str]) -> None:
    """Record the merge in the ledger if there is an evidence folder. If this fails, print a warning and continue."""
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.record_runs import note_run
    from llm_forget.publish.ledger_gate import evidence_folder

    if (evidence := evidence_folder()) is None:
        return
    try:
        with Ledger.open(evidence) as ledger:
            for path in (*runs, folder):
                event, *_ = note_run(ledger, path)
        typer.echo(f"noted in '{evidence}' (event {event.seq})")
    except ValueError as error:
        typer.echo(f"llm-forget: warning: not noted in '{evidence}': {error}", err=True)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"scales are '{text}'; give numbers with commas between, such as 1,-0.5") from None


def _expected(report: dict[str, Any]) -> str:
    if report["combination"] == "stack":
        return "the adapter's"
    exact = report["combination"] == "cat" or ("rank" in report and "as_trained" not in report)
    return "those of all adapters at once" if exact else "those of the weights in memory"


def _notes(report: dict[str, Any]) -> list[str]:
    lines = []
    if report.get("as_trained"):
        lines.append(f"against the adapter on its quantised base: KL {report['as_trained']['mean_kl']:.2e}")
    if report.get("rank_error"):
        lines.append(f"rank {report['rank']} leaves out {report['rank_error']:.1%} of the sum (Frobenius norm)")
    if len(report["sources"]) > 1 and report.get("error_of_averaging") is not None:
        lines.append(
            f"adding A and B apart, as PEFT's linear does, would have been off by {report['error_of_averaging']:.0%} "
            "of the sum (Frobenius norm)"
        )
    adapted = report["mean_kl_of_adapter"]
    if report["mean_kl"] > max(LOST * adapted, NOISE):
        lines.append(
            f"the file is KL {report['mean_kl']:.2e} away from what it should be, against {adapted:.2e} that the "
            "adapters do at all: evaluate it, or write it in float32"
        )
    return lines


@models.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def export(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, or a full model.")],
    form: Annotated[str, typer.Option(help="nf4, int8, gguf-f32, -f16, -bf16, -q8_0, -q5_1, -q5_0, -q4_1 or -q4_0.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Output folder; must not exist.")],
    measure: Annotated[bool, typer.Option("--measure/--no_measure", help="Evaluate both, export and original.")] = True,
    suite: Suite = None,
    target: Target = None,
    oracle: Oracle = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
) -> None:
    """Export a model in 4 or 8 bit (bitsandbytes) or as one GGUF file, read it back, and evaluate it.

    Rounding weights can bring back forgotten rows. So the export is evaluated, on the rows of the run or on those of
    `--forget`, `--retain` and other recipe keys, and has its own `results.json`. Exit code 1: the export fails a
    verdict that the original passed. Its files are kept.
    """
    overrides = keys_and_values(ctx.args)
    speak()
    from llm_forget.workflows.export import export as write, new_failures

    report = write(
        model, form, output_dir, measure=measure, suite=suite, target=target, oracle=oracle, limit=limit,
        batch_size=batch_size, **overrides,
    )  # fmt: skip
    path = f"{output_dir}/{report['file']}" if report["file"] else output_dir
    read = report["as_read"]["max_abs_logit_difference"]
    typer.echo(
        f"wrote '{path}': logits differ from the model's by at most {report['max_abs_logit_difference']:.2e}, KL "
        f"{report['mean_kl']:.2e} nats a token, on {report['n_probe_tokens']} tokens of text; read back they differ "
        f"from what was written by {read:.2e} (tolerance {report['tolerance']:.2e})"
    )
    typer.echo(f"digest: {report['digest']}")
    if report.get("tokenizer", {}).get("differing"):
        typer.echo(
            f"{report['tokenizer']['differing']} of {report['tokenizer']['samples']} sample texts are cut otherwise "
            "where transformers reads the tokenizer from the file; evaluate takes it from the files beside it"
        )
    if not measure:
        typer.echo("not evaluated: rounding can bring back what was forgotten")
        return
    _side_by_side(report)
    failed = new_failures(report)
    for name, question, answer in failed:
        typer.echo(f"{form} fails what the model passed: suite {name}, {question}: yes, now {answer}")
    if failed:
        raise typer.Exit(1)


def _side_by_side(report: dict[str, Any]) -> None:
    """Print a table for each suite with the metrics and verdicts of the model, its export and the oracle."""
    from rich import box
    from rich.table import Table

    from llm_forget.core.text import shown, terminal

    console = terminal()
    for name, suite in report["results"]["suites"].items():
        before = report["model_results"]["suites"][name]
        table = Table(title=f"suite {name}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("metric", no_wrap=True)
        for column in ("model", report["form"], "oracle"):
            table.add_column(column, justify="right", no_wrap=True)
        for metric, line in suite["metrics"].items():
            other = shown(line["oracle"]["value"]) if line["oracle"] else ""
            table.add_row(metric, shown(before["metrics"][metric]["value"]), shown(line["value"]), other)
        for question, verdict in suite["verdict"].items():
            table.add_row(f"verdict: {question}", before["verdict"][question]["answer"], verdict["answer"], "")
        console.print(table)


@models.command()
def adopt(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder of a LoRA adapter from another tool.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="The run directory to create.")],
    base: Annotated[str | None, typer.Option(help="Base model; default: the adapter's.", metavar="MODEL")] = None,
    base_revision: Annotated[str, typer.Option("--base_revision", help="Revision of a base on the Hub.")] = "main",
    dtype: Annotated[str, typer.Option(help="Precision of the base: float32, bfloat16 or float16.")] = "float32",
    trust: Annotated[bool, typer.Option("--trust", help="Load the adapter; otherwise it is only inspected.")] = False,
) -> None:
    """Check an adapter that comes from another tool or from `pull`, and copy it into a run directory.

    Other commands load adapters only from run directories. Even with `--trust`, these are refused: links and archives,
    pickled weights, patterns instead of module names, ranks above 1024, missing, unexpected, misshapen or non-finite
    tensors, and adapters without effect. Exit code 4: refused.
    """
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
