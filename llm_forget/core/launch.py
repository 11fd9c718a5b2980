"""Many processes: start them through accelerate, and refuse a run that obtained others than were asked for.

Accelerate starts one process for ``--cpu --num_processes 2`` and for ``MULTI_CPU``, torchrun without
``ACCELERATE_USE_CPU`` trains as many separate models as it has processes, and FSDP on a CPU becomes DDP: all without a
word. The effective batch, the normalisation and the saved adapter would be others than the recipe says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llm_forget.core.errors import ConfigError
from llm_forget.core.resources import resolve

WORLD_SIZE = "LLM_FORGET_WORLD_SIZE"
USE_CPU = "ACCELERATE_USE_CPU"
LAUNCHERS = ("accelerate.commands.launch", "accelerate-launch", "accelerate")
SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED"}
# What to do instead of asking for sharding and use_cpu at once. DeepSpeed needs to be told of gloo where no GPU is.
ON_CPUS = {
    "FSDP": "it needs GPUs, on CPUs take --accelerate_config cpu_2",
    "DEEPSPEED": "on CPUs leave use_cpu out and give --ddp_backend gloo, or take --accelerate_config cpu_2",
}


@dataclass(frozen=True)
class Asked:
    """What a launch asked for. ``processes`` is None where it left that open; ``source`` ends an error sentence."""

    processes: int | None
    source: str


def relaunch(arguments: Sequence[str], config: str, processes: int | None) -> NoReturn:
    """Become ``accelerate launch --config_file CONFIG -m llm_forget ARGUMENTS``; does not return.

    Args:
        arguments: command line of llm-forget without the launch options.
        config: path, or name of a shipped configuration such as ``ddp``.
        processes: in place of the configuration's ``num_processes``.

    Raises:
        ValueError: the configuration cannot start this many processes.
    """
    path = resolve("accelerate_configs", config)
    command = launch_command(arguments, path, processes)
    world_size = command[command.index("--num_processes") + 1]
    os.environ[WORLD_SIZE] = world_size
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def launch_command(arguments: Sequence[str], path: Path, processes: int | None) -> list[str]:
    """The command line that `relaunch` becomes.

    Raises:
        ValueError: the file is not an accelerate configuration, or starts one process where more are asked for.
    """
    settings = _settings(path)
    kind = str(settings.get("distributed_type", "NO"))
    count = (
        processes if processes is not None else settings.get("num_processes", 1 if kind in ("NO", "False") else None)
    )
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"accelerate config '{path}' has no usable num_processes; give --num_processes N")
    if count > 1 and kind in ("NO", "False", "MULTI_CPU"):
        hint = "take cpu_2" if settings.get("use_cpu") else "take ddp"
        raise ConfigError(
            f"accelerate config '{path}' (distributed_type {kind}) starts one process, {count} are asked for; {hint}"
        )
    if settings.get("use_cpu") and kind in ON_CPUS:
        raise ConfigError(
            f"accelerate config '{path}' asks for {kind} on a CPU, which accelerate turns into DDP; {ON_CPUS[kind]}"
        )
    flags = ["--config_file", str(path), "--num_processes", str(count)]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "llm_forget", *arguments]


def check_launch(state: Any) -> None:
    """Refuse a launch that obtained another number of processes, or another kind of sharding, than it asked for.

    Args:
        state: accelerate's ``AcceleratorState`` or ``PartialState``, after its process group exists.

    Raises:
        ValueError: says what was asked, what was obtained and what to do.
    """
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    wanted = [name for variable, name in SHARDED.items() if os.environ.get(variable, "false").lower() == "true"]
    for asked in asked_launches(os.environ, _ancestors()):
        if asked.processes is not None and asked.processes != state.num_processes:
            hint = "on CPUs take --accelerate_config cpu_2 (with --num_processes N), on GPUs ddp, fsdp2 or zero2"
            if "DEEPSPEED" in wanted:
                hint = f"DeepSpeed finds GPUs by itself; {ON_CPUS['DEEPSPEED']}"
            raise ConfigError(
                f"{asked.source} asked for {asked.processes} processes, but this run has {state.num_processes}; {hint}"
            )
    for sharding in wanted:
        if kind in ("NO", "MULTI_CPU"):
            raise ConfigError(f"the launch asked for {sharding}, but accelerate runs {kind} here; {ON_CPUS[sharding]}")


def refuse_sharded_models(environment: Mapping[str, str]) -> None:
    """Refuse FSDP and DeepSpeed where every process needs a whole model.

    Under FSDP transformers reads weights in the first process only, and the others would measure empty ones.

    Raises:
        ValueError: says what the launch asks for and what to take instead.
    """
    for variable, sharding in SHARDED.items():
        if environment.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"evaluation puts a whole model on every process, but the launch asks for {sharding}; take "
                "--accelerate_config ddp on GPUs, cpu_2 on CPUs, or one process"
            )


def refuse_processes(command: str, state: Any) -> None:
    """Refuse several processes where each would write the same files.

    Raises:
        ValueError: names the command and how to start it.
    """
    if state.num_processes > 1:
        raise ConfigError(
            f"{command} runs in one process, not {state.num_processes}; start it without accelerate launch"
        )


def follow_launcher() -> None:
    """Stay on the CPU where the accelerate configuration says so; must run before anything asks for a device.

    For one process accelerate passes ``use_cpu`` on as ``ACCELERATE_USE_CPU``; for several it forgets to, and each
    would train alone.
    """
    options = _launch_options(_ancestors())
    if options is None or USE_CPU in os.environ:
        return
    known = _parsed(options)
    if known.cpu or (_has_config(known) and _settings(Path(known.config_file)).get("use_cpu") is True):
        os.environ[USE_CPU] = "true"


def asked_launches(environment: Mapping[str, str], ancestors: Sequence[Sequence[str]]) -> list[Asked]:
    """Everything that says how many processes there should be, most direct first.

    Args:
        environment: variables of this process.
        ancestors: command lines of the parent process, its parent, ...
    """
    found = []
    for variable, source in ((WORLD_SIZE, "--num_processes"), ("WORLD_SIZE", "the launcher (WORLD_SIZE)")):
        text = environment.get(variable, "")
        if text.isdigit():
            found.append(Asked(int(text), source))
    options = _launch_options(ancestors)
    if options is not None:
        found.append(Asked(_processes(options), "accelerate launch"))
    return found


def _launch_options(ancestors: Sequence[Sequence[str]]) -> list[str] | None:
    """The words after ``accelerate launch`` of the nearest ancestor that is one."""
    return next((found for command in ancestors if (found := _accelerate_options(command)) is not None), None)


def _accelerate_options(command: Sequence[str]) -> list[str] | None:
    """The words after ``accelerate launch`` when a command line is one, otherwise None."""
    for place, word in enumerate(command[:4]):
        name = Path(word).name
        if name in LAUNCHERS[:2]:
            return list(command[place + 1 :])
        if name == LAUNCHERS[2] and list(command[place + 1 : place + 2]) == ["launch"]:
            return list(command[place + 2 :])
    return None


def _parsed(options: list[str]) -> Any:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser().parse_known_args(options)[0]


def _has_config(known: Any) -> bool:
    return known.config_file is not None and Path(known.config_file).is_file()


def _processes(options: list[str]) -> int | None:
    known = _parsed(options)
    if known.num_processes is not None:
        return int(known.num_processes)
    if not _has_config(known):
        return None
    count = _settings(Path(known.config_file)).get("num_processes")
    return count if isinstance(count, int) and count > 0 else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"accelerate config '{path}' is not valid YAML") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"accelerate config '{path}' is not a mapping of keys to values")
    return settings


def _ancestors(levels: int = 3) -> list[list[str]]:
    """Command lines of the nearest ancestors; one that has ended or may not be read is left out."""
    import psutil

    lines: list[list[str]] = []
    for process in psutil.Process().parents()[:levels]:
        try:
            lines.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return lines
