"""What is compared: recipes with the settings that vary, and whether that is fair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.settings import Settings

# What the recipes must agree in; --allow_differences takes these names.
TERMS = ("encoder", "weights", "shards", "evaluation", "precision", "policy")


def _rule(name: str) -> Mapping[str, Any]:
    """Return what a setting says of itself; see `pipeline.setting`."""
    from training.settings import RULES  # here: it imports every network, for seconds

    return RULES.get(name, {"compare": "own", "flag": ""})


@dataclass(frozen=True)
class Variant:
    """A recipe with its values of the settings that vary."""

    name: str
    """Name of its folders: the recipe's name, and the values that vary."""
    recipe: Path
    flags: tuple[str, ...]
    """Flags that --vary adds to the recipe's command line."""
    settings: Settings

    @property
    def resolved(self) -> dict[str, Any]:
        """All settings, as plain values."""
        return self.settings.resolved

    @property
    def views(self) -> int:
        """Views of a sample in a step, over all groups."""
        return sum(group["count"] for group in _groups(self.resolved))

    @property
    def image_views(self) -> int:
        """Views that the encoder is shown in a step, over all ranks."""
        return self.resolved["batch_size"] * self.views


def variants(
    recipes: Sequence[Path], vary: Sequence[str], more: Sequence[str], *, where_known: bool
) -> list[Variant]:
    """Return every recipe with every combination of values, each checked by parsing it.

    Args:
        recipes: YAML files; their names, without folders, must differ.
        vary: one KEY=VALUE,VALUE… a setting; commas in brackets do not separate.
        more: further flags of train.py, for all.
        where_known: vary a setting in the recipes that have it, instead of refusing the others.

    Raises:
        ValueError: a setting is unknown, named twice or impossible.
    """
    _refuse_own(more)
    axes = [_axis(text) for text in vary]
    for key, values in axes:
        _refuse_own([f"--{key}"])
        if len({k for k, _ in axes}) < len(axes) or len(set(values)) < len(values):
            raise ValueError(f"--vary names a setting or a value of {key} twice; name each once.")
    found: list[Variant] = []
    for recipe in recipes:
        base = _parse(recipe, more)
        mine = [axis for axis in axes if has(base.resolved, axis[0])]
        for key, _ in axes:
            if not where_known and not has(base.resolved, key):
                raise ValueError(
                    f"{recipe} has no setting {key}, which --vary names. Leave that recipe out, or "
                    "vary it in the recipes that have it: --vary_where_known true."
                )
        for values in product(*(values for _, values in mine)):
            pairs = [(key, value) for (key, _), value in zip(mine, values, strict=True)]
            flags = tuple(word for key, value in pairs for word in (f"--{key}", value))
            words = [recipe.stem, *(f"{_short(k, axes)}={v}" for k, v in pairs)]
            name = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", "-".join(words)).strip("_")
            if any(name == other.name for other in found):
                raise ValueError(
                    f"two recipes or variants are called {name}, and would share their folders; "
                    "rename a recipe."
                )
            settings = _parse(recipe, [*more, *flags]) if flags else base
            found.append(Variant(name, recipe, flags, settings))
    for key, _ in axes:
        if not any(f"--{key}" in variant.flags for variant in found):
            raise ValueError(f"no recipe has a setting {key}, which --vary names.")
    return found


