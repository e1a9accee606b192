"""A command's flags, types and help from its `main` function: parameters and docstring.

    def main(folder: str, *, rows: int = 8, out: Path | None = None) -> None:

    python -m tools.NAME FOLDER --rows 4 --out views.png

Parameters before the asterisk are positional words, the others are flags; a list takes several
words. The docstring's Args become the help. With a parameter `settings` the command takes every
flag of train.py too; with one of type `Dotted`, such as `encoder`, `--encoder CLASS` and every
`--encoder.SETTING`; with one of type `Nested` the latter alone, of which one takes several numbers.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline import dali
from training import installed
from training.command import run_command
from training.flags import NONE, FlagParser

Repeated = Annotated[list[str], "repeated"]
"""A flag that may stand several times, each time with one value."""
Rest = Annotated[list[str], "rest"]
"""All words after --, unread."""
Dotted = Annotated[Sequence[str], "dotted"]
"""A flag NAME and all flags NAME.SETTING with their values, unread. A positional word that may be
None and has no default is not asked for where they are given: they stand for it."""
Nested = Annotated[Sequence[str], "nested"]
"""All flags NAME.SETTING with their values, unread; NAME alone is no flag."""
# A command that trains nothing ignores what a recipe says of a run's length and its trackers.
UNUSED = ["--steps", "1", "--epochs", "null", "--trackers", "[]"]


def run_function(main: Callable[..., None]) -> None:
    """Run a command: parse this process's arguments, call its function, report errors in a line."""
    run_command(partial(call, main), silent=_is_later_rank)


