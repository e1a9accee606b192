"""What a run's networks say: all that takes long, and stays as it is until the next checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.figures import NAMES
from evaluation.left_out import leaving_out
from evaluation.neighbours import Neighbours, nearest_others
from evaluation.protocol import Progressed
from evaluation.suite import FROZEN, ONLINE, Suite
from model.method import Method
from shards.layout import ShardSet, open_shards
from shards.one_line import one_line
from shards.survey import rows_at
from tools.preview import contact_sheet, first_batch
from tools.report import embedding_map, findings, networks
from tools.report.networks import Looked, Networks
from tools.report.pictures import data_uri, sprite
from training import weights
from training.config import Config
from training.trained import device_of

ROWS = 8  # of neighbours, false neighbours, hardest queries
NEIGHBOURS = 6  # in a row
FIRST = 5  # of a hard query's ranking
OWN = 4  # of its own other views
SHEET_ROWS, WIDEST = 6, 1400  # of the views that the run trains on; pixels
RANKED = 512  # samples, by their views


@dataclass(frozen=True)
class Shown:
    """A picture with a line below it."""

    address: str
    caption: str
    mark: str = ""
    """right, wrong or query: decides its frame."""


@dataclass
class Insight:
    """What was found out about a run; what could not be is None, with a remark."""

    remarks: list[str] = field(default_factory=list)
    step: int | None = None
    held_out: bool = True
    samples: int = 0
    encoder: str = ""
    map: dict[str, Any] | None = None
    neighbours: list[list[Shown]] | None = None
    false: findings.FalseNeighbours | None = None
    false_rows: list[list[Shown]] = field(default_factory=list)
    confusions: list[tuple[str, str, int]] = field(default_factory=list)
    hardest: list[tuple[list[Shown], list[Shown], str]] | None = None
    """The query with its own other views, the first of its ranking, and what is to be said."""
    view_map: float = 0.0
    ranked: int = 0


def insight(path: Path, *, samples: int, device: str, say: Callable[[str], object]) -> Insight:
    """Look into a run's newest checkpoint.

    Args:
        path: folder of the run, or of one of its checkpoints.
        samples: how many images are mapped, at most.
        device: auto, cpu or gpu.
        say: is told what is being done.
    """
    found = Insight()
    with leaving_out("map, neighbours, hardest queries", found.remarks):
        opened = networks.open_networks(path, device)
        shard_set = opened.shard_set
        found.step, found.held_out = opened.step, opened.held_out
        found.samples = min(samples, len(shard_set))
        found.encoder = opened.encoder.describe()
        say(f"features of {found.samples:,} images")
        looked = networks.look(opened, found.samples)
        names = _names(shard_set, looked)
        with leaving_out("map", found.remarks):
            found.map = _map(found, shard_set, looked, names, say)
        with leaving_out("neighbours", found.remarks):
            near = nearest_others(looked.features.h_NF, count=NEIGHBOURS)
            _show_neighbours(found, shard_set, looked, names, near)
        if opened.method is not None:
            with leaving_out("hardest queries", found.remarks):
                say("views of held-out images" if opened.held_out else "views")
                _show_hardest(found, opened, opened.method)
        else:
            found.remarks.append("no hardest queries: the run has its encoder left, no checkpoint")
    return found


def training_views(config: Config) -> str:
    """Return a sheet of the views that a run trains on, as `python -m tools.preview` draws it."""
    batch = first_batch(config, open_shards(config.shards), SHEET_ROWS)
    return data_uri(contact_sheet(batch.views, config.normalisation), widest=WIDEST)


def before_training(
    config: Config, *, probe: bool, progress: Progressed
) -> tuple[Mapping[str, float], list[str]]:
    """Evaluate the weights that a run began with; return figures and remarks.

    Args:
        config: of the run, with random weights.
        probe: also fit the linear probe.
        progress: is told how far it is.
    """
    if config.evaluation_test is None:
        return {}, []
    device = device_of(config)
    weights.begin(config, config.method)
    sets = (config.evaluation_train, config.evaluation_queries, config.evaluation_references)
    train, queries, references = (open_shards(root) if root else None for root in sets)
    suite = Suite(
        test=open_shards(config.evaluation_test),
        train=train,
        queries=queries,
        references=references,
        group=config.views,
        device=device,
        autocast=config.autocast(),
        normalisation=config.normalisation,
        neighbours=config.evaluation_neighbours,
        temperature=config.evaluation_temperature,
        progress=progress,
    )
    method = config.method.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    evaluation = suite.run(method, FROZEN if probe else ONLINE)
    return {k: v for k, v in evaluation.figures.items() if k in NAMES}, evaluation.remarks


def _names(shard_set: ShardSet, looked: Looked) -> list[str]:
    """Return the keys of the samples, which come in stored order."""
    rows = rows_at(shard_set, np.arange(len(looked.features)))
    return [one_line(rows[place].key) for place in range(len(looked.features))]


def _class(shard_set: ShardSet, label: int) -> str:
    classes = shard_set.manifest.classes
    return one_line(classes[label]) if 0 <= label < len(classes) else ""


def _map(
    found: Insight,
    shard_set: ShardSet,
    looked: Looked,
    names: list[str],
    say: Callable[[str], object],
) -> dict[str, Any]:
    h_NF, labels = looked.features.h_NF, looked.features.label_N.tolist()
    if len(h_NF) < embedding_map.FEWEST:
        raise ValueError(f"{len(h_NF)} images are too few for one")
    if not bool(h_NF.isfinite().all()):
        raise ValueError("features are not finite: training has diverged")
    places, shares = embedding_map.pca(h_NF)
    maps: dict[str, Any] = {"PCA": _columns(places)}
    with leaving_out("UMAP", found.remarks):
        say("UMAP")
        maps["UMAP"] = _columns(embedding_map.umap(h_NF))
    address, columns, size = sprite(looked.pictures, networks.SMALL)
    known = sorted({label for label in labels if label >= 0})
    return {
        "maps": maps,
        "shares": [round(share, 4) for share in shares],
        "classes": {label: _class(shard_set, label) or str(label) for label in known},
        "label": labels,
        "name": names,
        "sprite": {"address": address, "columns": columns, "size": size},
        "set": f"{shard_set.root}",
    }


def _columns(places: np.ndarray) -> dict[str, list[float]]:
    x, y = ([float(f"{each:.4g}") for each in column] for column in places.T.tolist())
    return {"x": x, "y": y}


def _show_neighbours(
    found: Insight, shard_set: ShardSet, looked: Looked, names: list[str], near: Neighbours
) -> None:
    label_N = looked.features.label_N

    def shown(place: int, of: int | None = None, score: float = 0.0) -> Shown:
        label = int(label_N[place])
        called = _class(shard_set, label) or names[place]
        address = data_uri(looked.pictures[place])
        if of is None:
            return Shown(address, called, "query")
        judged = label >= 0 and int(label_N[of]) >= 0
        mark = ("right" if label == int(label_N[of]) else "wrong") if judged else ""
        return Shown(address, f"{score:.2f} {called}" if judged else f"{score:.2f}", mark)

    found.neighbours = [
        [shown(place)]
        + [
            shown(other, place, score)
            for other, score in zip(
                near.position_NK[place].tolist(), near.score_NK[place].tolist(), strict=True
            )
            if other >= 0
        ]
        for place in findings.shown_queries(label_N, ROWS)
    ]
    found.false = findings.false_neighbours(near, label_N, ROWS)
    if found.false is not None:
        found.false_rows = [
            [shown(image), shown(other, image, score)] for image, other, score in found.false.pairs
        ]
        found.confusions = [
            (_class(shard_set, mine), _class(shard_set, other), times)
            for mine, other, times in found.false.confusions
        ]


def _show_hardest(found: Insight, opened: Networks, method: Method) -> None:
    looked = networks.look_at_views(opened, method, RANKED)
    A = looked.z_VAD.shape[1]
    pictures: Tensor = looked.pictures.flatten(0, 1)
    queries, found.view_map = findings.hardest_queries(looked.z_VAD, count=ROWS, first=FIRST)
    found.ranked, found.hardest = A, []
    for hard in queries:
        own = [Shown(data_uri(pictures[hard.query]), "query", "query")]
        own += [
            Shown(data_uri(pictures[row]), f"{position:,}.", "right")
            for row, position in hard.own[:OWN]
        ]
        first = [
            Shown(
                data_uri(pictures[row]),
                f"{place}.",
                "right" if row % A == hard.query % A else "wrong",
            )
            for place, row in enumerate(hard.ranking, start=1)
        ]
        more = f", {len(hard.own) - OWN} more not shown" if len(hard.own) > OWN else ""
        text = f"AP {100 * hard.average_precision:.1f} %{more}"
        found.hardest.append((own, first, text))
