"""The command that writes a full model, or one adapter, from adapters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llm_forget.core.errors import ConfigError

merging = typer.Typer()
LOST = 0.1  # of what the adapters do (KL); more than this lost to rounding is said,
NOISE = 1e-7  # and more nats than sums of float32 differ by


@merging.command()
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories with adapters on one base.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder of the merged model.")],
    scales: Annotated[
        str | None, typer.Option(help="One number per run; -1 subtracts what the run learned.", metavar="S,...")
    ] = None,
    combination: Annotated[
        str | None,
        typer.Option(help="cat (the exact sum; default), svd, ties, magnitude_prune, dare_linear, dare_ties."),
    ] = None,
    density: Annotated[float | None, typer.Option(help="Fraction of each task vector to keep; default 0.5.")] = None,
    majority: Annotated[str | None, typer.Option(help="Sign election of ties: total (default) or frequency.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of dare; default 0.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of svd.")] = None,
    as_adapter: Annotated[
        bool, typer.Option("--as_adapter", help="Write a run with one adapter instead of a full model.")
    ] = False,
    base_precision: Annotated[
        str,
        typer.Option(
            "--base_precision",
            help="If trained in 4 or 8 bit: trained (that base dequantised; exact) or original (measured again).",
        ),
    ] = "trained",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest allowed difference in a logit; default: what the dtype allows.")
    ] = None,
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
    """Merge adapters into their base model, and verify on probe prompts that the outputs are the same.

    Several runs, or scales, are combined on the products B A, never on A and B separately, which gives another model;
    the error of that is printed. `merge.json` holds the settings and the digests of the sources and of every file. If
    there is an evidence folder (LLM_FORGET_EVIDENCE, or evidence/), the merge is recorded there.
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
        f"KL {report['mean_kl']:.2e}, from the model beneath {report['mean_kl_of_adapter']:.2e}"
    )
    for line in _notes(report):
        typer.echo(line)
    _note(output_dir, runs)


def _note(folder: str, runs: list[str]) -> None:
    """Where there is an evidence folder, say there what was merged; a run that it cannot take stops nothing."""
    from pathlib import Path

    from llm_forget.compliance.ledger.record_runs import note_with_sources
    from llm_forget.publish.ledger_gate import evidence_folder

    if (evidence := evidence_folder()) is None:
        return
    try:
        (event, *_) = note_with_sources(evidence, Path(folder), runs)
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