def call(main: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Call a function with what a command line says; without parameters, it reads that itself.

    Args:
        main: the command; see the head of this file.
        arguments: words to read instead of this process's command line.

    Raises:
        ValueError: a recipe is wrong, or a flag unknown, missing or of the wrong type.
    """
    positional, values = read(main, sys.argv[1:] if arguments is None else arguments)
    main(*positional, **values)


def read(
    main: Callable[..., None], arguments: Sequence[str]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return what `call` calls a function with: its words in any number, and all other values.

    Args:
        main: the command.
        arguments: words of its command line.

    Raises:
        ValueError: see `call`.
    """
    words = list(arguments)
    hints = get_type_hints(main, include_extras=True)
    parameters = inspect.signature(main).parameters
    values: dict[str, Any] = {}
    if not parameters:
        return (), values
    for name in parameters:
        if hints[name] == Rest:
            cut = words.index("--") if "--" in words else len(words)
            words, values[name] = words[:cut], words[cut + 1 :]
        elif hints[name] in (Dotted, Nested):
            words, values[name] = _without_dotted(words, name, alone=hints[name] == Dotted)
            needed = parameters[name].default is inspect.Parameter.empty
            if needed and not values[name] and not {"-h", "--help"} & {*words}:
                raise ValueError(f"the following arguments are required: --{name}")
    if "settings" in parameters:
        from training.settings import parse  # imports every network, for seconds

        settings = parse([*words, *UNUSED], command_line=_recipe_parser(main))
        installed.require(dali.PACKAGE)  # all of these use the pipeline
        if "folder" not in parameters:
            settings.check_data("shards")
        values |= {"settings": settings, **settings.options}
    else:
        parser = FlagParser(prog=program(main), description=described(main)[0])
        given = any(values[name] for name in values if hints[name] == Dotted)
        replaced = [n for n, p in parameters.items() if given and _may_be_absent(p, hints[n])]
        values |= dict.fromkeys(replaced)
        add_parameters(parser, main, *replaced)
        # As a dict: its vars would call "keys" otherwise.
        values |= {**parser.read(words).as_dict(), **values}
    several = [n for n, each in parameters.items() if each.kind is each.VAR_POSITIONAL]
    return [word for name in several for word in values.pop(name)], values


def program(main: Callable[..., None]) -> str:
    """Return how a command is called: by its module, or by `viewrank`, which says so in argv."""
    if sys.argv[0].startswith("viewrank "):
        return sys.argv[0]
    file = Path(main.__code__.co_filename)
    return f"python -m tools.{file.parent.name if file.stem == '__main__' else file.stem}"


def add_parameters(parser: FlagParser, main: Callable[..., Any], *skipped: str) -> None:
    """Add a flag, or a positional word, for each parameter of a function.

    Args:
        parser: what to add them to.
        main: the function.
        skipped: parameters that get their value otherwise.
    """
    hints, (_, helps) = get_type_hints(main, include_extras=True), described(main)
    for name, parameter in inspect.signature(main).parameters.items():
        hint, default = hints[name], parameter.default
        if name in ("settings", *skipped) or hint == Rest:
            continue
        if hint == Dotted:  # `call` reads them
            shown = f"CLASS [--{name}.SETTING VALUE …]"
            parser.add_argument(f"--{name}", metavar=shown, help=helps[name])
            continue
        if hint == Nested:
            parser.add_argument(f"--{name}.SETTING", metavar="VALUE", help=helps[name])
            continue
        item = _item(hint)
        more: dict[str, Any] = {"type": item or hint, "help": helps[name]}
        if parameter.kind is parameter.VAR_POSITIONAL:
            more["nargs"] = "*"
        elif Repeated in (hint, *get_args(hint)):
            more["action"] = "append"
        elif item is not None:
            more["nargs"] = "+"
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if get_origin(hint) is not Literal:  # that is shown by its values
                more["metavar"] = name.upper()
            if parameter.kind is not parameter.VAR_POSITIONAL and default is not parameter.empty:
                more["nargs"] = "?"
            parser.add_argument(name, **more)
        elif default is parameter.empty:
            parser.add_argument(f"--{name}", required=True, **more)
        else:
            default = list(default) if isinstance(default, tuple) else default
            parser.add_argument(f"--{name}", default=default, **more)


def described(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return a docstring's description on one line, and its sentences by argument."""
    description, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    arguments = re.split(r"\n\n(?=\w+:\n)", rest)[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", arguments, re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    return " ".join(description.split()), {
        name: text[0].upper() + text[1:] for name, text in texts.items()
    }


def _recipe_parser(main: Callable[..., None]) -> FlagParser:
    """Return train.py's command line with a command's own flags; no run folder is needed."""
    from training.settings import parser

    own = FlagParser(prog=program(main))
    add_parameters(own, main)
    usage = " ".join(own.format_usage().removeprefix("usage: ").split()).replace("%", "%%")
    command_line = parser(
        program(main),
        described(main)[0],
        own=partial(add_parameters, main=main),
        usage=f"{usage} --config RECIPE [--SETTING VALUE …]",
    )
    command_line.set_defaults({"run": Path(".")})
    if "folder" in inspect.signature(main).parameters:  # the shard set, instead of --shards
        command_line.set_defaults({"shards": "."})
    return command_line


def _without_dotted(words: list[str], name: str, *, alone: bool) -> tuple[list[str], list[str]]:
    """Return the words without the dotted flags of a name, and these with their values.

    Args:
        words: of the command line.
        name: of the flags.
        alone: whether the name alone is one of them.
    """
    rest: list[str] = []
    taken: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        flag, equals, _ = word.partition("=")
        if not (alone and flag == f"--{name}") and not flag.startswith(f"--{name}."):
            rest.append(word)
            continue
        taken.append(word)
        if not equals and left:
            taken.append(left.popleft())
        if not alone:
            while left and _is_number(left[0]):
                taken.append(left.popleft())
    return rest, taken


def several_as_lists(words: Sequence[str], of: type) -> list[str]:
    """Return the flags of a class as its parser takes them: several values as one list.

    Args:
        words: flags --NAME.SETTING with their values.
        of: the class.
    """
    hints, found = get_type_hints(of), list[str]()
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        flag, equals, value = word.partition("=")
        earlier = next((pair for pair in flags if pair[0] == flag), None)
        if not flag.startswith("--"):
            flags[-1][1].append(word)
        elif earlier is not None and _item(hints.get(flag.rpartition(".")[2])):  # it stands twice
            flags.remove(earlier)
            flags.append((flag, [*earlier[1], *([value] if equals else [])]))
        else:
            flags.append((flag, [value] if equals else []))
    for flag, values in flags:
        text = ", ".join(values)
        listed = _item(hints.get(flag.rpartition(".")[2])) and text not in NONE
        if len(values) > 1 or (listed and values and not text.startswith("[")):
            values = [f"[{text}]"]
        found += [flag, *values]
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _may_be_absent(parameter: inspect.Parameter, hint: Any) -> bool:
    """Whether dotted flags may stand for a positional word; see `Dotted`."""
    positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    return positional and parameter.default is parameter.empty and type(None) in get_args(hint)


def _is_later_rank() -> bool:
    from training.launch import is_later_rank  # here: it imports torch

    return is_later_rank()


def _item(hint: Any) -> Any:
    """Return the type of a list's items, None if it is no list; `list[X] | None` is one."""
    if get_origin(hint) in (list, Sequence):
        return get_args(hint)[0]
    if get_origin(hint) in (Annotated, Union, UnionType):
        return next(filter(None, map(_item, get_args(hint))), None)
    return None
