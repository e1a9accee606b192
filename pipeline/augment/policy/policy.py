"""Defines a view policy: a crop, then augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipeline.augment.augment import Augment, Draw, PixelAugment
from pipeline.augment.blur import Blur
from pipeline.augment.color import Color
from pipeline.augment.crop import Crop, mirror
from pipeline.augment.solarize import Solarize
from pipeline.dali import DataNode


class Policy:
    """A crop, then any augmentations in their order; the named policies are subclasses.

    One operator draws all units of a view, random numbers that are uniform in 0..1: one for the
    flip, then those of each `PixelAugment` in turn.

    Args:
        crop: the geometric part.
        augments: the augmentations of the cropped views, first to last.
    """

    def __init__(self, *, crop: Crop, augments: Sequence[Augment] = ()) -> None:
        self.crop = crop
        self.augments = tuple(augments)

    @property
    def late(self) -> tuple[PixelAugment, ...]:
        """The work for the last pass: a Solarize at the end, and a Color that only blurs follow.

        Blur and colour commute except where colours are clamped; docs/augmentation.md has the
        measured difference. Blur and solarisation do not commute.
        """
        return tuple(augment for augment, _ in self._late.values())

    def augment(self, views: DataNode, draw: Draw, *, late: bool) -> tuple[DataNode, DataNode]:
        """Return the augmented views, and their units.

        Args:
            views: uint8 [V, H, W, 3], layout "FHWC".
            draw: random numbers; they do not depend on `late`.
            late: leave the flips and `self.late` to the last pass (see `pipeline.finish`).

        Returns:
            The views, and the units, float32 [V, U] on the CPU.
        """
        taken = self._taken
        units_VU = draw.units(1 + sum(len(columns) for _, columns in taken.values()))
        if self.crop.flip and not late:
            views = mirror(views, units_VU[:, 0] < self.crop.flip)
        left = self._late if late else {}
        for place, augment in enumerate(self.augments):
            if place in left:
                continue
            if place in taken:
                pixelwise, columns = taken[place]
                factors = pixelwise.factors([units_VU[:, column] for column in columns])
                views = pixelwise.change(views, factors)
            else:
                views = augment.apply(views, draw)
        return views, units_VU

    def late_factors(self, units_NU: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return what the last pass does to each view.

        Args:
            units_NU: from `augment`, of N views.

        Returns:
            Whether it is mirrored, bool [N], None if none is; and the factors of `self.late`,
            float32 [N, F], None without them.
        """
        mirrored_N = units_NU[:, 0] < self.crop.flip if self.crop.flip else None
        factors = [
            factor
            for augment, columns in self._late.values()
            for factor in augment.factors([units_NU[:, column] for column in columns])
        ]
        return mirrored_N, torch.stack(factors, dim=1) if factors else None

    @cached_property
    def _taken(self) -> dict[int, tuple[PixelAugment, range]]:
        """Return the units that each PixelAugment takes, by its place; the flip has the first."""
        taken, begin = {}, 1
        for place, augment in enumerate(self.augments):
            if isinstance(augment, PixelAugment):
                taken[place] = augment, range(begin, begin + augment.units)
                begin += augment.units
        return taken

    @cached_property
    def _late(self) -> dict[int, tuple[PixelAugment, range]]:
        """Return those of `_taken` that are left to the last pass."""
        # An augmentation of probability 0 must not cost a pass over the pixels.
        left = [
            (place, augment)
            for place, augment in enumerate(self.augments)
            if not isinstance(augment, Solarize) or augment.probability
        ]
        late: list[int] = []
        if left and isinstance(left[-1][1], Solarize):
            late.insert(0, left.pop()[0])
        while left and isinstance(left[-1][1], Blur):
            left.pop()
        if left and isinstance(left[-1][1], Color):
            late.insert(0, left.pop()[0])
        taken = self._taken
        return {place: taken[place] for place in late}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(crop={self.crop}, augments={self.augments})"


def pair_augments(
    *, second: bool = False, small: bool = False, blur_window: int | None = None
) -> tuple[Augment, ...]:
    """Return the augmentations of BYOL's asymmetric pair, which DINO and GroCo use too.

    The first view is always blurred. The second one is seldom blurred and sometimes solarised.
    Small crops are blurred half of the time.
    """
    return (
        Color(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        Blur(probability=0.5 if small else 0.1 if second else 1.0, window=blur_window),
        Solarize(probability=0.2 if second else 0.0),
    )


def refuse_second_and_small(*, second: bool, small: bool, name: str, kind: str) -> None:
    """Refuse a small crop as the second view of a pair.

    Args:
        second: whether it is the second view.
        small: whether it is a small crop.
        name: what the policy calls small crops.
        kind: what it calls the views of the pair.

    Raises:
        ValueError: it is both.
    """
    if second and small:
        raise ValueError(
            f"second=true and {name}=true: only a {kind} view is the first or second one of its "
            "pair; set one of them to false."
        )
