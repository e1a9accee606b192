"""A field of a configuration that says itself what may change: in one run, and between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, Literal

Resume = Literal["same", "reshaped", "free"]
"""May a run go on with another value? same: no. reshaped: with --reshape_data. free: always; no
sample and no gradient depends on it."""
Compare = Literal["set", "own"]
"""In a comparison: set by it for every run, or each recipe's own."""


def setting(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    resume: Resume,
    compare: Compare,
    flag: str = "",
    switch: bool = False,
    above: float | None = None,
    at_least: float | None = None,
) -> Any:
    """Return a dataclass field; see `settings_of`.

    Args:
        default: its value if none is given.
        factory: makes a default that can change, such as a list.
        resume: whether a run may go on with another value.
        compare: what it is to `python -m tools.compare`.
        flag: of `tools.compare`, which says it there; only with compare="set".
        switch: whether --no_NAME is short for --NAME false.
        above: a number that its value exceeds.
        at_least: its smallest value.
    """
    rules = {"resume": resume, "compare": compare, "flag": flag, "switch": switch}
    rules |= {"above": above, "at_least": at_least}
    if factory is not None:
        return field(default_factory=factory, metadata=rules)
    return field(default=default, metadata=rules)


def settings_of(config: type) -> dict[str, Mapping[str, Any]]:
    """Return {name: the arguments of `setting`} for a dataclass; names are dotted.

    A field whose default is a dataclass of settings is looked into.

    Raises:
        TypeError: a field says nothing.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for each in fields(config):
        inner = each.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            found |= {f"{each.name}.{name}": rule for name, rule in settings_of(inner).items()}
        found[each.name] = _rules(config, each)
    return found


def _rules(config: type, each: Field[Any]) -> Mapping[str, Any]:
    if "resume" not in each.metadata:
        raise TypeError(
            f"{config.__name__}.{each.name} does not say what may change about it; make it with "
            "pipeline.setting.setting."
        )
    return each.metadata
