"""The command line ``llm-forget``, with the commands for training, benchmarks and recipes.

Each command imports heavy packages inside its function, so that ``--help`` is fast.
"""

import errno
import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llm_forget.cli.evaluate import evidence, speak
from llm_forget.cli.inspect import residue
from llm_forget.cli.ledger import audit
from llm_forget.cli.models import models
from llm_forget.cli.options import PASS_ON, NumProcesses
from llm_forget.cli.publish import publishing
from llm_forget.cli.requests import requests
from llm_forget.cli.versions import versions
from llm_forget.core import __version__, resources, safe_errors
from llm_forget.core.digests import each_file_hashed_once
from llm_forget.core.errors import ConfigError, LlmForgetError

DEBUG = "LLM_FORGET_DEBUG"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = "no space is left on the disk, or your quota is used up; free some and run the same command again"
FULL_DISK = 5  # exit code; other expected errors exit with their `exit_code`, or 2


class Entrance(TyperGroup):
    """A command group that prints an expected error as one sentence and exits with its exit code (130 after Ctrl-C)."""

    def invoke(self, ctx: Any) -> Any:
        # On a machine without GPU, bitsandbytes always warns that an optional kernel is missing.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if os.environ.get(DEBUG) != "1":
            warnings.simplefilter("ignore", FutureWarning)  # these are for developers of libraries
            safe_errors.install()  # after typer has set its own hook
        try:
            with each_file_hashed_once():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _print_error("interrupted; the same command without --overwrite resumes from the last checkpoint")
            raise typer.Exit(130) from None
        except (LlmForgetError, ValueError, OSError, FloatingPointError, ImportError, MemoryError) as error:
            if os.environ.get(DEBUG) == "1":
                raise
            full = isinstance(error, OSError) and error.errno in FULL
            _print_error(NO_ROOM if full else safe_errors.sentence(error))
            raise typer.Exit(FULL_DISK if full else getattr(error, "exit_code", 2)) from None


def _print_error(sentence: str) -> None:
    rank = os.environ.get("RANK", "0")
    typer.echo(f"llm-forget{'' if rank == '0' else f' (rank {rank})'}: {sentence}", err=True)


app = typer.Typer(
    cls=Entrance, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)  # fmt: skip
recipes = typer.Typer(no_args_is_help=True, help="List, show or copy the shipped recipes.")
app.add_typer(recipes, name="recipes")
for commands in (models, evidence, requests, residue, publishing):
    app.add_typer(commands)
app.add_typer(audit, name="audit")
app.add_typer(versions, name="versions")

Config = Annotated[
    str | None,
    typer.Option(
        "--accelerate_config", help="cpu, cpu_2, single_gpu, ddp, fsdp2, zero2, zero3, or a file.", metavar="NAME|PATH"
    ),
]
AllKeys = Annotated[bool, typer.Option("--all_keys", help="List every key with its default and exit.")]


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"llm-forget {__version__}")
        raise typer.Exit()


