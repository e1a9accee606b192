"""Defines an augmentation, and the source of its random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.dali import DataNode, fn, types


def next_seed(seeds: np.random.SeedSequence) -> int:
    """Return the next seed of a stream, for one random operator."""
    return int(seeds.spawn(1)[0].generate_state(1)[0])


class Draw:
    """Random parameters for the V views of a sample, drawn on the CPU whatever the device.

    The CPU and the GPU graph therefore see the same numbers, and one small DALI checkpoint restores
    all of them. Every operator gets its own seed, by the order of the draws: an augmentation that
    is added at the end of a policy does not change the draws before it.

    DALI runs the operators of the CPU one after the other, each for a quarter of a millisecond and
    more at a batch of 256, whatever it does. So draw what is needed, in few operators.

    Args:
        views: V, the number of views of each sample.
        seed: entropy of this stream of numbers: the run's seed, the rank and the view group.
        size: height and width of a view, in pixels.
    """

    def __init__(self, views: int, seed: tuple[int, ...], *, size: int) -> None:
        self.views = views
        self.size = size
        self._seeds = np.random.SeedSequence(seed)

    def seed(self) -> int:
        """Return the seed of the next random operator."""
        return next_seed(self._seeds)

    def uniform(self, low: float, high: float) -> DataNode:
        """Return V numbers, uniform in [low, high); float32 [V]."""
        seed = self.seed()
        if low == high:  # DALI would refuse this range
            return types.Constant(np.full(self.views, low, dtype=np.float32))
        return fn.random.uniform(range=(low, high), shape=[self.views], seed=seed)

    def choice(self, probability: float, *, chosen: int, otherwise: int) -> DataNode:
        """Return V numbers, `chosen` with a probability, else `otherwise`; int32 [V]."""
        return fn.random.choice(
            [otherwise, chosen],
            p=[1 - probability, probability],
            shape=[self.views],
            seed=self.seed(),
        )

    def units(self, count: int) -> DataNode:
        """Return `count` numbers for each view, uniform in [0, 1); float32 [V, count]."""
        shape = [self.views, count]
        return fn.random.uniform(range=(0.0, 1.0), shape=shape, seed=self.seed())


class Augment(ABC):
    """One random change of the pixels of a view; its fields are its settings.

    A field `probability` says what part of the views changes; tests set it to 0 and 1. (Color has
    `jitter` and `grayscale` for it.)
    """

    @abstractmethod
    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """Return the changed views.

        Args:
            views: uint8 frames [V, H, W, C] of one sample, layout "FHWC", on the CPU or the GPU.
            draw: random numbers, one per view, on the CPU; `.gpu()` moves them.
        """


class PixelAugment(Augment):
    """A random change of each pixel by itself, so that the last pass can do it.

    That saves a pass over the pixels and all of DALI's operators for its factors: they are reckoned
    on the training device (see `Policy.late` and `pipeline.finish`).
    """

    units: ClassVar[int]
    """Random numbers that a view takes, uniform in 0..1."""

    @abstractmethod
    def factors(self, units: Sequence[Any]) -> tuple[Any, ...]:
        """Return what the change depends on, float32 [V] each.

        Args:
            units: `self.units` times random numbers, float32 [V]: of DALI, or tensors of PyTorch.
                Their operators are the same: `+`, `*` and comparisons.
        """

    @abstractmethod
    def change(self, views: DataNode, factors: Sequence[DataNode]) -> DataNode:
        """Return the views changed within DALI; see `apply` and `factors`."""

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`."""
        units_VU = draw.units(self.units)
        return self.change(views, self.factors([units_VU[:, u] for u in range(self.units)]))


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
