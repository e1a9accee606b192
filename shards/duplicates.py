"""Images with equal bytes: a copy of an image is a false negative in a ranking."""

import numpy as np
from numpy.typing import NDArray


def count_copies(halves: NDArray[np.uint64]) -> int:
    """Return how many images have the content of an earlier one. Sorts its argument.

    Args:
        halves: the first 8 bytes of each image's hash. Among 10⁸ different images, two have equal
            first 8 bytes with a probability of 3 in 10,000. The count is then one too high.
    """
    halves.sort()
    return int(np.count_nonzero(halves[1:] == halves[:-1]))


def groups_of_copies(contents: NDArray[np.void]) -> list[NDArray[np.integer]]:
    """Return the positions of images with the same content, a group each, the largest first."""
    halves = np.ascontiguousarray(contents).view(np.uint64).reshape(-1, 2)
    # By one half first, which leaves few images to sort by both.
    half = np.sort(halves[:, 0])
    half = np.unique(half[1:][half[1:] == half[:-1]])
    if not len(half):
        return []
    nearest = np.minimum(np.searchsorted(half, halves[:, 0]), len(half) - 1)
    suspects = np.flatnonzero(half[nearest] == halves[:, 0])
    halves = halves[suspects]
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves, order = halves[order], suspects[order]
    begins = np.flatnonzero(np.r_[True, np.any(halves[1:] != halves[:-1], axis=1)])
    sizes = np.diff(np.r_[begins, len(order)])
    groups = [
        np.sort(order[begin : begin + size])
        for begin, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True)
    ]
    return sorted(groups, key=lambda group: (-len(group), group[0]))
