"""Find, list, read and copy the recipes, evaluation suites and launch configurations that come with the package."""

from pathlib import Path

from llm_forget.core.errors import ConfigError, ExistingFileError, MissingFileError
from llm_forget.core.registry import did_you_mean

# Folder of a kind of shipped files -> name of this kind in error messages.
KINDS = {
    "recipes": "recipe",
    "recipes/tables": "table of methods",
    "eval": "suite",
    "eval/policies": "policy",
    "eval/lm_eval": "lm-eval task",
    "accelerate_configs": "accelerate config",
}


def folder(kind: str) -> Path:
    """Return the folder with the shipped files of a kind (see `KINDS`). Raise MissingFileError if it is missing."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_shipped" / kind, package.parent / kind):
        if candidate.is_dir():
            return candidate
    raise MissingFileError(f"this installation of llm-forget carries no {kind}; install it again from a wheel")


def names(kind: str) -> list[str]:
    """Return the sorted names of the shipped files of a kind: paths without ``.yaml``, such as ``tofu/npo``."""
    root = folder(kind)
    inner = [root / other.removeprefix(f"{kind}/") for other in KINDS if other.startswith(f"{kind}/")]
    files = [path for path in root.rglob("*.yaml") if not any(path.is_relative_to(other) for other in inner)]
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in files)


def locate(kind: str, name: str) -> Path:
    """Return the path of the shipped file with a name such as ``tofu/npo``. Raise ConfigError if no file has it."""
    short = name.removesuffix(".yaml").removeprefix(f"{kind}/")
    if short not in names(kind):
        raise ConfigError(f"no shipped {KINDS[kind]} is called '{name}'; {did_you_mean(short, names(kind))}")
    return folder(kind) / f"{short}.yaml"


def resolve(kind: str, name: str) -> Path:
    """Return ``name`` as a path if it is a file, else the shipped file. Raise MissingFileError if neither exists."""
    if Path(name).is_file():
        return Path(name)
    try:
        return locate(kind, name)
    except ValueError as error:
        raise MissingFileError(f"there is no file '{name}', and {error}") from None


def header(path: Path) -> list[str]:
    """Return the comment lines at the start of a file, without ``#``."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def copy(kind: str, name: str, destination: str | Path | None = None) -> Path:
    """Copy a shipped file to a new file, or into a folder (default: the working directory), and return the new path.

    Raise ExistingFileError if the new file exists already.
    """
    source = locate(kind, name)
    target = Path(destination) if destination is not None else Path(source.name)
    if target.is_dir():
        target = target / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ExistingFileError(f"'{target}' exists already; name another file or remove it first") from None
    return target
