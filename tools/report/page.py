"""The page: one HTML file with all that it needs, and nothing that is fetched."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from evaluation.figures import more_is_better, ordered
from tools.report.configuration import Change
from tools.report.curves import curves
from tools.report.insight import Insight
from tools.report.run_facts import RunFacts

_CARDS = ("knn_top1", "linear_top1", "label_map", "view_map", "copy_map")
_CARDS += ("multi_label_knn_map", "multi_label_map")


@dataclass
class RunPart:
    """What the page says of one run."""

    facts: RunFacts
    insight: Insight = field(default_factory=Insight)
    sheet: str = ""
    """Address of the picture of its views; "" if it could not be drawn."""
    before: Mapping[str, float] = field(default_factory=dict)
    """Figures of the weights that it began with."""
    changes: Sequence[Change] = ()
    """Its settings that are not as by default."""
    remarks: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Name of the method, and of its objective."""
        chosen = _mapping(self.facts.saved.get("method"))
        objective = _mapping(_mapping(chosen.get("init_args")).get("objective"))
        paths = [str(each.get("class_path", "")) for each in (chosen, objective)]
        return " with ".join(path.rpartition(".")[2] for path in paths if path)

    @property
    def views(self) -> str:
        """The view groups in words."""
        more = self.facts.saved.get("more_views")
        groups = [self.facts.saved.get("views"), *(more if isinstance(more, list) else [])]
        return " and ".join(
            f"{each.get('count')} of {each.get('size')} px" for each in map(_mapping, groups)
        )

    @property
    def which(self) -> str:
        """Which images are looked at."""
        count, step = f"{self.insight.samples:,}", f"at step {self.insight.step or 0:,}"
        if self.insight.held_out:
            return f"The first {count} images of the evaluation set, {step}"
        return (
            f"This run has no evaluation set: these are the first {count} images of the set that "
            f"it trains on, {step}"
        )

    @property
    def yaml(self) -> str:
        """The whole configuration."""
        return yaml.safe_dump(dict(self.facts.saved), sort_keys=False, allow_unicode=True)

    @property
    def hardware(self) -> dict[str, str]:
        """What it ran on."""
        return self.facts.hardware()

    def said(self) -> list[str]:
        """Return all remarks."""
        return [*self.facts.remarks(), *self.remarks, *self.insight.remarks]


def render(runs: Sequence[RunPart], *, machine: Mapping[str, str], refresh: float | None) -> bytes:
    """Return the page. Every text of a run, of a shard set or of a file is escaped.

    Args:
        runs: one or more.
        machine: that makes the page, {name: text}.
        refresh: after how many seconds a browser reads the page again; None for a finished one.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tools.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    data = _data(runs)
    text = environment.get_template("page.html").render(
        title=runs[0].facts.name if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=runs,
        cards=_cards(runs[0]) if len(runs) == 1 else [],
        remarks=[remark for run in runs for remark in _named(run, several=len(runs) > 1)],
        has_curves=any(run["curves"] for run in data["runs"]),
        table=_table(runs),
        settings=_settings(runs),
        machine=machine,
        refresh=refresh,
        data=data,
        css=Markup(_file("page.css")),  # our own, and no text of anybody's in it
        js=Markup(_file("page.js")),
        plotly=_plotly(),
    )
    return text.encode("utf-8", errors="replace")


def _named(run: RunPart, *, several: bool) -> Iterator[str]:
    for remark in dict.fromkeys(run.said()):
        known = not several or remark.startswith(run.facts.name)
        yield remark if known else f"{run.facts.name}: {remark}"


def _data(runs: Sequence[RunPart]) -> dict[str, Any]:
    """Return what the script of the page draws; equal pictures are there once."""
    sprites: dict[Any, int] = {}
    pictures, maps = [], []
    for run in runs:
        if run.insight.map is None:
            continue
        drawn = dict(run.insight.map)
        picture, root = drawn.pop("sprite"), drawn.pop("set")
        key = (root, len(drawn["name"]))
        if key not in sprites:
            sprites[key] = len(pictures)
            pictures.append(picture)
        maps.append(drawn | {"sprite": sprites[key]})
    lines = [{"name": run.facts.name, "curves": curves(run.facts.records)} for run in runs]
    return {"runs": lines, "maps": maps, "sprites": pictures}


def _cards(run: RunPart) -> list[dict[str, str]]:
    """Return the figures that are asked for first."""
    before = {key: text for key, _, text in ordered(run.before)}
    return [
        {"name": name, "value": text, "before": before.get(key, "")}
        for key, name, text in ordered(run.facts.figures)
        if key in _CARDS
    ]


def _table(runs: Sequence[RunPart]) -> dict[str, Any]:
    """Return columns and rows of the evaluations; of shares, the best column is named."""
    columns: list[dict[str, str]] = []
    figures: list[Mapping[str, float]] = []
    for run in runs:
        weights = run.facts.saved.get("weights")
        began = "before training" if weights else "random encoder"
        step = f"step {run.facts.evaluation.get('step', 0):,}"
        for what, found in ((began, run.before), (step, run.facts.figures)):
            if found:
                columns.append({"run": run.facts.name, "what": what})
                figures.append(found)
    rows = []
    everything = {key: value for found in reversed(figures) for key, value in found.items()}
    texts = [{key: text for key, _, text in ordered(found)} for found in figures]
    for key, name, _ in ordered(everything):
        cells = [of_column.get(key, "") for of_column in texts]
        values = [found.get(key, float("-inf")) for found in figures]
        compared = len(values) > 1 and more_is_better(key)
        best = max(range(len(values)), key=values.__getitem__) if compared else None
        rows.append({"name": name, "cells": cells, "best": best})
    return {"columns": columns, "rows": rows}


def _settings(runs: Sequence[RunPart]) -> list[dict[str, Any]]:
    """Return a row for each setting that a run has not as by default."""
    found = [{change.name: change for change in run.changes} for run in runs]
    rows = []
    for name in dict.fromkeys(name for changes in found for name in changes):
        default = next(changes[name].default for changes in found if name in changes)
        values = [changes[name].value if name in changes else default for changes in found]
        differs = len(set(values)) > 1
        rows.append({"name": name, "cells": values, "default": default, "differs": differs})
    return rows


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a part of a configuration, which may be of another version."""
    return value if isinstance(value, dict) else {}


def _file(name: str) -> str:
    return resources.files("tools.report").joinpath(name).read_text()


@cache
def _plotly() -> str:
    """Return Plotly's script, compressed: a third of its size."""
    from plotly.offline import get_plotlyjs

    # Without the time, so that the same runs make the same page.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