@app.callback()
def entrance(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a language model forget, and measure whether it did.

    Try it: `llm-forget recipes list`, then `llm-forget finetune demo/target --dry_run true`.
    Errors are one sentence; `LLM_FORGET_DEBUG=1` shows the traceback.
    """


@app.command(context_settings=PASS_ON, options_metavar="RECIPE [--KEY VALUE]...")
def finetune(
    ctx: typer.Context, accelerate_config: Config = None, num_processes: NumProcesses = None, all_keys: AllKeys = False
) -> None:
    """Train a target or an oracle on the rows of `train`.

    RECIPE is a flat YAML file or the name of a shipped recipe (`demo/target`). `--key value` replaces one of its keys,
    `--key.inner value` one entry of a mapping. Main keys:

    - `model_name_or_path` Hub name, folder, .gguf file, builtin:NAME or a run
    - `train` rows: a .jsonl/.json/.csv/.parquet file, a folder, a Hub name, `{path, name, split}` or a list of those
    - `data_path` folder that replaces the Hub
    - `output_dir` the run directory
    - `use_peft` train an adapter (false), with `lora_r` (16), `lora_alpha` (32)
    - `learning_rate` (1e-4), `num_train_epochs` (5), `per_device_train_batch_size` (8),
      `gradient_accumulation_steps` (1), `seed` (42)
    - `dry_run` check everything without training (false)

    All other keys: `llm-forget finetune --all_keys`.
    """
    _train("finetune", ctx.args, accelerate_config, num_processes, all_keys)


@app.command(context_settings=PASS_ON, options_metavar="RECIPE [--KEY VALUE]...")
def unlearn(
    ctx: typer.Context, accelerate_config: Config = None, num_processes: NumProcesses = None, all_keys: AllKeys = False
) -> None:
    """Train an adapter that makes a model forget the rows of `forget` and keep those of `retain`.

    RECIPE is a flat YAML file or the name of a shipped recipe (`demo/npo`). `--key value` replaces one of its keys,
    `--key.inner value` one entry of a mapping. Main keys:

    - `model_name_or_path` the target: Hub name, folder, .gguf file, builtin:NAME or a run
    - `forget`, `retain`, `holdout` rows: a .jsonl/.json/.csv/.parquet file, a folder, a Hub name,
      `{path, name, split}` or a list of those
    - `data_path` folder that replaces the Hub
    - `output_dir` the run directory
    - `method` auto, or one of `llm-forget methods` (npo), `method_args` such as `{beta: 0.1, retain_weight: 1.0}`
    - `augment` further questions about each forget row, such as `{reverse: true, paraphrase: 2}`
    - `teacher` for method distil: stranger, self, oracle, or `{name: divergence, base: MODEL}`
    - `stop_at` `holdout` keeps the step at which forget rows score most like holdout rows, `end` keeps the last step
    - `objective` terms instead of a method, `gradient` how to combine their gradients: sum, pcgrad, gru, sago or sam
    - `lora_r` (16), `lora_alpha` (32), `load_in_4bit` (false)
    - `learning_rate` (1e-4), `num_train_epochs` (5), `per_device_train_batch_size` (8),
      `gradient_accumulation_steps` (1), `seed` (42)
    - `max_retain_drop` stop when the log-prob of retain rows has fallen by this many nats per token
    - `oracle` a model trained without the forget rows, `suite` the metrics: both for the evaluation
    - `dry_run` check everything without training (false)

    All other keys: `llm-forget unlearn --all_keys`.
    """
    _train("unlearn", ctx.args, accelerate_config, num_processes, all_keys)


@app.command(context_settings=PASS_ON, options_metavar="RECIPE [--KEY VALUE]...")
def calibrate(ctx: typer.Context) -> None:
    """Measure the target on holdout rows. After unlearning, the forget rows should have the same values.

    RECIPE is a recipe of `unlearn` with the key `holdout`. The holdout rows must be similar to the forget rows, but the
    target must not have been trained on them. Nothing is trained or written. With `stop_at: holdout`, `unlearn`
    measures the same values and keeps the step at which the forget rows are nearest to them.
    """
    arguments = with_recipe(ctx.args)
    speak()
    from llm_forget.workflows.calibrate import main as run

    run(arguments)


def _train(command: str, arguments: list[str], config: str | None, processes: int | None, all_keys: bool) -> None:
    if all_keys:
        _print_keys(command)
        return
    arguments = with_recipe(arguments)
    from llm_forget.core.launch import follow_launcher, relaunch

    if config is not None:
        relaunch([command, *arguments], config, processes)
    if processes is not None:
        raise ConfigError("--num_processes needs --accelerate_config: cpu_2 on CPUs; ddp, fsdp2, zero2, zero3 on GPUs")
    follow_launcher()
    speak()
    if command == "unlearn":
        from llm_forget.workflows.unlearn import main as run
    else:
        from llm_forget.workflows.finetune import main as run
    run(arguments)


def with_recipe(arguments: list[str]) -> list[str]:
    """Return the arguments with the recipe (first word, or value of ``--config``) replaced by the recipe's path.

    Raise ConfigError if there are no arguments, and MissingFileError if the recipe does not exist.
    """
    if not arguments:
        raise ConfigError("no recipe is given; name a file or a shipped one, see `llm-forget recipes list`")
    arguments = list(arguments)
    place = 0
    if "--config" in arguments[:-1]:
        place = arguments.index("--config") + 1
    elif arguments[0].startswith("-"):
        return arguments
    arguments[place] = str(resources.resolve("recipes", arguments[place]))
    return arguments


def _print_keys(command: str) -> None:
    from trl import ModelConfig

    from llm_forget.cli import catalogue
    from llm_forget.core import config

    train_class = config.UnlearnConfig if command == "unlearn" else config.TrainConfig
    catalogue.show(catalogue.keys_table(config.DataConfig, train_class, ModelConfig))


@app.command(context_settings=PASS_ON, options_metavar="[RECIPE] [OPTIONS] [--KEY VALUE]...")
def bench(
    ctx: typer.Context,
    methods: Annotated[str | None, typer.Option(help="Several with commas.", metavar="NAME,...")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each variant.")] = 5,
    output: Annotated[str, typer.Option(help="JSON file for all numbers.")] = "bench.json",
    scaling: Annotated[bool, typer.Option("--scaling", help="Measure growth with rows, length, rank, sizes.")] = False,
    naive: Annotated[bool, typer.Option("--naive/--no_naive", help="Also measure naive forms (a second copy).")] = True,
) -> None:
    """Measure the time and memory of a training step of each method, and of plain LoRA fine-tuning.

    The naive forms of npo and npo_kl, which need a second copy of the model, are measured, too. RECIPE is a recipe of
    `unlearn`. The default, the demo recipe with an untrained model, takes seconds. All variants make one step in each
    round, in the same process. Memory is measured after the last round. Run nothing else on the machine.
    """
    arguments = ctx.args
    if not arguments or (arguments[0].startswith("--") and "--config" not in arguments):
        arguments = ["demo/npo", "--model_name_or_path", "builtin:demo-llama", *arguments]
    arguments = with_recipe(arguments)
    speak()
    from llm_forget.bench.bench import METHODS, bench as measure
    from llm_forget.bench.table import show
    from llm_forget.core.text import terminal

    names = [name.strip() for name in methods.split(",")] if methods is not None else METHODS
    show(measure(arguments, methods=names, rounds=rounds, output=output, scaling=scaling, naive=naive), terminal())
    typer.echo(f"wrote {output}")


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Explain this method or term.")] = None) -> None:
    """List the unlearning methods, or explain one."""
    from llm_forget.cli import catalogue

    if name is not None:
        catalogue.show(catalogue.explanation(name))
    else:
        catalogue.show(catalogue.methods_table(), catalogue.terms_table(), "Explain one: llm-forget methods npo")


@recipes.command("list")
def list_recipes() -> None:
    """List the shipped recipes."""
    from llm_forget.cli import catalogue

    catalogue.show(catalogue.recipes_table())


@recipes.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Such as demo/npo.")]) -> None:
    """Print a shipped recipe."""
    typer.echo(resources.locate("recipes", name).read_text(encoding="utf-8"), nl=False)


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Such as demo/npo.")],
    destination: Annotated[str | None, typer.Argument(help="File or folder; default: its own name, here.")] = None,
) -> None:
    """Copy a shipped recipe to a file that you can edit."""
    typer.echo(f"wrote {resources.copy('recipes', name, destination)}")


def main() -> None:
    """Run the command line. The ``llm-forget`` script and ``python -m llm_forget`` call this."""
    sys.exit(app(prog_name="llm-forget"))


if __name__ == "__main__":
    main()
