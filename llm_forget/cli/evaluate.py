"""Commands that evaluate runs, or use evaluation results. Each command imports heavy packages inside its function."""

from typing import Annotated, Any

import typer

from llm_forget.attacks.kinds import KINDS
from llm_forget.cli.options import PASS_ON, BatchSize, Limit, NumProcesses, Oracle, Suite, Target
from llm_forget.core.errors import ConfigError

TEXT_KEYS = ("prompt_template", "completion_end", "system_prompt")  # never parsed as YAML, because they contain braces

evidence = typer.Typer()


def speak() -> None:
    """Print the log messages of the package to stderr, without prefixes."""
    import logging

    logger = logging.getLogger("llm_forget")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


@evidence.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def evaluate(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a model.")],
    suite: Annotated[str | None, typer.Option(help="Suites or files, several with commas; default: the run's.")] = None,
    target: Target = None,
    oracle: Oracle = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    show_text: Annotated[
        int, typer.Option("--show_text", "--show-text", min=0, help="Print this many generations of each model.")
    ] = 0,
    vllm: Annotated[bool, typer.Option("--vllm", help="Generate with vLLM (extra `vllm`).")] = False,
    accelerate_config: Annotated[
        str | None,
        typer.Option(
            "--accelerate_config",
            help="Distribute the rows over processes: cpu_2, ddp, or a file.",
            metavar="NAME|PATH",
        ),
    ] = None,
    num_processes: NumProcesses = None,
) -> None:
    """Evaluate a run: measure target, unlearned model and oracle, and compare them in a table with a verdict.

    Writes `results.json` into the run. Options replace recipe keys of the run, such as `--data_path DIR`,
    `--forget other.jsonl` or `--splits '{holdout: holdout.jsonl}'`.
    """
    overrides = keys_and_values(ctx.args)
    from llm_forget.core.launch import follow_launcher, relaunch

    suite = ",".join(map(str.strip, suite.split(","))) if suite is not None else None
    arguments: dict[str, Any] = {"suite": suite, "target": target, "oracle": oracle, "limit": limit}
    arguments |= {"batch_size": batch_size, "show_text": show_text}
    if accelerate_config is not None:
        if vllm:
            raise ConfigError("--vllm distributes the work itself; remove --accelerate_config")
        options = [word for key, value in arguments.items() if value is not None for word in (f"--{key}", str(value))]
        relaunch(["evaluate", run, *options, *ctx.args], accelerate_config, num_processes)
    if num_processes is not None:
        raise ConfigError("--num_processes needs --accelerate_config: cpu_2 on CPUs, ddp on GPUs")
    follow_launcher()
    from llm_forget.workflows.evaluate import check_keys, evaluate as measure

    check_keys(overrides)
    measure(run, vllm=vllm, **arguments, **overrides)


@evidence.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def attack(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that unlearned.")],
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS.names())}.")],
    suite: Suite = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
) -> None:
    """Attack the unlearned model of a run and its oracle, and report how much more the unlearned model reveals.

    `--key value` sets an option of the attack, or replaces a key of the run's recipe. Options of attacks: `relearn`
    `--share 0.05`, `--on holdout`, `--num_train_epochs 10`, `--learning_rate`; `finetune` `--data`, `--steps`;
    `quantize` `--bits nf4` or `int8`; `prune` `--share 0.3`; `merge` `--adapter DIR`. Writes `attacks/` into the run.
    """
    overrides = keys_and_values(ctx.args)
    speak()
    from llm_forget.core.run_directory import refuse_version

    refuse_version(run, "attacks with records")
    from llm_forget.attacks.excess import ABOUT_EXCESS
    from llm_forget.attacks.run import attack as run_attack
    from llm_forget.core.config import UnlearnConfig, keys_of
    from llm_forget.core.text import terminal
    from llm_forget.evals.terminal import print_attack
    from llm_forget.workflows.evaluate import check_keys

    kind_options = {key: overrides.pop(key) for key in list(overrides) if key in KINDS.get(kind).defaults}
    for key in overrides:
        others = [other.name for other in KINDS if key in other.defaults]
        if others and key not in keys_of(UnlearnConfig):
            allowed = ", ".join(f"--{name}" for name in KINDS.get(kind).defaults) or "none"
            raise ConfigError(
                f"{kind} has no option --{key}, which belongs to {' and '.join(others)}; options of {kind}: {allowed}"
            )
    check_keys(overrides, of="attack")
    results = run_attack(run, kind, suite, limit=limit, batch_size=batch_size, overrides=overrides, **kind_options)
    print_attack(results, terminal())
    typer.echo(ABOUT_EXCESS)


@evidence.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that was evaluated.")],
    policy: Annotated[str, typer.Option(help="Name of a shipped policy or a file.")] = "default",
    quick: Annotated[bool, typer.Option("--quick", help="Leave the attacks out; the answer is never pass.")] = False,
) -> None:
    """Apply a policy to an evaluated run. Exit codes: 0 pass, 1 fail, 3 inconclusive, 2 usage error.

    Usage errors: a missing run or policy, a run that was not evaluated, damaged results, or an invalid rule.
    """
    from llm_forget.evals.policy import EXIT_CODES, verify as apply

    answer, rulings = apply(run, policy, quick=quick)
    for ruling in rulings:
        typer.echo(ruling.sentence())
    if quick:
        typer.echo("quick: rules about attacks were left out, so the answer is at most inconclusive")
    ruled = [ruling for ruling in rulings if ruling.rule.severity == "fail"]
    typer.echo(f"verdict: {answer}{'' if ruled else ' (no rule that may fail was applied)'}")
    raise typer.Exit(EXIT_CODES[answer])


