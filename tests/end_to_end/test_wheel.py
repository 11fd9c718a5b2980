"""A built wheel carries recipes, suites and launch configurations, and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.repository import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as pip would."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("llm_forget-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_forget", *arguments],
        cwd=installed.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["recipes", "eval", "accelerate_configs"])
def test_the_wheel_carries_every_shipped_file(installed: Path, kind: str) -> None:
    def yaml_files(root: Path) -> set[str]:
        return {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")}

    assert yaml_files(ROOT / kind)
    assert yaml_files(installed / "llm_forget" / "_shipped" / kind) == yaml_files(ROOT / kind)


def test_the_wheel_carries_licence_and_type_marker_but_no_tests(installed: Path) -> None:
    assert (installed / "llm_forget" / "py.typed").is_file()
    assert list(installed.glob("llm_forget-*.dist-info/licenses/LICENSE"))
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"llm_forget"}


def test_the_installed_package_lists_and_copies_recipes_outside_the_checkout(installed: Path) -> None:
    where = run(installed, "recipes", "copy", "tofu/npo", "copied.yaml")
    assert "wrote copied.yaml" in where
    assert (installed.parent / "copied.yaml").read_text() == (ROOT / "recipes" / "tofu" / "npo.yaml").read_text()
    assert "demo/npo" in run(installed, "recipes", "list")
    code = "from llm_forget.core import resources; print(resources.locate('accelerate_configs', 'ddp'))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    shown = subprocess.run([sys.executable, "-c", code], cwd=installed, env=environment, capture_output=True, text=True)
    assert Path(shown.stdout.strip()).is_relative_to(installed)
