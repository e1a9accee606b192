"""What an encoder holds for alike: neighbours, false neighbours, and the views it cannot find."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.neighbours import Neighbours
from evaluation.retrieval import view_average_precision
from evaluation.score import exact_float32


@dataclass(frozen=True)
class FalseNeighbours:
    """Images whose most similar other has another label."""

    share: float
    """Of the images that are labelled, and have a labelled neighbour."""
    pairs: list[tuple[int, int, float]]
    """Positions of image and neighbour, and their cosine: the most similar first, each once."""
    confusions: list[tuple[int, int, int]]
    """A label, its neighbour's and how often, the most frequent first."""


@dataclass(frozen=True)
class HardQuery:
    """A view whose sample's other views stand far down its ranking."""

    average_precision: float
    query: int
    """Row v * A + a of view v of sample a."""
    own: list[tuple[int, int]]
    """Row and position of each of the sample's other views."""
    ranking: list[int]
    """Rows of the first of the ranking."""


def shown_queries(label_N: Tensor, count: int) -> list[int]:
    """Return positions of images to show neighbours of: the first of each class in turn."""
    seen = Counter[int]()
    turns = []
    for position, label in enumerate(label_N.tolist()):
        turns.append((seen[label], position))
        seen[label] += 1
    return [position for _, position in sorted(turns)[:count]]


def false_neighbours(neighbours: Neighbours, label_N: Tensor, count: int) -> FalseNeighbours | None:
    """Return the most similar pairs of different labels; None if no two neighbours are labelled.

    Args:
        neighbours: of all images; the first of each counts.
        label_N: labels, -1 for none.
        count: how many pairs and confusions are kept.
    """
    nearest_N, score_N = neighbours.position_NK[:, 0], neighbours.best_N
    judged_N = (label_N >= 0) & (nearest_N >= 0) & (label_N[nearest_N] >= 0)
    wrong_N = judged_N & (label_N != label_N[nearest_N])
    if not bool(judged_N.any()):
        return None
    wrong = wrong_N.nonzero()[:, 0]
    pairs: dict[frozenset[int], tuple[int, int, float]] = {}
    for image in wrong[score_N[wrong].argsort(descending=True, stable=True)].tolist():
        other = int(nearest_N[image])
        pairs.setdefault(frozenset((image, other)), (image, other, float(score_N[image])))
    labels = zip(label_N[wrong].tolist(), label_N[nearest_N[wrong]].tolist(), strict=True)
    return FalseNeighbours(
        share=int(wrong_N.sum()) / int(judged_N.sum()),
        pairs=list(pairs.values())[:count],
        confusions=[(*pair, times) for pair, times in Counter(labels).most_common(count)],
    )


def hardest_queries(z_VAD: Tensor, *, count: int, first: int) -> tuple[list[HardQuery], float]:
    """Return the views with the lowest average precision, one a sample, and the mean of all views.

    Args:
        z_VAD: embeddings.
        count: how many queries.
        first: how much of each ranking.
    """
    V, A, _ = z_VAD.shape
    ap_Q = view_average_precision(z_VAD)
    z_QD = F.normalize(z_VAD.float(), dim=-1).flatten(0, 1)
    hardest: dict[int, int] = {}
    for query in ap_Q.argsort(stable=True).tolist():
        hardest.setdefault(query % A, query)
        if len(hardest) == count:
            break
    found = []
    for sample, query in hardest.items():
        with exact_float32(z_QD.device):
            score_G = z_QD @ z_QD[query]
        score_G[query] = -torch.inf  # not itself
        ranking = score_G.argsort(descending=True, stable=True)
        own = [v * A + sample for v in range(V) if v * A + sample != query]
        # As average precision counts it: ties stand before.
        places = [int((score_G >= score_G[row]).sum()) for row in own]
        found.append(
            HardQuery(
                average_precision=float(ap_Q[query]),
                query=query,
                own=sorted(zip(own, places, strict=True), key=lambda each: each[1]),
                ranking=ranking[:first].tolist(),
            )
        )
    return found, float(ap_Q.mean())
