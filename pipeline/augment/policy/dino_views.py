"""DINO's augmentation: two global views, as asymmetric as BYOL's, and local ones.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021, https://arxiv.org/abs/2104.14294; `facebookresearch/dino`,
main_dino.py: two global views of 224 px and, by default, eight local ones of 96.

Differs from the authors' code: interpolation is bilinear with a filter against aliasing, theirs is
Pillow's bicubic; the blur has a window, Pillow's has none.
"""

from __future__ import annotations

from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy, pair_augments, refuse_second_and_small


class DINOViews(Policy):
    """DINO's views: a global one, always blurred, a second one, sometimes solarised, local ones.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294. Three view groups: one view with
    DINOViews, one with `second: true`, and the small ones with `local: true`.

    Args:
        second: the second global view: blur 0.1 instead of 1, solarise 0.2 instead of 0.
        local: the local views: areas 0.05..0.4, blur 0.5, no solarisation.
        area: smallest and largest part of the image's area that a view shows; by default that of
            the authors' code, 0.4..1 and 0.05..0.4. They recommend 0.14..1 without local views,
            and 0.25 as the limit between the two for vision transformers.
        flip: probability of a horizontal flip.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size.

    Raises:
        ValueError: a view is second and local.
    """

    def __init__(
        self,
        *,
        second: bool = False,
        local: bool = False,
        area: tuple[float, float] | None = None,
        flip: float = 0.5,
        blur_window: int | None = None,
    ) -> None:
        refuse_second_and_small(second=second, small=local, name="local", kind="global")
        super().__init__(
            crop=Crop(area=area or ((0.05, 0.4) if local else (0.4, 1.0)), flip=flip),
            augments=pair_augments(second=second, small=local, blur_window=blur_window),
        )
