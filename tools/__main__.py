"""List the commands, and start one: `viewrank NAME …` is `python -m tools.NAME …`.

    viewrank --help
    viewrank shard folder --root my/images --out data/mine
    viewrank train --config recipes/sample_s2r2.yaml
    viewrank train my/images                  # of a folder, all in one: viewrank train_folder

Only the command's own module is imported. For several processes a launcher starts training:
`accelerate launch train.py …`, or the same with `-m viewrank train …`.
"""

from __future__ import annotations

import ast
import importlib
import sys
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from training.command import run_command
from training.command_line import run_function

TOOLS = Path(__file__).parent
PROGRAM = "viewrank"


def commands() -> dict[str, Path]:
    """Return {name: file} of all commands, train first."""
    found = {path.stem: path for path in TOOLS.glob("[!_]*.py")}
    found |= {path.parent.name: path for path in TOOLS.glob("*/__main__.py")}
    return {"train": TOOLS.parent / "train.py", **dict(sorted(found.items()))}


def summary(file: Path) -> str:
    """Return the first line of a module's docstring, without importing the module."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def main() -> None:
    """Start the command that is named, or list all."""
    run_command(_start)


def _start() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_list())
        return
    if name not in commands():
        nearest = get_close_matches(name, commands(), n=3, cutoff=0)
        raise ValueError(
            f"{name} is no command of {PROGRAM}; the nearest are {', '.join(nearest)}. "
            f"{PROGRAM} --help lists all."
        )
    if name == "train" and _names_a_folder(sys.argv[2:]):
        name = "train_folder"
    sys.argv = [f"{PROGRAM} {name}", *sys.argv[2:]]
    if name == "train":
        import train
        from training.launch import is_later_rank

        run_command(train.main, silent=is_later_rank)
    else:
        run_function(importlib.import_module(_module(name)).main)


def _names_a_folder(words: list[str]) -> bool:
    """Whether train's words hold a folder of images: a word that is neither flag nor value."""
    for before, word in pairwise(["", *words]):
        flag, equals, _ = before.partition("=")
        if word == "--" or flag == "--config":  # train.py names what is wrong after a recipe
            return False
        if not word.startswith("-") and (equals or not flag.startswith("-")):
            return True
    return False


def _module(name: str) -> str:
    return f"{__package__}.{name}" + ".__main__" * (TOOLS / name).is_dir()


def _list() -> str:
    width = max(map(len, commands())) + 2
    lines = [f"usage: {PROGRAM} COMMAND …, or {PROGRAM} COMMAND --help", ""]
    return "\n".join([*lines, *(f"  {n:{width}}{summary(f)}" for n, f in commands().items())])


if __name__ == "__main__":
    main()
