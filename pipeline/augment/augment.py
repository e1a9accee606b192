"""Defines an augmentation, and the source of its random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from pipeline.dali import DataNode, fn, types


class Draw:
    """Random parameters for the V views of a sample, drawn on the CPU whatever the device.

    The CPU and the GPU graph therefore see the same numbers, and one small DALI checkpoint restores
    all of them. Every operator gets its own seed, by the order of the draws: an augmentation that
    is added at the end of a policy does not change the draws before it.

    Args:
        views: V, the number of views of each sample.
        seed: entropy of this stream of numbers: the run's seed, the rank and the view group.
    """

    def __init__(self, views: int, seed: tuple[int, ...]) -> None:
        self.views = views
        self._seeds = np.random.SeedSequence(seed)

    def seed(self) -> int:
        """Return the seed of the next random operator."""
        return int(self._seeds.spawn(1)[0].generate_state(1)[0])

    def uniform(self, low: float, high: float) -> DataNode:
        """Return V numbers, uniform in [low, high); float32 [V]."""
        unit = fn.random.uniform(range=(0.0, 1.0), shape=[self.views], seed=self.seed())
        return low + (high - low) * unit  # DALI would refuse a range with high == low

    def coin(self, probability: float, *, trailing: int = 0) -> DataNode:
        """Return V numbers, 1 with `probability`, else 0; float32 [V, and `trailing` ones]."""
        shape = [self.views] + [1] * trailing
        # coin_flip draws integers only.
        flip = fn.random.coin_flip(probability=probability, shape=shape, seed=self.seed())
        return fn.cast(flip, dtype=types.FLOAT)


class Augment(ABC):
    """One random change of the pixels of a view; its fields are its settings.

    A field `probability` says what part of the views changes; tests set it to 0 and 1. (Color has
    `jitter` and `grayscale` for it.)

    Color and Solarize change each pixel separately. They also have `factors`, so that the last pass
    can do them (see `Policy.late` and `pipeline.finish`), which saves a pass over the pixels.
    """

    @abstractmethod
    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """Return the changed views.

        Args:
            views: uint8 frames [V, H, W, C] of one sample, layout "FHWC", on the CPU or the GPU.
            draw: random numbers, one per view, on the CPU; `.gpu()` moves them.
        """


def check_probability(name: str, value: float) -> None:
    """Refuse a value that is not a probability.

    Raises:
        ValueError: `value` is outside 0..1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is not a probability; give a number from 0 to 1.")


def check_interval(name: str, interval: tuple[float, float], *, above: float) -> None:
    """Refuse an interval that is empty or reaches down to `above`.

    Raises:
        ValueError: not `above` < low <= high.
    """
    low, high = interval
    if not above < low <= high:
        raise ValueError(
            f"{name}=[{low}, {high}] is not an interval above {above:g}; give [low, high] with "
            f"{above:g} < low <= high."
        )
