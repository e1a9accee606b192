"""The versions that make test installs are those that pyproject.toml promises."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if "==" in line]
    return {package: Version(pin) for package, _, pin in (line.partition("==") for line in lines)}


def requirements() -> Iterator[Requirement]:
    """What `make` installs: the dependencies, and the extras cuda13 and dev with those in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, wanted = project["optional-dependencies"], ["cuda13", "dev"]
    yield from map(Requirement, project["dependencies"])
    for extra in wanted:
        for requirement in map(Requirement, extras[extra]):
            if requirement.name == project["name"]:
                wanted.extend(sorted(requirement.extras))
            else:
                yield requirement


@pytest.mark.parametrize("requirement", requirements(), ids=lambda each: each.name)
def test_the_lowest_version_promised_is_the_lowest_tested(requirement: Requirement) -> None:
    (bound,) = (Version(each.version) for each in requirement.specifier)
    lowest = pins("constraints-lowest.txt")[requirement.name]
    assert lowest.release[: len(bound.release)] == bound.release, (
        f"{requirement} promises {bound}, but make test PYTHON=python3.12 installs {lowest}. Raise "
        "the bound, or write constraints-lowest.txt again by the command in its head."
    )
    assert pins("constraints.txt")[requirement.name] in requirement.specifier
