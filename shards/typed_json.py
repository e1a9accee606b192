"""Dataclasses from JSON values and back: msgspec checks the types, the messages are ours."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

Kind = TypeVar("Kind")
_SHOWN = 80  # characters of a wrong value


def from_values(values: Any, kind: type[Kind]) -> Kind:
    """Return the values of a JSON object as a dataclass; values without a field are left out.

    Raises:
        ValueError: a value does not fit; the message does not name the file.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError:
        raise ValueError(_explain(values, kind)) from None


def to_values(value: Any) -> dict[str, Any]:
    """Return the values of a dataclass for JSON, without fields that have their default.

    So a new field with a default changes neither bytes nor digests of files that do not use it.
    """
    found = {field: getattr(value, field.name) for field in fields(value)}
    return {
        field.name: msgspec.to_builtins(part)
        for field, part in found.items()
        if field.default is MISSING or part != field.default
    }


def _explain(value: Any, kind: Any, where: str = "") -> str:
    """Return which part msgspec refuses (the innermost), its value, and what was expected."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        refusal = str(error)
    else:
        return ""
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    parts: list[tuple[Any, Any, str]] = []
    if is_dataclass(kind) and isinstance(value, dict):
        before = f"{where}." if where else ""
        required = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
        missing = [name for name in required if name not in value]
        if missing:
            return f"lacks {', '.join(before + name for name in missing)}"
        hints = get_type_hints(kind, include_extras=True)  # pyright: ignore[reportArgumentType]
        parts = [(value[name], hints[name], before + name) for name in hints if name in value]
    elif get_origin(kind) in (list, tuple) and isinstance(value, list):
        parts = [(part, get_args(kind)[0], f"{where}[{i}]") for i, part in enumerate(value)]
    elif get_origin(kind) is dict and isinstance(value, dict):
        parts = [(part, get_args(kind)[1], f"{where}.{key}") for key, part in value.items()]
    for part in parts:
        if inner := _explain(*part):
            return inner
    expected, _, _ = refusal.partition(", got ")
    for theirs, ours in (("`array`", "a list"), ("`object`", "an object"), ("`", "")):
        expected = expected.replace(theirs, ours)
    shown = repr(value)[:_SHOWN]
    return f"is damaged: {where or 'all'} is {shown}, {expected[0].lower()}{expected[1:]}"
