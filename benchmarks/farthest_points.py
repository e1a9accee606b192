"""Choose images that are unlike each other, as a list for tools.select: greedy farthest points.

    python -m tools.embed ENCODER data/coco/train --out features.npz
    python -m benchmarks.farthest_points features.npz --count 1000 --out ids.txt
    python -m tools.select data/coco/train diverse --ids ids.txt

The first image is the one nearest to the mean of all; each next one is the image whose nearest
chosen image is farthest, by the cosine of their features (Gonzalez 1985, k-centres).
docs/ranking.md asks with it whether ranking gains most where few scenes are alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards import durable
from training.command_line import run_function


def main(features: Path, *, count: int, out: Path) -> None:
    """Write the ids of images that are unlike each other.

    Args:
        features: npz file of tools.embed.
        count: how many images.
        out: text file to write, one id a line.
    """
    with np.load(features) as held:
        id_N, h_NF = held["id"], np.asarray(held["feature"], dtype=np.float32)
    if not 1 <= count <= len(id_N):
        raise ValueError(f"count={count}; expected 1 to {len(id_N)}, the images of {features}.")
    chosen, cosine = farthest_points(h_NF, count)
    durable.replace(
        out, ["".join(f"id={each}\n" for each in sorted(id_N[chosen].tolist())).encode()]
    )
    print(f"{count:,} of {len(id_N):,} images; the last one's nearest has a cosine of {cosine:.3f}")


def farthest_points(h_NF: NDArray[np.floating], count: int) -> tuple[list[int], float]:
    """Return places of images, in the order of choice, and the last one's highest cosine.

    Args:
        h_NF: features; of any length but 0.
        count: how many images.
    """
    h_NF = h_NF / np.linalg.norm(h_NF, axis=1, keepdims=True)
    chosen = [int((h_NF @ h_NF.mean(0)).argmax())]
    nearest_N = h_NF @ h_NF[chosen[0]]
    cosine = 1.0
    while len(chosen) < count:
        nearest_N[chosen[-1]] = np.inf
        chosen.append(int(nearest_N.argmin()))
        cosine = float(nearest_N[chosen[-1]])
        nearest_N = np.maximum(nearest_N, h_NF @ h_NF[chosen[-1]])
    return chosen, cosine


if __name__ == "__main__":
    run_function(main)
