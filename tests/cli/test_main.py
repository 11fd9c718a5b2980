"""The command line as a user meets it: exit codes, both streams, and what is imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked import command

COMMANDS = ["finetune", "unlearn", "evaluate", "merge", "methods", "recipes", "recipes list", "recipes copy"]


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom llm_forget.cli.main import app\n"
        f"for words in {['', *COMMANDS]!r}:\n"
        "    try:\n        app([*words.split(), '--help'])\n"
        "    except SystemExit:\n        pass\n"
        "    heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "    print(f'help of {words!r} has imported {sorted(heavy)}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ends = [line for line in done.stdout.splitlines() if line.startswith("help of ")]
    assert ends == [f"help of {words!r} has imported []" for words in ("", *COMMANDS)]


@pytest.mark.slow
def test_unlearn_help_names_the_main_keys_and_where_the_others_are() -> None:
    shown = command("unlearn", "--help").stdout
    for word in ("forget", "retain", "method_args", "learning_rate", "--all_keys", "--accelerate_config", "dry_run"):
        assert word in shown


@pytest.mark.slow
def test_every_default_in_the_help_is_the_default_in_the_configuration() -> None:
    from llm_forget.core.config import TrainConfig, UnlearnConfig

    shown = command("unlearn", "--help").stdout
    for key in ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"):
        default = float(TrainConfig.__dataclass_fields__[key].default)
        assert float(shown.split(f"{key} (")[1].split(")")[0]) == default
    assert shown.split("seed (")[1].split(")")[0] == str(UnlearnConfig.__dataclass_fields__["seed"].default)


def test_version_is_the_package_version() -> None:
    import llm_forget

    assert command("--version").stdout.strip() == f"llm-forget {llm_forget.__version__}"


@pytest.mark.slow
@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["unlearn"], "no recipe is given"),
        (["unlearn", "demo/npp"], "did you mean 'demo/npo'?"),
        (["unlearn", "missing.yaml"], "there is no file 'missing.yaml'"),
        (["unlearn", "demo/npo", "--metod", "npo"], "did you mean 'method'?"),
        (["unlearn", "demo/npo", "--num_processes", "2"], "--num_processes needs --accelerate_config"),
        (["unlearn", "demo/npo", "--accelerate_config", "ddpp"], "did you mean 'ddp'?"),
        (["unlearn", "demo/npo", "--accelerate_config", "cpu", "--num_processes", "2"], "take cpu_2"),
        (["methods", "npoo"], "did you mean 'npo'?"),
        (["recipes", "show", "demo/np"], "did you mean 'demo/npo'?"),
        (["evaluate", "run", "--splits", "{a: b"], "the value of --splits is not valid YAML"),
        (["evaluate", "run", "--splits", "abc"], "'splits' must be a mapping"),
        (["evaluate", "run", "--quiet", "true"], "evaluate has no key 'quiet'"),
        (["attack", "run", "--kind", "relearn", "--epochs", "3"], "attack has no key 'epochs'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("llm-forget: ")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0


@pytest.mark.slow
def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, {resource.RLIM_INFINITY}))"
    code = f"{limit}; from llm_forget.cli.main import main; main()"
    command = [sys.executable, "-c", code, "recipes", "copy", "demo/npo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("llm-forget: no space is left")


@pytest.mark.slow
def test_the_traceback_is_there_when_asked_for(tmp_path: Path) -> None:
    done = command("unlearn", "missing.yaml", cwd=tmp_path, environment={"LLM_FORGET_DEBUG": "1"})
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_arguments_reach_the_parser_untouched_and_in_order() -> None:
    import typer

    from llm_forget.cli import main as cli

    seen: list[str] = []
    app = typer.Typer()

    @app.command(context_settings=cli.PASS_ON)
    def command(ctx: typer.Context, num_processes: cli.NumProcesses = None) -> None:
        seen.extend(ctx.args)

    given = [
        "r.yaml",
        "--method_args.beta",
        "-1.0",
        "--lr=1e-3",
        "--dry_run",
        "--forget",
        "{path: a, name: b}",
        "-x",
        "-",
    ]
    app([*given[:3], "--num_processes", "2", *given[3:]], standalone_mode=False)
    assert seen == given


def test_keys_after_evaluate_are_read_as_yaml() -> None:
    from llm_forget.cli.evaluate import keys_and_values

    given = ["--data_path", "tofu", "--use_cpu", "--splits={holdout: h.jsonl}", "--max-length", "64"]
    assert keys_and_values(given) == {
        "data_path": "tofu",
        "use_cpu": True,
        "splits": {"holdout": "h.jsonl"},
        "max_length": 64,
    }
    with pytest.raises(ValueError, match="'tofu' belongs to no option"):
        keys_and_values(["tofu"])


def test_a_file_of_the_user_wins_over_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_forget.cli.main import with_recipe

    monkeypatch.chdir(tmp_path)
    shipped_path = with_recipe(["demo/npo", "--seed", "1"])
    assert shipped_path[0].endswith("recipes/demo/npo.yaml")
    Path("demo").mkdir()
    Path("demo/npo").write_text("method: npo\n")
    assert with_recipe(["demo/npo", "--seed", "1"]) == ["demo/npo", "--seed", "1"]
    assert with_recipe(["--seed", "1", "--config", "demo/npo"]) == ["--seed", "1", "--config", "demo/npo"]
    assert with_recipe(["--model_name_or_path", "x"]) == ["--model_name_or_path", "x"]


@pytest.mark.slow
def test_recipes_are_listed_shown_and_copied_but_never_over_a_file(tmp_path: Path) -> None:
    assert "demo/npo" in command("recipes", "list").stdout
    shown = command("recipes", "show", "demo/npo").stdout
    assert command("recipes", "copy", "demo/npo", "mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine.yaml").read_text() == shown
    again = command("recipes", "copy", "demo/npo", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_methods_lists_all_and_explains_each() -> None:
    from rich.console import Console

    from llm_forget.cli import catalogue
    from llm_forget.objectives import OBJECTIVES
    from llm_forget.objectives.methods import METHODS, build_objective

    listed = command("methods").stdout
    for name in [*METHODS, *OBJECTIVES.names()]:
        assert name in listed
        console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(catalogue.explanation(name))
        text = console.export_text()
        assert "In a recipe" in text
    for name in METHODS:
        build_objective(name, catalogue.example(METHODS[name])["method_args"], None)


@pytest.mark.slow
def test_interruption_is_exit_code_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom llm_forget.cli import main as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@cli.app.command()\ndef wait() -> None:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    import time\n    time.sleep(9)\n"
        "sys.argv = ['llm-forget', 'wait']\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
