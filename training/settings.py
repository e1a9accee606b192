"""A configuration as it is given: read from recipes and flags, and saved with the run."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import yaml
from jsonargparse import Namespace, set_loader, set_parsing_settings

from model.encoder import Encoder
from model.method import Method
from model.objective import Objective
from pipeline.augment import Augment, Policy
from pipeline.graph import ViewGroup
from pipeline.setting import Resume, settings_of
from pipeline.tuning import Tuning
from shards import durable
from shards.storage import is_remote
from training import (
    class_help,
    class_names,
    own_modules,
    packaged_recipes,
    recipe_commands,
    yaml_text,
)
from training.config import EVALUATION_SETS, SHARD_SETS, Config
from training.flags import NONE, FlagParser, import_class, load, null, one_of

RULES = settings_of(Config)
"""What each setting, dotted, says of itself: see `pipeline.setting`."""

# As plain values, because instances as defaults cannot be written to the run's config.yaml.
DEFAULT_CLASSES: dict[str, dict[str, Any]] = {
    "views.policy": {"class_path": "pipeline.augment.SimCLRViews"},
    "method": {
        "class_path": "model.method.JointEmbedding",
        "init_args": {
            "encoder": {"class_path": "model.encoder.ResNet"},
            "objective": {"class_path": "model.objective.SmoothAP"},
        },
    },
}
EITHER_OR = (("epochs", "steps"), ("evaluate_every", "evaluations"))
"""Settings of which one at most is given: a flag replaces a recipe's other one."""
JUDGED = (*EVALUATION_SETS, "evaluation_neighbours", "evaluation_temperature")
"""Settings that decide what the figures of an evaluation mean."""
_PARTS = {"views": ViewGroup, "more_views": ViewGroup, "tuning": Tuning}
"""Settings that are dataclasses, or lists of them."""
ABOUT = {"weights": ("weights_sha256", "weights_license")}
"""Settings that say something of another one: where that is a flag, a recipe's are of its own."""
MODE = "recipe"
_Class = TypeVar("_Class")
_TEXT = {name for name, each in Config.__dataclass_fields__.items() if str(each.type) == "str"}
_NO = {name for name, each in Config.__dataclass_fields__.items() if "'no'" in str(each.type)}
_FOUND_OUT = ("device", "mixed_precision")  # what they come to is in each checkpoint


def _load_recipe(text: str) -> Any:
    """Return the values of a recipe: none is null, but for settings that take any text."""
    return _nulls(load(text))


def _nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: each if k in _TEXT else _nulls(_plain(k, each)) for k, each in value.items()}
    return [_nulls(each) for each in value] if isinstance(value, list) else null(value)


def _plain(key: str, value: Any) -> Any:
    if key in _NO and value is False:  # YAML's "no"
        return "no"
    return class_names.here(value) if key == "class_path" and isinstance(value, str) else value


set_loader(MODE, _load_recipe, (yaml.YAMLError,))


def parser(
    prog: str | None = None,
    description: str = "Pretrain an image encoder from many views.",
    *,
    own: Callable[[FlagParser], None] = lambda _: None,
    usage: str = "%(prog)s --config RECIPE [--SETTING VALUE …]",
) -> FlagParser:
    """Return the command line: one flag a field of `Config`, and `--config` for YAML files.

    Args:
        prog: how the command is called.
        description: what it does.
        own: adds a tool's own arguments, which stand first in its help.
        usage: the first line of its help.

    Raises:
        ValueError: a module of the user's own cannot be imported; see `own_modules`.
    """
    own_modules.import_own()
    # The strings below the fields become their help.
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        # A recipe may be anybody's. It can name classes of the packages that the program has
        # imported already, and makes nothing else be imported.
        import_path_denylist=["*"],
        import_path_allowlist=sorted(_packages()),
    )
    arguments = FlagParser(prog=prog, description=description, usage=usage, parser_mode=MODE)
    own(arguments)
    arguments.add_argument(
        "--config", action="config", help="A recipe; repeatable, and later settings win."
    )
    arguments.add_class_arguments(Config)
    arguments.set_defaults(DEFAULT_CLASSES)
    return arguments


