"""A command line in the words of its user: none is null, and a wrong word ends in one line.

That line names the flag as it is typed or stands in a recipe, what it takes, and the nearest right
word. jsonargparse's own messages name Python's types, over several lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader

from training import class_names, yaml_text
from training.own_modules import MODULES

NONE = ("none", "None", "NONE")
"""What people type where YAML has null."""
OWN = f"A class of your own: {MODULES} names its module."
MODE = "flags"
SIMPLE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "none",
    "tuple": "a list such as [1, 2]",
    "list": "a list such as [a, b]",
    "dict": "settings such as {name: value}",
}
"""Types, as `Expected a <class 'NAME'>` names them."""


def null(value: Any) -> Any:
    """Return None for its names, and everything else as it is."""
    return None if isinstance(value, str) and value in NONE else value


def load(text: str) -> Any:
    """Return the value of a flag. Where a flag takes text, jsonargparse keeps it as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8; YAML reads no such text
        return text
    return null(yaml_text.load_setting(text))


set_loader(MODE, load, (yaml.YAMLError,))


def _at_home(values: Namespace) -> Namespace:
    """Replace ~ at the beginning of values, which shells do not after --NAME=, nor in recipes."""
    for name, value in vars(values).items():
        if isinstance(value, str | Path) and str(value).startswith("~/"):
            values[name] = type(value)(os.path.expanduser(value))
    return values


class FlagParser(ArgumentParser):
    """jsonargparse's parser, whose `read` refuses wrong words in one line.

    Args:
        positional: as of `ArgumentParser`.
        named: as of `ArgumentParser`.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        # Without abbreviations: --epoch would be taken for --epochs.
        defaults = {"allow_abbrev": False, "exit_on_error": False, "parser_mode": MODE}
        super().__init__(*positional, **(defaults | named))

    def read(
        self,
        words: Sequence[str] | None = None,
        *,
        choices: Callable[[str], Iterable[str]] = lambda _: (),
    ) -> Namespace:
        """Return what a command line says.

        Args:
            words: what to read instead of this process's command line.
            choices: the names of the classes that a setting takes, by its last name.

        Raises:
            ValueError: it is wrong, on one line.
        """
        try:
            return _at_home(self.parse_args(None if words is None else self._together(words)))
        except RecursionError as error:
            raise ValueError("nested too deeply for a recipe; is that file one?") from error
        except Exception as error:  # jsonargparse's own error type, argparse's, and YAML's
            raise ValueError(self._plain(" ".join(str(error).split()), choices)) from error

    def _together(self, words: Sequence[str]) -> list[str]:
        """Return words in which no flag of several words stands twice: the last would win."""
        flags = {
            flag for each in self._actions if each.nargs == "+" for flag in each.option_strings
        }
        given = [word.partition("=")[0] for word in words]
        if all(given.count(flag) < 2 for flag in flags):
            return list(words)
        rest: list[str] = []
        values: dict[str, list[str]] = {}
        into = rest
        for word in words:
            flag, equals, value = word.partition("=")
            if flag in flags:
                into = values.setdefault(flag, [])
                if equals:
                    into.append(value)
                    into = rest
            else:
                into = rest if word.startswith("--") else into
                into.append(word)
        return [*rest, *(word for flag, several in values.items() for word in (flag, *several))]

    def flags(self) -> list[str]:
        """Return all flags."""
        found = (each for action in self._actions for each in action.option_strings)
        return [each for each in found if each.startswith("--") and not each.endswith("+")]

    def _plain(self, line: str, choices: Callable[[str], Iterable[str]]) -> str:
        if line.startswith('Parser key "config": '):
            return f"--config: {line.partition(': ')[2]}"
        if found := re.fullmatch(r"unrecognized arguments: (.*)", line):
            return f"{line}.{self._nearest_flag(found[1])}"
        if found := re.fullmatch(r"the following arguments are required: (.*)", line):
            flags, names = self.flags(), found[1].split(", ")
            words = [f"--{each}" if f"--{each}" in flags else each.upper() for each in names]
            return f"the following arguments are required: {', '.join(words)}"
        name = ".".join(re.findall(r'Parser key "([^"]+)"', line))
        if found := re.search(r"(?:Option|Group '.*?' does not accept option) '([^']+)'", line):
            return self._unknown(name, found[1], line)
        if "import path" in line or "is abstract" in line or "instantiatable" in line:
            names = set(choices(name.rpartition(".")[2]))
            return _no_class(name, line, names) if names else line
        return _wrong_value(name, line) or line

    def _nearest_flag(self, words: str) -> str:
        """Return a sentence with the flag that was perhaps meant."""
        wrong = next((word for word in words.split() if word.startswith("--")), "")
        wrong = wrong.partition("=")[0].removeprefix("--").replace("-", "_")
        names = [each.removeprefix("--") for each in self.flags() if not each.endswith(".help")]
        nearest = get_close_matches(wrong, names, n=1)
        return f" The nearest flag is --{nearest[0]}." if nearest else " --help lists all flags."

    def _unknown(self, parent: str, name: str, line: str) -> str:
        """Return what is wrong with a name that a recipe or a class does not have."""
        group = re.search(r"Group '(.*?)'", line)
        classes = re.findall(r"Problem with given class_path '([^']+)'", line)
        prefix = f"--{group[1]}." if group else "--"
        known = [each.removeprefix(prefix) for each in self.flags() if each.startswith(prefix)]
        owner = ""
        if classes:
            owner = classes[-1].rpartition(".")[2]
            known = list(signature(import_class(classes[-1])).parameters)
        nearest = get_close_matches(name, known, n=1)
        whole = ".".join(filter(None, (parent, group[1] if group else "", name)))
        return f"{whole} is no setting{f' of {owner}' if owner else ''}. " + (
            f"The nearest is {nearest[0]}." if nearest else f"It has {', '.join(known)}."
        )


def import_class(path: str) -> Any:
    """Return the class that a dotted path names; jsonargparse has allowed it."""
    module, _, name = class_names.here(path).rpartition(".")
    return getattr(import_module(module), name)


def one_of(wrong: str, names: Iterable[str]) -> str:
    """Return the end of a message: which names there are, and which was perhaps meant."""
    nearest = get_close_matches(wrong, sorted(names), n=1)
    meant = f" The nearest is {nearest[0]}." if nearest else ""
    return f"but it must be one of {', '.join(sorted(names))}.{meant}"


def _no_class(name: str, line: str, names: Iterable[str]) -> str:
    """Return what is wrong with a class that is not one of some."""
    given = re.findall(r"(?:string: |class_path '|, but |Importing ')([\w.]+)", line)
    wrong = given[-1] if given else line
    own = f" {OWN}" if "is not allowed" in line else ""
    return f"{name}={wrong}, {one_of(wrong.rpartition('.')[2], names)}{own}"


def _wrong_value(name: str, line: str) -> str:
    """Return what is wrong with a value, and "" if the message says something else."""
    given = re.search(r"(?:Got|Given) value: (.*)$", line)
    types = re.findall(r"Expected an? (typing\.Literal\[.*?\]|<class '.*?'>)", line)
    if not (name and given and types):
        return ""
    wanted = [_type(each) for each in dict.fromkeys(types)]
    return f"{name}={given[1]}, but it must be {' or '.join(wanted)}."


def _type(text: str) -> str:
    """Return a type of jsonargparse's message in words."""
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {literal[1].replace(chr(39), '')}"
    name = text.removeprefix("<class '").removesuffix("'>").rsplit(".", 1)[-1]
    return SIMPLE.get(name, f"a {name}")
