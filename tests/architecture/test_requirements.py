"""What a fresh machine installs is written down completely, and is what these tests ran with."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.architecture.source import ROOT

FOLDER = ROOT / "requirements"
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; (.+))?")
"""Name, version, and where it is wanted: `python_version < "3.14"`."""


def pins(name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if line == "-r base.txt":
            found |= pins("base.txt")
        elif line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match, f"{name}: '{line}' is no exact pin"
            assert match[1] not in found, f"{name}: {match[1]} is pinned twice"
            if match[3] is None or Marker(match[3]).evaluate():
                found[match[1]] = match[2]
    return found


def project() -> dict[str, list[str]]:
    """Return what pyproject.toml asks for: by extra, "" for always."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = data["optional-dependencies"]
    return extras | {"": data["dependencies"]}


@pytest.mark.parametrize("name", ["base.txt", "dev.txt"])
def test_every_pin_is_what_is_installed_here(name: str) -> None:
    wrong = {key: version for key, version in pins(name).items() if metadata.version(key) != version}
    assert wrong == {}, "run `make setup`"


@pytest.mark.parametrize("name", ["base.txt", "dev.txt"])
def test_the_pins_are_complete(name: str) -> None:
    pinned = pins(name)
    needed = {
        requirement.name.lower().replace("_", "-").replace(".", "-")
        for key in pinned
        for requirement in map(Requirement, metadata.requires(key) or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    assert needed - set(pinned) == set()


def test_the_pins_satisfy_the_project() -> None:
    pinned = pins("base.txt")
    for text in project()[""] + project()["onnx"]:
        requirement = Requirement(text)
        assert pinned[requirement.name.lower()] in requirement.specifier, text


def test_what_builds_the_wheel_is_pinned_alike() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert data["build-system"]["requires"] == [f"setuptools=={pins('base.txt')['setuptools']}"]


def test_no_address_stands_in_the_requirements() -> None:
    for path in FOLDER.iterdir():
        assert not re.search(r"://|--(index|find|trusted|hash)", path.read_text()), path.name
