"""BYOL's augmentation, an asymmetric pair.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.07733, appendix B, table 6; `google-deepmind/deepmind-research`,
byol/utils/augmentations.py.

Differs from the authors' code: interpolation is bilinear with a filter against aliasing, theirs is
bicubic; brightness is multiplied, theirs adds up to 0.4 of white; the colour changes have one
order, theirs is random.
"""

from __future__ import annotations

from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy, pair_augments


class BYOLViews(Policy):
    """BYOL's asymmetric pair: the first view is always blurred, the second sometimes solarised.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733. The pair is two view groups of one view:
    `views` with BYOLViews, `more_views` with BYOLViews and `second: true`.

    Args:
        second: the second view of the pair: blur 0.1 instead of 1, solarise 0.2 instead of 0.
        area: smallest and largest part of the image's area that a view shows.
        flip: probability of a horizontal flip.
        blur_window: width of the blur's filter in pixels, odd; by default, as in the paper, a
            tenth of the view's size.
    """

    def __init__(
        self,
        *,
        second: bool = False,
        area: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        blur_window: int | None = None,
    ) -> None:
        super().__init__(
            crop=Crop(area=area, flip=flip),
            augments=pair_augments(second=second, blur_window=blur_window),
        )