@dataclass(frozen=True)
class Settings:
    """A parsed configuration: plain values to save with the run, and objects built from them."""

    config: Config
    resolved: dict[str, Any]
    """Plain values, as YAML holds them; parses to the same configuration."""
    options: dict[str, Any]
    """A tool's own arguments, which are not fields of `Config`."""
    recipes: tuple[Path, ...] = ()
    """The files that it was read from."""

    def check_data(self, *names: str) -> None:
        """Refuse shard sets that are not here, if a recipe's head says how to make them.

        Args:
            names: fields of the configuration that name shard sets.

        Raises:
            ValueError: which one, and the commands that make it.
        """
        for name in names:
            place = getattr(self.config, name)
            if place is None or is_remote(place) or Path(place).exists():
                continue
            for recipe in reversed(self.recipes):
                if commands := recipe_commands.making(recipe, place):
                    raise ValueError(
                        f"{name}={place} is not there. The head of {recipe} has the commands that "
                        f"make it: {' && '.join(commands)}"
                    )

    def yaml(self) -> str:
        """Return the resolved configuration as a recipe."""
        return yaml_text.dump(self.resolved)

    def flat(self) -> dict[str, Any]:
        """Return {dotted name: value}."""
        return _flat(self.resolved)

    def changed(self, other: dict[str, Any]) -> list[str]:
        """Return the fields, dotted, in which a run cannot be continued with this configuration.

        Device and precision are not among them: see `training.run.run_folder.check_continues`.
        """
        free = ("free", "reshaped") if self.config.reshape_data else ("free",)
        return self._differing(
            other, lambda name: self._rule(name) not in free and name not in _FOUND_OUT
        )

    def judged_otherwise(self, other: dict[str, Any]) -> list[str]:
        """Return the fields, dotted, by which a run's figures would not be this configuration's.

        Those in which it cannot be continued, whatever `reshape_data` allows, and those of its
        evaluations, which are free while it trains.
        """
        return self._differing(other, lambda name: name in JUDGED or self._rule(name) != "free")

    def _differing(self, other: dict[str, Any], counts: Callable[[str], bool]) -> list[str]:
        mine, theirs = _flat(self.resolved), _flat(of_today(other, self.resolved))
        return [
            f"{name}: {theirs.get(name)} there, {mine.get(name)} here"
            for name in {**theirs, **mine}
            if counts(name) and place(name, mine.get(name)) != place(name, theirs.get(name))
        ]

    def _rule(self, name: str) -> Resume:
        if name == "max_seconds" and self.config.length_is_time:  # the rate of each step follows it
            return "same"
        return resume_rule(name)


def place(name: str, value: Any) -> Any:
    """Return a value; the name of a shard set in one way, however it was written."""
    if name not in SHARD_SETS or not isinstance(value, str):
        return value
    return value.rstrip("/") if is_remote(value) else os.path.abspath(value)


def resume_rule(name: str) -> Resume:
    """Return whether a run may go on with another value of a setting, dotted; see `rules`."""
    rule = RULES.get(name) or RULES.get(name.split(".")[0])
    return rule["resume"] if rule else "same"


