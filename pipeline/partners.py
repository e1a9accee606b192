"""Cuts views from the images of a sample in turn: the image, its partner, the image.

Turns are counted through all view groups, so that two groups of one view each, such as BYOL's two
policies, also get one view of either image.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dali import DataNode, fn


def shares(counts: Sequence[int], images: int) -> list[dict[int, int]]:
    """Return for each image how many views of each group are cut from it: {group: views}.

    Args:
        counts: views of each group.
        images: how many images take turns.
    """
    of_image: list[dict[int, int]] = [{} for _ in range(images)]
    group_of_view = [group for group, count in enumerate(counts) for _ in range(count)]
    for view, group in enumerate(group_of_view):
        share = of_image[view % images]
        share[group] = share.get(group, 0) + 1
    return of_image


def alternate(cuts: Sequence[DataNode], *, views: int, size: int) -> DataNode:
    """Return the frames of one image, or of two in turn.

    Args:
        cuts: uint8 [V', size, size, 3], layout "FHWC", of each image; the second of two has as
            many frames as the first, or one fewer.
        views: V, of both images together.
        size: height and width of a view, in pixels.

    Returns:
        uint8 [V, size, size, 3], layout "FHWC": first of each, second of each, …
    """
    if len(cuts) == 1:
        return cuts[0]
    first, second = cuts
    both = views // 2
    in_turn = fn.stack(first if views % 2 == 0 else first[:both], second, axis=1)
    # `stack` drops the layout.
    in_turn = fn.reshape(in_turn, shape=[2 * both, size, size, 3], layout="FHWC")
    return in_turn if views % 2 == 0 else fn.cat(in_turn, first[both:], axis=0)