def terms(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that recipes must agree in, by the names of TERMS."""
    from training.settings import JUDGED  # imports every network, for seconds

    looks = [{k: v for k, v in group.items() if k != "count"} for group in _groups(resolved)]
    return {
        "encoder": resolved["method"]["init_args"].get("encoder"),
        "weights": resolved["weights_sha256"],
        "shards": resolved["shards"],
        "evaluation": {name.removeprefix("evaluation_"): resolved[name] for name in JUDGED},
        "precision": {name: resolved[name] for name in ("device", "mixed_precision")},
        # Equal groups count once: the number of views may differ.
        "policy": [json.loads(look) for look in sorted({json.dumps(each) for each in looks})],
    }


def check_terms(compared: Sequence[Variant], allowed: Sequence[str]) -> dict[str, list[str]]:
    """Refuse recipes that differ in more than a fair comparison allows.

    Args:
        compared: one or more.
        allowed: the names of TERMS in which they may differ.

    Returns:
        The differences that were allowed, by name.

    Raises:
        ValueError: the recipes differ in other terms.
    """
    found: dict[str, list[str]] = {}
    first, *others = compared
    for name in TERMS:
        here = terms(first.resolved)[name]
        apart: dict[tuple[str, str], list[str]] = {}
        for other in others:
            there = terms(other.resolved)[name]
            if here != there:
                apart.setdefault(_apart(here, there), []).append(other.name)
        if apart:
            found[name] = [
                f"{mine} in {first.name}, {theirs} in {' and '.join(names)}"
                for (mine, theirs), names in apart.items()
            ]
    refused = {name: texts for name, texts in found.items() if name not in allowed}
    if refused:
        listed = "; ".join(f"{name}: {text}" for name, texts in refused.items() for text in texts)
        raise ValueError(
            f"the recipes differ in what a comparison holds fixed ({listed}). Set it to the same "
            "value for all after --, such as -- --shards DIR, or allow the difference with "
            f"--allow_differences {' '.join(refused)}"
        )
    return found


def summary(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which methods may differ, for people."""
    method = resolved["method"]
    views = [f"{group['count']} × {group['size']} px" for group in _groups(resolved)]
    objective = method["init_args"].get("objective")
    given = (objective or {}).get("init_args") or {}
    arguments = ", ".join(f"{name}={value}" for name, value in given.items())
    return {
        "method": _last(method["class_path"]),
        "objective": f"{_last(objective['class_path'])}({arguments})" if objective else "",
        "views": " + ".join(views),
        "batch_size": resolved["batch_size"],
        "optimizer": resolved["optimizer"],
        "learning_rate": resolved["learning_rate"],
        "weight_decay": resolved["weight_decay"],
        "warmup_epochs": resolved["warmup_epochs"],
    }


def has(resolved: dict[str, Any], key: str) -> bool:
    """Whether a dotted setting exists; the words init_args may be left out."""
    value: Any = resolved
    for word in plain_key(key).split("."):
        if isinstance(value, dict) and word not in value and "init_args" in value:
            value = value["init_args"]
        if not isinstance(value, dict) or word not in value:
            return False
        value = value[word]
    return True


def plain_key(key: str) -> str:
    """Return a dotted setting without init_args, which flags do not need."""
    return key.replace(".init_args.", ".")


def _parse(recipe: Path, more: Sequence[str]) -> Settings:
    from training.settings import parse  # imports every network, for seconds
    from training.weights import recorded

    length = ["--epochs", "null", "--steps", "1", "--trackers", "[]", "--run", "."]
    try:
        return recorded(parse(["--config", str(recipe), *more, *length]))
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from error


def _refuse_own(flags: Sequence[str]) -> None:
    """Refuse flags that would be overridden."""
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        rule = _rule(name)
        if flag.startswith("--") and rule["compare"] == "set":
            instead = f"; give {rule['flag']} instead" if rule["flag"] else ""
            raise ValueError(f"{flag} is what the comparison sets for every run{instead}.")


def _axis(text: str) -> tuple[str, list[str]]:
    """Return key and values of KEY=VALUE,VALUE."""
    key, separator, rest = text.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", rest)]
    if not separator or not key or not all(values):
        raise ValueError(f"--vary {text}; expected a setting and its values, KEY=VALUE,VALUE.")
    return plain_key(key.strip().removeprefix("--")), values


def _short(key: str, axes: Sequence[tuple[str, list[str]]]) -> str:
    """Return the shortest end of a dotted name that is unique among the axes."""
    words = key.split(".")
    for count in range(1, len(words) + 1):
        end = ".".join(words[-count:])
        if sum(f".{other}".endswith(f".{end}") for other, _ in axes) == 1:
            return end
    return key


def _apart(here: Any, there: Any) -> tuple[str, str]:
    """Return two values as text; of mappings and lists, only where they differ."""
    if isinstance(here, list) and isinstance(there, list):
        mine = [each for each in here if each not in there]
        theirs = [each for each in there if each not in here]
        if len(mine) != 1 or len(theirs) != 1:
            texts = [", ".join(map(_text, side)) or "nothing more" for side in (mine, theirs)]
            return texts[0], texts[1]
        here, there = mine[0], theirs[0]
    if isinstance(here, dict) and isinstance(there, dict):
        if here.get("class_path") != there.get("class_path"):
            return _last(here["class_path"]), _last(there["class_path"])
        texts = []
        for name in [k for k in {**here, **there} if here.get(k) != there.get(k)]:
            label = "" if name == "init_args" else f"{name} "
            texts.append([f"{label}{text}" for text in _apart(here.get(name), there.get(name))])
        mine, theirs = (", ".join(side) for side in zip(*texts, strict=True))
        return mine, theirs
    return _text(here), _text(there)


def _text(value: Any) -> str:
    if isinstance(value, dict) and "policy" in value:
        return f"{value['size']} px {_last(value['policy']['class_path'])}"
    return str(value)


def _groups(resolved: dict[str, Any]) -> list[dict[str, Any]]:
    return [resolved["views"], *resolved["more_views"]]


def _last(class_path: str) -> str:
    return class_path.rpartition(".")[2]
