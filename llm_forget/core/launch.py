"""Start several processes through accelerate, and check that as many processes run as requested.

Without the check, ``MULTI_CPU`` silently starts one process, FSDP on a CPU silently becomes DDP, and torchrun without
``ACCELERATE_USE_CPU`` trains a separate model in each process.
"""

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
# What to do instead of combining sharding with use_cpu. Without a GPU, DeepSpeed needs the gloo backend.
ON_CPUS = {
    "FSDP": "it needs GPUs, on CPUs take --accelerate_config cpu_2",
    "DEEPSPEED": "on CPUs leave use_cpu out and give --ddp_backend gloo, or take --accelerate_config cpu_2",
}


@dataclass(frozen=True)
class RequestedLaunch:
    """A requested number of processes. None allows any number. Error messages name ``source``, which requested it."""

    processes: int | None
    source: str


def weights_are_sharded() -> bool:
    """Return whether the environment requests that FSDP or DeepSpeed split the weights over the processes."""
    return bool(_shardings(os.environ))


def relaunch(arguments: Sequence[str], config: str, processes: int | None) -> NoReturn:
    """Replace this process by ``accelerate launch --config_file CONFIG -m llm_forget ARGUMENTS``.

    ``config`` is the path of an accelerate configuration, or the name of a shipped one such as ``ddp``. Raise
    ConfigError if this configuration cannot start this number of processes.
    """
    path = resolve("accelerate_configs", config)
    command = launch_command(arguments, path, processes)
    world_size = command[command.index("--num_processes") + 1]
    os.environ[WORLD_SIZE] = world_size
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def launch_command(arguments: Sequence[str], path: Path, processes: int | None) -> list[str]:
    """Return the command line that `relaunch` runs, as a list of words. Raise ConfigError as described there."""
    settings = _settings(path)
    kind = str(settings.get("distributed_type", "NO"))
    default = 1 if kind in ("NO", "False") else None
    count = processes if processes is not None else settings.get("num_processes", default)
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"accelerate config '{path}' has no usable num_processes; give --num_processes N")
    if count > 1 and kind in ("NO", "False", "MULTI_CPU"):
        hint = "take cpu_2" if settings.get("use_cpu") else "take ddp"
        raise ConfigError(
            f"accelerate config '{path}' (distributed_type {kind}) starts one process, but {count} are "
            f"requested; {hint}"
        )
    if settings.get("use_cpu") and kind in ON_CPUS:
        raise ConfigError(f"'{path}' requests {kind} on a CPU, where accelerate runs DDP; {ON_CPUS[kind]}")
    flags = ["--config_file", str(path), "--num_processes", str(count)]
    return [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "llm_forget", *arguments]


def check_launch(state: Any) -> None:
    """Raise ConfigError if the number of processes, or the kind of sharding, differs from the request.

    ``state`` is accelerate's ``AcceleratorState`` or ``PartialState``, after its process group exists.
    """
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    shardings = _shardings(os.environ)
    for request in requested_launches(os.environ, _ancestors()):
        if request.processes is not None and request.processes != state.num_processes:
            hint = "on CPUs take --accelerate_config cpu_2 (with --num_processes N), on GPUs ddp, fsdp2 or zero2"
            if "DEEPSPEED" in shardings:
                hint = f"DeepSpeed finds GPUs by itself; {ON_CPUS['DEEPSPEED']}"
            raise ConfigError(
                f"{request.source} requested {request.processes} processes, but this run has "
                f"{state.num_processes}; {hint}"
            )
    for sharding in shardings:
        if kind in ("NO", "MULTI_CPU"):
            raise ConfigError(f"the launch requested {sharding}, but accelerate runs {kind} here; {ON_CPUS[sharding]}")


def refuse_sharded_models(environment: Mapping[str, str]) -> None:
    """Raise ConfigError if ``environment`` requests FSDP or DeepSpeed: each process needs a whole model to evaluate it.

    Under FSDP, transformers loads the weights only in the first process. The others would evaluate an empty model.
    """
    if shardings := _shardings(environment):
        raise ConfigError(
            f"evaluation needs a whole model in every process, but the launch requests {shardings[0]}; use "
            "--accelerate_config ddp on GPUs, cpu_2 on CPUs, or one process"
        )


def _shardings(environment: Mapping[str, str]) -> list[str]:
    """Return the kinds of sharding that are requested: ``FSDP``, ``DEEPSPEED``, both, or usually an empty list."""
    return [name for variable, name in SHARDED.items() if environment.get(variable, "false").lower() == "true"]


def refuse_processes(command: str, state: Any) -> None:
    """Raise ConfigError if several processes run a command whose files only one process may write."""
    if state.num_processes > 1:
        raise ConfigError(f"{command} runs in one process, not {state.num_processes}; start it without accelerate")


def follow_launcher() -> None:
    """Set ``ACCELERATE_USE_CPU`` if the accelerate configuration has ``use_cpu``. Call this before any use of a device.

    Accelerate sets the variable only if it starts a single process. Without the variable, several processes would train
    separate models.
    """
    options = _launch_options(_ancestors())
    if options is None or USE_CPU in os.environ:
        return
    parsed, settings = _parsed(options)
    if parsed.cpu or settings.get("use_cpu") is True:
        os.environ[USE_CPU] = "true"


def requested_launches(environment: Mapping[str, str], ancestors: Sequence[Sequence[str]]) -> list[RequestedLaunch]:
    """Return all requests for a number of processes: in the environment, then in an ``accelerate launch`` command."""
    launches = []
    for variable, source in ((WORLD_SIZE, "--num_processes"), ("WORLD_SIZE", "the launcher (WORLD_SIZE)")):
        text = environment.get(variable, "")
        if text.isdigit():
            launches.append(RequestedLaunch(int(text), source))
    options = _launch_options(ancestors)
    if options is not None:
        launches.append(RequestedLaunch(_processes(options), "accelerate launch"))
    return launches


def _launch_options(ancestors: Sequence[Sequence[str]]) -> list[str] | None:
    """Return the arguments of the nearest ancestor process that is ``accelerate launch``. Without one, return None."""
    return next((words for command in ancestors if (words := _accelerate_options(command)) is not None), None)


def _accelerate_options(command: Sequence[str]) -> list[str] | None:
    """Return the arguments of an ``accelerate launch`` command line; None for any other command."""
    for place, word in enumerate(command[:4]):
        name = Path(word).name
        if name in LAUNCHERS[:2]:
            return list(command[place + 1 :])
        if name == LAUNCHERS[2] and list(command[place + 1 : place + 2]) == ["launch"]:
            return list(command[place + 2 :])
    return None


def _parsed(options: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the parsed options of ``accelerate launch``, and the content of the configuration file that they name."""
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_known_args(options)[0]
    path = Path(parsed.config_file or "")
    return parsed, _settings(path) if path.is_file() else {}


def _processes(options: list[str]) -> int | None:
    parsed, settings = _parsed(options)
    if parsed.num_processes is not None:
        return int(parsed.num_processes)
    count = settings.get("num_processes")
    return count if isinstance(count, int) and count > 0 else None


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"accelerate config '{path}' is not valid YAML") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"accelerate config '{path}' is not a mapping of keys to values")
    return settings


def _ancestors() -> list[list[str]]:
    """Return the command lines of the three nearest ancestor processes; skip processes that ended or are unreadable."""
    import psutil

    lines: list[list[str]] = []
    for process in psutil.Process().parents()[:3]:
        try:
            lines.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return lines
