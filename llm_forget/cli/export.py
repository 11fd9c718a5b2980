"""The command that writes a model in other forms. Heavy imports wait for its body."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llm_forget.cli.evaluate import PASS_ON, BatchSize, Limit, keys_and_values, speak

exporting = typer.Typer()


@exporting.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def export(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, or a full model.")],
    form: Annotated[str, typer.Option(help="nf4, int8, gguf-f32, -f16, -bf16, -q8_0, -q5_1, -q5_0, -q4_1 or -q4_0.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Output folder; must not exist.")],
    measure: Annotated[
        bool, typer.Option("--measure/--no_measure", help="Evaluate the exported model and the original.")
    ] = True,
    suite: Annotated[str | None, typer.Option(help="Suite to evaluate; default: the run's.")] = None,
    target: Annotated[str | None, typer.Option(help="The target model; default: what the run started from.")] = None,
    oracle: Annotated[
        str | None, typer.Option(help="A model that never saw the forget rows; default: the run's `oracle`.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
) -> None:
    """Export a model in 4 or 8 bit (bitsandbytes) or as one GGUF file, read it back, and evaluate it.

    Rounding weights can bring back what was forgotten, so the exported model is evaluated on the rows of the run, or on
    those of `--forget`, `--retain` and other recipe keys, into its own `results.json`. Exit code 1 if it fails a
    verdict that the original passed; the exported files stay.
    """
    overrides = keys_and_values(ctx.args)
    speak()
    from llm_forget.workflows.export import export as write, new_failures

    evaluation = {"suite": suite, "target": target, "oracle": oracle, "limit": limit, "batch_size": batch_size}
    report = write(model, form, output_dir, measure=measure, **evaluation, **overrides)
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
    """Every metric and verdict of the model and of the form."""
    from rich import box
    from rich.table import Table

    from llm_forget.core.text import shown
    from llm_forget.evals.terminal import terminal

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
