"""The commands in a recipe's head that make what it reads.

They are lines of the comment that begin with three spaces and python, accelerate or, in a wheel,
viewrank; the last one trains with the recipe itself.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

from shards.layout import SUBSETS

_TRAINS = re.compile(r"\b(train\.py|viewrank train) ")
_COMMANDS = ("#   python ", "#   accelerate ", "#   viewrank ")


def of(recipe: Path) -> list[str]:
    """Return the commands that come before the recipe's own training, as they stand there."""
    head = recipe.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    commands = [line.removeprefix("#").strip() for line in head if line.startswith(_COMMANDS)]
    own = [n for n, c in enumerate(commands) if _TRAINS.search(c) and recipe.name in c]
    return commands[: own[-1]] if own else commands


def made(command: str) -> list[str]:
    """Return the shard sets that a command makes: folders."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation mark: a sentence
        return []
    values = dict(pairwise(words))
    if found := {"tools.select", "select"} & set(words):
        place, name = words[words.index(found.pop()) + 1 :][:2]
        names = [name, *([values["--rest"]] if "--rest" in values else [])]
        return [f"{place}/{SUBSETS}/{each}" for each in names]
    return [values["--out"]] if "--out" in values else []


def making(recipe: Path, shards: str) -> list[str]:
    """Return the commands that are still to be run to make a shard set; none if none makes it.

    Args:
        recipe: the file.
        shards: the set, as the recipe names it.
    """
    commands = of(recipe)
    outputs = [made(command) for command in commands]
    if shards not in (each for several in outputs for each in several):
        return []
    here = [bool(several) and all(Path(each).exists() for each in several) for several in outputs]
    # Training that a later command needs has no output of its own here: it stands between them.
    first = here.index(False)
    return [c for c, done in zip(commands[first:], here[first:], strict=True) if not done]