@evidence.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    output: Annotated[str | None, typer.Option(help="The page; default: report.html in the run.")] = None,
    show_text: Annotated[
        int,
        typer.Option("--show_text", "--show-text", min=0, help="Show this many answers. Do not publish such a page."),
    ] = 0,
) -> None:
    """Write a report as report.html (one page without other files) and report.md.

    The report shows the verdict, metrics, training curves, attacks, cost and provenance.
    """
    speak()
    from pathlib import Path

    from llm_forget.core.run_directory import refuse_version
    from llm_forget.report import report as write

    if output is None:
        refuse_version(runs[0], "the page")
    path = write([Path(run) for run in runs], output=Path(output) if output else None, show_text=show_text)
    typer.echo(f"wrote {path}")


@evidence.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Evaluated runs.")],
    suite: Annotated[str | None, typer.Option(help="Compare by this suite; default: all that the runs share.")] = None,
    output: Annotated[str | None, typer.Option(help="Also write the table to this Markdown file.")] = None,
) -> None:
    """Compare runs by utility and by their distance to the oracle on forget rows, and mark the Pareto-optimal runs."""
    from pathlib import Path

    from llm_forget.core.files import write_atomic
    from llm_forget.core.text import terminal
    from llm_forget.report.sections.comparison import compare as put_together, comparison_markdown, print_comparison

    section = put_together([Path(run) for run in runs], suite=suite)
    print_comparison(section, terminal())
    if output is not None:
        write_atomic(Path(output), comparison_markdown(section))
        typer.echo(f"wrote {output}")


@evidence.command(context_settings=PASS_ON, options_metavar="--grid KEY=VALUE,VALUE... [OPTIONS] [--KEY VALUE]...")
def sweep(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A file or a shipped recipe of unlearn.")],
    grid: Annotated[list[str], typer.Option("--grid", help="Key and values: lr=1e-5,5e-5.", metavar="KEY=VALUE,...")],
    output_dir: Annotated[
        str | None,
        typer.Option("--output_dir", help="Folder of the runs; default: the recipe's output_dir plus -sweep."),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Suite to evaluate; default: the recipe's.")] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="Do not run; print the commands or a Slurm array script.", metavar="commands|slurm"),
    ] = None,
    accelerate_config: Annotated[
        str | None, typer.Option("--accelerate_config", help="Used in the commands of a plan.", metavar="NAME|PATH")
    ] = None,
    num_processes: NumProcesses = None,
) -> None:
    """Unlearn and evaluate with every combination of the values in a grid, and compare the runs.

    `--grid lr=1e-5,5e-5 method_args.beta=0.1,0.5` makes four runs; `--grid` may be repeated. `--key value` applies to
    every run. To resume, run the same command again: it skips finished runs. Writes `sweep.json` and `sweep.md`. Exit
    code 1: a run failed. `--dry_run true` only checks every run.
    """
    from llm_forget.workflows.sweep_grid import read_grid

    axes, overrides = read_grid(grid, ctx.args)
    if plan not in (None, "commands", "slurm"):
        raise ConfigError(f"--plan is commands or slurm, not '{plan}'; leave it out to run the sweep here")
    if plan is None and (accelerate_config or num_processes):
        raise ConfigError("a sweep runs in one process; --accelerate_config and --num_processes go with --plan")
    speak()
    from pathlib import Path

    from llm_forget.workflows.sweep import add_front, commands, plan_sweep, slurm_script, sweep as run_sweep

    selection: dict[str, Any] = {"output_dir": output_dir, "suite": suite, "overrides": overrides}
    if plan is not None:
        sweep_plan = plan_sweep(recipe, axes, **selection)
        lines = commands(sweep_plan, accelerate_config=accelerate_config, num_processes=num_processes)
        if not lines:
            raise ConfigError("every run is finished; run the sweep without --plan to compare them")
        typer.echo(slurm_script(lines, sweep_plan.folder.name).rstrip() if plan == "slurm" else "\n".join(lines))
        return
    summary = run_sweep(recipe, axes, **selection)
    if summary.get("dry_run"):
        for run in summary["runs"]:
            typer.echo(f"{'to be done' if run['status'] == 'waiting' else 'finished':10}  {run['path']}")
        typer.echo("all runs were checked; nothing was trained or written")
        return
    complete = [run["path"] for run in summary["runs"] if run["status"] == "complete"]
    if complete:
        add_front(summary, _front(complete))
        compare(complete, None, str(Path(summary["output_dir"]) / "sweep.md"))
    failed = [run["name"] for run in summary["runs"] if run["status"] == "failed"]
    if failed:
        typer.echo(f"{len(failed)} of {len(summary['runs'])} runs failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _front(runs: list[str]) -> dict[str, list[str]]:
    """Return, for each suite, the names of the runs that are Pareto-optimal."""
    from llm_forget.report.run_evidence import read_runs
    from llm_forget.report.sections.verdict import common_suites, position
    from llm_forget.report.statistics import pareto

    evidences = read_runs(runs)
    marks = {suite: pareto([position(run, suite) for run in evidences]) for suite in common_suites(evidences)}
    return {
        suite: [run.name for run, is_optimal in zip(evidences, marked, strict=True) if is_optimal]
        for suite, marked in marks.items()
    }


def keys_and_values(arguments: list[str]) -> dict[str, Any]:
    """Return the keys and values of options ``--key value`` and ``--flag`` (true). Values are parsed as YAML, except
    those of `TEXT_KEYS`. Raise ConfigError for a word that follows no option, or for invalid YAML.
    """
    import yaml

    values: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' belongs to no option; keys are written --key value")
        key, equals, text = word[2:].partition("=")
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        name = key.replace("-", "_")
        try:
            values[name] = text if name in TEXT_KEYS else yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"the value of --{key} is not valid YAML; quote it or correct it") from None
    return values
