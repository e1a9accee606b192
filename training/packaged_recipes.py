"""Recipes that come with viewrank, found wherever one works: `--config recipes/own_cpu.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
_FLAG = "--config"


def located(words: Sequence[str]) -> list[str]:
    """Return a command line whose recipes are files, if they come with viewrank.

    What is a file here is meant; else recipes/NAME.yaml, NAME.yaml and NAME name a recipe that
    comes with viewrank, in its checkout or its wheel.

    Args:
        words: of the command line.
    """
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, name = word.partition("=")
        if before == _FLAG and not word.startswith("-"):
            found.append(_locate(word))
        elif flag == _FLAG and equals:
            found.append(f"{_FLAG}={_locate(name)}")
        else:
            found.append(word)
    return found


def _locate(name: str) -> str:
    if not name or Path(name).is_file():  # a folder may be a run that is called as its recipe
        return name
    inside = name.removeprefix("recipes/").removesuffix(".yaml")
    path = RECIPES / f"{inside}.yaml"
    return str(path) if path.is_file() and RECIPES in path.resolve().parents else name