def parse(
    arguments: Sequence[str] | None = None, *, command_line: FlagParser | None = None
) -> Settings:
    """Read a command line. Networks are built here, with weights that depend on the seed only.

    Args:
        arguments: what to read instead of this process's command line.
        command_line: `parser()` with a tool's own arguments added.

    Raises:
        ValueError: a setting is unknown, missing or impossible; the message has the remedy.
    """
    command_line = command_line or parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if (asked := class_help.asked(arguments)) is not None:
        _print_class_help(asked, command_line.prog)
    switches = {f"--no_{name}": f"--{name}=false" for name, rule in RULES.items() if rule["switch"]}
    arguments = packaged_recipes.located([switches.get(word, word) for word in arguments])
    arguments += _without_others(arguments)
    try:
        namespace = command_line.read(arguments, choices=_choices)
    except ValueError:
        _refuse_no_recipes(arguments)
        raise
    if (chosen := _classes(namespace)) != DEFAULT_CLASSES:
        # jsonargparse takes what one class was given, or has by default, over to the class that
        # replaces it: NTXent would get SmoothAP's temperature.
        command_line.set_defaults(chosen)
        try:
            namespace = command_line.read(arguments, choices=_choices)
        finally:
            command_line.set_defaults(DEFAULT_CLASSES)
    recipes = tuple(Path(str(each)) for each in namespace.pop("config", None) or () if each)
    _refuse_nulls(namespace)
    resolved = class_names.stored(yaml.safe_load(command_line.dump(namespace, skip_none=False)))
    try:
        _refuse_giants(command_line, namespace)
        torch.manual_seed(namespace.seed)
        built = vars(command_line.instantiate(namespace))
    except (TypeError, RuntimeError, OverflowError, MemoryError) as error:
        # A value of the right type that nothing can be built from, such as a size below 0.
        raise ValueError(f"no run can be built from these settings: {error}") from error
    fields = Config.__dataclass_fields__
    return Settings(
        config=Config(**{name: built[name] for name in fields}),
        resolved={name: resolved[name] for name in fields},
        options={name: value for name, value in built.items() if name not in fields},
        recipes=recipes,
    )


