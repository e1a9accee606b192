"""Finished runs of earlier comparisons, so that a long study is done in parts, or by machines.

Each part has a comparison.json; what one has of this comparison's variants and seeds is taken as it
is, with the machine and the commit that it was made on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.compare.plan import Plan
from tools.compare.variants import Variant
from training.surroundings import without_absolute_paths

_MADE_ON = ("date", "commit", "cpu", "cores", "gpu")


def made_on(surroundings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of the surroundings of each run."""
    return {name: surroundings.get(name) for name in _MADE_ON}


class Earlier:
    """What earlier comparisons have of a plan.

    Args:
        files: their comparison.json.
        plan: the comparison that they are parts of.

    Raises:
        ValueError: a file is none of a comparison, or of another budget, or of other settings.
    """

    def __init__(self, files: Sequence[Path], plan: Plan) -> None:
        self._found: dict[tuple[str, str, int], dict[str, Any]] = {}
        compared = {variant.name: variant for variant in plan.compared}
        for path in files:
            record = _read(path)
            _check(record, plan, path)
            for each in record["variants"]:
                if each["name"] in compared:
                    _check_settings(each, compared[each["name"]], path)
            for_all = made_on(record["surroundings"])
            for kind, figures in (("runs", "final"), ("random", "figures")):
                for entry in record[kind]:
                    whole = figures in entry and (not plan.evaluate or "evaluated" in entry)
                    if whole and entry["variant"] in compared:
                        known = {"made_on": for_all} | entry
                        self._found.setdefault((kind, entry["variant"], entry["seed"]), known)

    def run(self, variant: Variant, seed: int) -> dict[str, Any] | None:
        """Return the entry of a finished run, if there is one."""
        return self._found.get(("runs", variant.name, seed))

    def random(self, variant: Variant, seed: int) -> dict[str, Any] | None:
        """Return the entry of a random encoder, if there is one."""
        return self._found.get(("random", variant.name, seed))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        _ = record["budget"], record["variants"], record["runs"], record["random"]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no comparison.json of tools.compare.") from None
    return record


def _check(record: dict[str, Any], plan: Plan, path: Path) -> None:
    """Refuse what was measured in another way."""
    mine = {
        "budget": plan.budget.facts(),
        "points": plan.points,
        "processes": plan.processes,
        "evaluate": without_absolute_paths(list(plan.evaluate)),
    }
    for name, value in mine.items():
        if record.get(name) != value:
            raise ValueError(
                f"{path} has {name} {record.get(name)}, this comparison {value}: its runs cannot "
                "stand in one table with these."
            )


def _check_settings(then: dict[str, Any], variant: Variant, path: Path) -> None:
    """Refuse runs of other settings under the same name."""
    from training.settings import of_today  # imports every network, for seconds

    now = json.loads(json.dumps(without_absolute_paths(variant.resolved)))
    was = of_today(then["resolved"], now)
    differing = [f"{name}: {was[name]}, not {now[name]}" for name in now if was[name] != now[name]]
    if differing:
        raise ValueError(f"{path} has {variant.name} with other settings: {'; '.join(differing)}.")
