"""What a run's configuration changes about the defaults."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from pipeline.graph import ViewGroup
from pipeline.tuning import Tuning
from training import class_names
from training.config import Config
from training.flags import import_class
from training.settings import DEFAULT_CLASSES

NO_DEFAULT = "–"
_PARTS: dict[str, type] = {"views": ViewGroup, "more_views": ViewGroup, "tuning": Tuning}
_DEFAULTS = class_names.stored(DEFAULT_CLASSES)
_CLASSES: dict[str, str] = {
    "views.policy": _DEFAULTS["views.policy"]["class_path"],
    "more_views.policy": _DEFAULTS["views.policy"]["class_path"],
    "method": _DEFAULTS["method"]["class_path"],
} | {f"method.{k}": v["class_path"] for k, v in _DEFAULTS["method"]["init_args"].items()}
# Of these alone signatures are read: a configuration may be anybody's, and importing runs code.
_PACKAGES = ("model", "pipeline")


@dataclass(frozen=True)
class Change:
    """A setting that is not as by default."""

    name: str
    """Dotted, as the flag is called."""
    value: str
    default: str


def changes(saved: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the settings of a run that are not as by default, in the order of the configuration.

    Args:
        saved: the run's config.yaml as plain values.
    """
    defaults = _defaults(Config)
    for name, value in saved.items():
        yield from _changes(name, name, value, defaults.get(name, MISSING))


def text(value: Any) -> str:
    """Return a plain value as a person would type it."""
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)


def _changes(name: str, kind: str, value: Any, default: Any) -> Iterator[Change]:
    """Yield the changes of one setting; `kind` is its name without the numbers of list items."""
    if kind == "more_views" and isinstance(value, list):
        for number, group in enumerate(value):
            yield Change(f"{name}.{number}", _group(group), "none")
            yield from _changes(f"{name}.{number}", kind, group, MISSING)
    elif isinstance(value, dict) and "class_path" in value:
        yield from _class_changes(name, kind, value)
    elif isinstance(value, dict):
        part = _defaults(_PARTS[kind]) if kind in _PARTS else {}
        for inner, each in value.items():
            yield from _changes(
                f"{name}.{inner}", f"{kind}.{inner}", each, part.get(inner, MISSING)
            )
    elif default is MISSING or _plain(default) != value:
        yield Change(name, text(value), NO_DEFAULT if default is MISSING else text(_plain(default)))


def _class_changes(name: str, kind: str, value: Mapping[str, Any]) -> Iterator[Change]:
    path, default = str(value["class_path"]), _CLASSES.get(kind, "")
    if path != default:
        yield Change(name, _last(path), _last(default) or NO_DEFAULT)
    own = path.partition(".")[0] in _PACKAGES
    arguments = _defaults(import_class(path)) if own else {}
    for inner, each in (value.get("init_args") or {}).items():
        yield from _changes(
            f"{name}.{inner}", f"{kind}.{inner}", each, arguments.get(inner, MISSING)
        )


def _defaults(of: type) -> dict[str, Any]:
    """Return the defaults of a constructor's arguments; those without one are left out."""
    if is_dataclass(of):
        made = {f.name: f.default_factory() for f in fields(of) if f.default_factory is not MISSING}
        given = {f.name: f.default for f in fields(of) if f.default is not MISSING}
        return given | made
    parameters = inspect.signature(of).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _plain(value: Any) -> Any:
    """Return a default as YAML would hold it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _group(group: Mapping[str, Any]) -> str:
    return f"{group.get('count')} × {group.get('size')} px"


def _last(class_path: str) -> str:
    return class_path.rpartition(".")[2]
