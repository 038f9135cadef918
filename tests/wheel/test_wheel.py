"""The wheel, built and installed as users install it: the command works, our packages are there, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"serve", "activator", "autoscaler", "runtime", "cache", "billing", "simulator"}
NOT_OURS_TO_GIVE = ("tests", "examples", "manifests", "benchmarks", "docs", "scripts")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the source and no stale build folder gets in."""
    source, out = tmp_path_factory.mktemp("made") / "source", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", ".", *options, "-w", out, cwd=source)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment with the wheel, which borrows only the libraries it needs from ours."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=home)
    # A path in a .pth file is searched, but the .pth files in it are not read: our own editable install stays out.
    site = next(home.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def importable(python: Path, name: str) -> Path | None:
    """Return the file that `import name` would find, or None."""
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.origin if s and s.origin else '')"
    found = run(python, "-I", "-c", code, cwd=python.parent).strip()
    return Path(found) if found else None


def test_the_wheel_holds_every_file_of_our_packages_and_no_other(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/", 1)[0] for name in held} == PACKAGES
    written = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in held if name.endswith(".py")} == written
    assert {"serve/py.typed", "billing/default_prices.yaml"} <= held


def test_the_installed_command_says_what_it_can_do(python: Path) -> None:
    said = run(python.parent / "serve", "--help", cwd=python.parent)
    assert "deploy" in said


def test_our_packages_come_from_the_wheel(python: Path) -> None:
    for package in PACKAGES:
        origin = importable(python, package)
        assert origin is not None
        assert origin.is_relative_to(python.parents[1]), f"{package} comes from {origin}"


@pytest.mark.parametrize("name", NOT_OURS_TO_GIVE)
def test_other_folders_of_the_repository_are_not_importable(python: Path, name: str) -> None:
    assert importable(python, name) is None


def test_every_module_of_the_wheel_can_be_imported(wheel: Path, python: Path) -> None:
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".py") and "__main__" not in name
    ]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    run(python, "-I", "-c", script, *names, cwd=python.parent)
