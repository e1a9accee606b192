"""Defines a view policy: a crop, then augmentations."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.augment.augment import Augment, Draw
from pipeline.augment.blur import Blur
from pipeline.augment.color import Color
from pipeline.augment.crop import Crop
from pipeline.augment.solarize import Solarize
from pipeline.dali import DataNode, fn


class Policy:
    """A crop, then any augmentations in their order; the named policies are subclasses.

    Args:
        crop: the geometric part.
        augments: the augmentations of the cropped views, first to last.
    """

    def __init__(self, *, crop: Crop, augments: Sequence[Augment] = ()) -> None:
        self.crop = crop
        self.augments = tuple(augments)

    @property
    def late(self) -> tuple[Augment, ...]:
        """The work for the last pass: a Solarize at the end, and a Color that only blurs follow.

        Blur and colour commute except where colours are clamped; docs/augmentation.md has the
        measured difference. Blur and solarisation do not commute.
        """
        # An augmentation of probability 0 must not cost a pass over the pixels.
        left = [a for a in self.augments if not isinstance(a, Solarize) or a.probability]
        late: list[Augment] = []
        if left and isinstance(left[-1], Solarize):
            late.insert(0, left.pop())
        while left and isinstance(left[-1], Blur):
            left.pop()
        if left and isinstance(left[-1], Color):
            late.insert(0, left.pop())
        return tuple(late)

    def augment(
        self, views: DataNode, draw: Draw, *, late: Sequence[Augment] = ()
    ) -> tuple[DataNode, DataNode | None]:
        """Return the augmented views, and the factors of the augmentations left to the last pass.

        Args:
            views: uint8 [V, H, W, 3], layout "FHWC".
            draw: random numbers; they do not depend on `late`.
            late: the augmentations that are left to the last pass (see `pipeline.finish`).

        Returns:
            The views, and the factors, float32 [V, F] on the CPU; None if none are late.
        """
        factors: list[DataNode] = []
        for augment in self.augments:
            if any(augment is one for one in late):
                assert isinstance(augment, (Color, Solarize))
                factors += augment.factors(draw)
            else:
                views = augment.apply(views, draw)
        return views, fn.stack(*factors, axis=1) if factors else None

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
