"""Which of the evaluated sets have images that a run was trained on."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.overlap import shared_images
from shards.layout import open_shards


def pretrained_on(
    shards: str, data: Mapping[str, Mapping[str, str | None]], *, all_sets: bool
) -> dict[str, list[str]]:
    """Return a remark on each shard set that shares images, by the name of the evaluated set.

    Args:
        shards: what the run was trained on.
        data: shard sets, by the names of the evaluated sets.
        all_sets: look at training sets too. Of a run's own they are often what it was trained on,
            without the labels, and no news.
    """
    try:
        trained = open_shards(shards)
    except (OSError, ValueError):
        line = f"whether images were trained on is not known: {shards} cannot be opened"
        return {name: [line] for name in data}
    roles = ("test", "train") if all_sets else ("test",)
    places = [(name, root) for name, sets in data.items() for role in roles if (root := sets[role])]
    lines = shared_images([open_shards(root) for _, root in places], trained)
    found: dict[str, list[str]] = {name: [] for name in data}
    for (name, _), line in zip(places, lines, strict=True):
        if line:
            found[name].append(f"{line}, which was trained on")
    return found
