"""GroCo's augmentation: BYOL's asymmetric pair with larger crops, and SwAV's small crops.

Shvetsova, Petersen, Kukleva, Schiele, Kuehne, "Learning by Sorting: Self-supervised Learning with
Group Ordering Constraints", ICCV 2023, https://arxiv.org/abs/2301.02009. With four views, the third
is another first and the fourth another second; multi-crop is the pair at 224 px and six small
crops of 96.

Differs from the authors' code: interpolation is bilinear with a filter against aliasing, theirs is
Pillow's bicubic; the blur has a window, Pillow's has none.
"""

from __future__ import annotations

from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy, pair_augments, refuse_second_and_small


class GroCoViews(Policy):
    """GroCo's asymmetric pair, as BYOL's: one view always blurred, the other sometimes solarised.

    Shvetsova et al. 2023, https://arxiv.org/abs/2301.02009. View groups as for BYOL.

    Args:
        second: the second view of the pair: blur 0.1 instead of 1, solarise 0.2 instead of 0.
        small: the small crops of multi-crop: areas 0.05..0.14, blur 0.5, no solarisation.
        area: smallest and largest part of the image's area that a view shows; by default 0.14..1,
            and 0.05..0.14 for the small crops.
        flip: probability of a horizontal flip.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size.

    Raises:
        ValueError: a view is second and small.
    """

    def __init__(
        self,
        *,
        second: bool = False,
        small: bool = False,
        area: tuple[float, float] | None = None,
        flip: float = 0.5,
        blur_window: int | None = None,
    ) -> None:
        refuse_second_and_small(second=second, small=small, name="small", kind="large")
        super().__init__(
            crop=Crop(area=area or ((0.05, 0.14) if small else (0.14, 1.0)), flip=flip),
            augments=pair_augments(second=second, small=small, blur_window=blur_window),
        )
