"""`--method.encoder.help [NAME]`: the settings of one class, by the flags that set them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from training.flags import FlagParser


@dataclass(frozen=True)
class Asked:
    """What help is asked for."""

    setting: str
    """Whose class, dotted, such as method.encoder."""
    name: str
    """Of the class; "" for the one that the recipe has, or the default."""
    words: list[str]
    """The rest of the command line, as far as it chooses classes."""


def asked(words: Sequence[str]) -> Asked | None:
    """Return which class's help a command line asks for, None if none.

    Args:
        words: of the command line.
    """
    for position, word in enumerate(words):
        flag, equals, name = word.partition("=")
        if not (flag.startswith(("--method", "--views.")) and flag.endswith(".help")):
            continue
        after = words[position + 1 : position + 2]
        if not equals and after and not after[0].startswith("-"):
            name = after[0]
        setting = flag.removeprefix("--").removesuffix(".help")
        return Asked(setting, name.rpartition(".")[2], _choosing(words))
    return None


def _choosing(words: Sequence[str]) -> list[str]:
    """Return the flags that choose classes, with their values."""
    kept: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag = word.partition("=")[0]
        if flag.startswith(("--config", "--method", "--views")) and not flag.endswith(".help"):
            kept += [word] if "=" in word else [word, after]
    return kept


def text(of: type, setting: str, prog: str) -> str:
    """Return the help of a class.

    Args:
        of: the class.
        setting: where it stands, dotted.
        prog: how the program is called.
    """
    parser = FlagParser(
        prog=prog, usage=f"%(prog)s --{setting} {of.__name__} [--{setting}.SETTING VALUE …]"
    )
    parser.add_class_arguments(of, setting)
    for action in parser._actions:
        if action.dest in ("help", setting):  # what every parser and group has
            action.help = argparse.SUPPRESS
    return parser.format_help()
