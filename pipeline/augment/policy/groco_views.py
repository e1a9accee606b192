"""GroCo's augmentation: BYOL's asymmetric pair with larger crops, and SwAV's small crops.

Shvetsova, Petersen, Kukleva, Schiele, Kuehne, "Learning by Sorting: Self-supervised Learning with
Group Ordering Constraints", ICCV 2023, https://arxiv.org/abs/2301.02009. With four views, the third
is another first and the fourth another second; multi-crop is the pair at 224 px and six small
crops of 96.

Differs from the authors' code: bilinear interpolation with a filter against aliasing for Pillow's
bicubic; a window for the blur, which Pillow's has not.
"""

from __future__ import annotations

from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy, pair_augments, refuse_second_and_small


class GroCo(Policy):
    """GroCo's asymmetric pair, which is BYOL's: one view always blurred, the other solarised.

    Shvetsova et al. 2023, https://arxiv.org/abs/2301.02009. View groups as for BYOL.

    Args:
        second: the second view of the pair: blur 0.1 and solarise 0.2, for 1 and 0.
        small: the small crops of multi-crop: areas 0.05..0.14, blur 0.5, no solarisation.
        area: smallest and largest part of the image's area that a view shows; by default 0.14..1,
            and 0.05..0.14 for the small crops.
        flip: probability of a horizontal flip.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size.

    Raises:
        ValueError: a view that is second and small.
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
