"""YAML that may be anybody's: what it unfolds to is counted before anything is built of it.

A few lines of aliases (`*name`) can stand for more nodes than there is memory. Recipes, the
configurations of runs and the settings of a machine's pipeline are all read here.
"""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import yaml
from jsonargparse import get_loader

LONGEST = 100_000
"""Characters and nodes of a text, aliases unfolded; recipes have a few thousand."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_jsonargparse_load = get_loader("yaml")
# PyYAML's own for a tag whose text does not fit, such as !!bool x, !!int "" or 2001-99-99.
_MALFORMED = (ValueError, LookupError, AttributeError, TypeError, OverflowError)


def load(text: bytes | str) -> Any:
    """Return plain values.

    Raises:
        yaml.YAMLError: it is no YAML, or unfolds to too much.
    """
    return _built(yaml.safe_load, text)


def load_setting(text: str) -> Any:
    """Return plain values as jsonargparse reads numbers: 1e-3 is one."""
    return _built(_jsonargparse_load, text)


def dump(values: dict[str, Any]) -> str:
    """Return YAML of plain values that both `load` and `load_setting` read as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e-3, which is a number to jsonargparse and none to PyYAML."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        same = load_setting(text) == text
    except yaml.YAMLError:  # PyYAML quotes it itself
        same = True
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if same else "'")


_Dumper.add_representer(str, _quoted)


def _built(build: Any, text: bytes | str) -> Any:
    try:
        _refuse_too_much(text if isinstance(text, str) else text.decode())
        return build(text)
    except _MALFORMED as error:
        raise yaml.YAMLError(f"a value does not fit its type ({error})") from error


def _refuse_too_much(text: str) -> None:
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters; expected {LONGEST:,} at most")
    if "*" in text:  # else there is no alias, and no more nodes than characters
        for node in yaml.compose_all(text, _LOADER):
            size = _size(node, {})
            if size > LONGEST:
                much = f"{size:,.0f} characters" if isfinite(size) else "a text without an end"
                raise yaml.YAMLError(
                    f"its aliases (*) unfold to {much}; expected {LONGEST:,} characters at most"
                )


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the characters and nodes that a node unfolds to; `known` has those counted before."""
    if not isinstance(node, yaml.CollectionNode):
        return 1.0 + len(node.value if node is not None else "")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = inf  # met again below itself, it has no end
    size = 1.0
    for part in node.value:
        for each in part if isinstance(part, tuple) else (part,):  # of a mapping: key and value
            size += _size(each, known)
    known[id(node)] = size
    return size
