"""A configuration as it is given: read from recipes and flags, and saved with the run."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from model.encoder import Encoder
from model.method import Method
from model.objective import Objective
from pipeline.augment import Augment, Policy
from pipeline.setting import Resume, settings_of
from training.config import Config

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


def parser(
    prog: str | None = None, description: str = "Pretrain an image encoder from many views."
) -> ArgumentParser:
    """Return the command line: one flag a field of `Config`, and `--config` for YAML files."""
    # The strings below the fields become their help.
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        # A recipe may be anybody's. It can name classes of the packages that the program has
        # imported already, and makes nothing else be imported.
        import_path_denylist=["*"],
        import_path_allowlist=sorted(_packages()),
    )
    arguments = ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,  # else --epoch is taken for --epochs
        exit_on_error=False,
    )
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

    def yaml(self) -> str:
        """Return the resolved configuration as a recipe."""
        return yaml.safe_dump(self.resolved, sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Return {dotted name: value}."""
        return _flat(self.resolved)

    def changed(self, other: dict[str, Any]) -> list[str]:
        """Return the fields, dotted, in which a run cannot be continued with this configuration."""
        mine, theirs = _flat(self.resolved), _flat(other)
        free = ("free", "reshaped") if self.config.reshape_data else ("free",)
        return [
            f"{name}: {theirs.get(name)} there, {mine.get(name)} here"
            for name in {**theirs, **mine}
            if self._rule(name) not in free and mine.get(name) != theirs.get(name, _default(name))
        ]

    def _rule(self, name: str) -> Resume:
        if name == "max_seconds" and self.config.length_is_time:  # the rate of each step follows it
            return "same"
        return resume_rule(name)


def resume_rule(name: str) -> Resume:
    """Return whether a run may go on with another value of a setting, dotted; see `rules`."""
    rule = RULES.get(name) or RULES.get(name.split(".")[0])
    return rule["resume"] if rule else "same"


def parse(
    arguments: Sequence[str] | None = None, *, command_line: ArgumentParser | None = None
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
    switches = {f"--no_{name}": f"--{name}=false" for name, rule in RULES.items() if rule["switch"]}
    arguments = [switches.get(word, word) for word in arguments]
    try:
        namespace = command_line.parse_args(arguments)
        if (chosen := _classes(namespace)) != DEFAULT_CLASSES:
            # jsonargparse takes what one class was given, or has by default, over to the class
            # that replaces it: NTXent would get SmoothAP's temperature.
            command_line.set_defaults(chosen)
            try:
                namespace = command_line.parse_args(arguments)
            finally:
                command_line.set_defaults(DEFAULT_CLASSES)
    except RecursionError as error:
        raise ValueError("nested too deeply for a recipe; is that file one?") from error
    except Exception as error:  # jsonargparse's own error type, argparse's, and YAML's
        raise ValueError(_explain(str(error))) from error
    namespace.pop("config", None)
    resolved = yaml.safe_load(command_line.dump(namespace, skip_none=False))
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
    )


def _default(name: str) -> Any:
    """Return the default of a field; a run that is older than the field has that."""
    field = Config.__dataclass_fields__.get(name)
    return None if field is None or field.default is MISSING else field.default


def _refuse_giants(command_line: ArgumentParser, namespace: Namespace) -> None:
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


def _explain(message: str) -> str:
    """Return jsonargparse's message on one line, with the choices where a class name is wrong."""
    line = " ".join(message.split())
    if "codec can't decode" in line:
        line = f"a --config file is no text in UTF-8: {line}"
    if "import path" in line or "is abstract" in line:
        # The last key named is the innermost, where the wrong name stands.
        keys = [key.rsplit(".", 1)[-1] for key in re.findall(r'Parser key "([^"]+)"', line)]
        if keys and keys[-1] in CLASSES:
            names = sorted(_concrete(CLASSES[keys[-1]]))
            line += f". Choose from {', '.join(names)}."
    return line


def _packages() -> set[str]:
    """Return where the classes that a recipe may choose from are defined."""
    classes, found = list[type](CLASSES.values()), set[str]()
    while classes:
        each = classes.pop()
        found.add(each.__module__.partition(".")[0])
        classes += each.__subclasses__()
    return found


def _concrete(base: type) -> set[str]:
    """Return the names of the classes that can stand where `base` is asked for."""
    own = set() if inspect.isabstract(base) else {base.__name__}
    return own.union(*(_concrete(child) for child in base.__subclasses__()))