def of_today(older: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that an older version saved, with what it did not have yet at its default.

    Args:
        older: plain values.
        newer: plain values of this version; of classes that are the older ones' too, the arguments.
    """
    return _new_fields(Config, older, newer) | {
        name: _with_arguments(each, newer.get(name), _PARTS.get(name))
        for name, each in older.items()
    }


def _new_fields(of: Any, older: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields that older settings lack."""
    fields = of.__dataclass_fields__
    defaults = {n: None if f.default is MISSING else f.default for n, f in fields.items()}
    return {name: defaults[name] for name in newer if name not in older and name in defaults}


def _with_arguments(older: Any, newer: Any, of: Any = None) -> Any:
    if isinstance(older, list) and isinstance(newer, list) and len(older) == len(newer):
        return [_with_arguments(*pair, of) for pair in zip(older, newer, strict=True)]
    if not isinstance(older, dict) or not isinstance(newer, dict):
        return older
    found = {name: _with_arguments(each, newer.get(name)) for name, each in older.items()}
    if of is not None:
        found = _new_fields(of, older, newer) | found
    path, given = newer.get("class_path"), found.get("init_args") or {}
    if path is None or path != older.get("class_path"):
        return found
    known = inspect.signature(import_class(class_names.here(path))).parameters
    new = [name for name in newer.get("init_args") or {} if name in known and name not in given]
    defaults = {name: known[name].default for name in new}
    plain = {n: list(d) if isinstance(d, tuple) else d for n, d in defaults.items()}
    if plain := {name: value for name, value in plain.items() if value is not Parameter.empty}:
        found["init_args"] = plain | given
    return found


def _print_class_help(asked: class_help.Asked, prog: str) -> NoReturn:
    """Print the settings of a class, and exit.

    Raises:
        ValueError: there is no such class or no such setting.
    """
    here: Any = parser().read(["--shards", ".", "--run", ".", *asked.words], choices=_choices)
    parts = asked.setting.split(".")
    for part in parts:
        inside = here.get("init_args", here)
        here = inside.get(part) if isinstance(inside, Namespace) else None
    if not isinstance(here, Namespace) or "class_path" not in here or parts[-1] not in CLASSES:
        raise ValueError(f"{asked.setting} is no class with help of its own; --help explains it.")
    classes = {each.__name__: each for each in concrete(CLASSES[parts[-1]])}
    name = asked.name or here.class_path.rpartition(".")[2]
    if name not in classes:
        raise ValueError(f"{asked.setting}={name}, {one_of(name, classes)}")
    sys.stdout.write(class_help.text(classes[name], asked.setting, prog))
    sys.exit(0)


def _refuse_nulls(part: Namespace, prefix: str = "") -> None:
    """Refuse null where a class needs a value: it passes for any type in jsonargparse.

    Raises:
        ValueError: which setting it is.
    """
    of = import_class(part.class_path) if "class_path" in part else None
    known = inspect.signature(of).parameters if of else {}
    for name, value in vars(part.init_args if of else part).items():
        if value is None and name in known and "None" not in str(known[name].annotation):
            raise ValueError(f"{prefix}{name}=null, but it needs a value; without, leave it out.")
        if isinstance(value, Namespace):
            _refuse_nulls(value, f"{prefix}{name}.")


def _refuse_no_recipes(words: Sequence[str]) -> None:
    """Refuse --config files that hold no settings; jsonargparse's message has not their names.

    Raises:
        ValueError: which file it is.
    """
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        path = Path(value if equals else after)
        if flag != "--config" or not path.is_file():
            continue
        try:
            values = yaml_text.load(durable.read(path).decode())
        except UnicodeDecodeError:
            raise ValueError(f"--config {path} is no text in UTF-8.") from None
        except yaml.YAMLError as error:
            text = " ".join(str(error).split())
            raise ValueError(f"--config {path} cannot be read as YAML: {text}") from None
        except (OSError, RecursionError):
            continue  # which jsonargparse's message says
        if not isinstance(values, dict):
            raise ValueError(f"--config {path} holds no settings; expected lines such as steps: 5.")


def _without_others(words: Sequence[str]) -> list[str]:
    """Return words that undo a recipe's --steps where --epochs is a flag, and such.

    A run's config.yaml is a recipe too: it names the hash of the weights that the run began with.
    """
    given: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            given[name] = value if equals else after
    undone: list[str] = []
    for pair in EITHER_OR:
        here = [name for name in pair if name in given]
        if len(here) == 1 and given[here[0]] not in (*NONE, "null"):
            undone += [word for name in pair if name != here[0] for word in (f"--{name}", "null")]
    for name in given.keys() & ABOUT.keys():
        undone += [word for of in ABOUT[name] if of not in given for word in (f"--{of}", "null")]
    return undone


def _refuse_giants(command_line: FlagParser, namespace: Namespace) -> None:
    """Refuse networks that this machine has no memory for, before it tries, and is brought down.

    Raises:
        ValueError: how large they are.
    """
    with torch.device("meta"):  # no memory is taken
        method = command_line.instantiate(namespace).method
    tensors = [*method.parameters(), *method.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(
            f"{type(method).__name__} has networks and queues of {size / 2**30:,.0f} GiB with "
            f"these settings, but this machine has {memory / 2**30:,.0f}. Is a size mistyped?"
        )


def _classes(namespace: Namespace) -> dict[str, dict[str, Any]]:
    """Return which classes were chosen, in the form of `DEFAULT_CLASSES`."""
    method = namespace.method
    parts = {
        name: {"class_path": part.class_path}
        for name, part in vars(method.init_args).items()
        if isinstance(part, Namespace) and "class_path" in part
    }
    return {
        "views.policy": {"class_path": namespace.views.policy.class_path},
        "method": {"class_path": method.class_path, "init_args": parts},
    }


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted name: value}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


CLASSES = {
    "method": Method,
    "encoder": Encoder,
    "objective": Objective,
    "policy": Policy,
    "augments": Augment,
}


def _choices(name: str) -> set[str]:
    """Return the names of the classes that a setting takes, by the last part of its name."""
    return {each.__name__ for each in concrete(CLASSES[name])} if name in CLASSES else set()


def _packages() -> set[str]:
    """Return where the classes that a recipe may choose from are defined."""
    classes, found = list[type](CLASSES.values()), set[str]()
    while classes:
        each = classes.pop()
        found.add(each.__module__.partition(".")[0])
        classes += each.__subclasses__()
    return found


def concrete(base: type[_Class]) -> set[type[_Class]]:
    """Return the classes that can stand where `base` is asked for, a user's own among them."""
    own = set() if inspect.isabstract(base) else {base}
    return own.union(*(concrete(child) for child in base.__subclasses__()))
