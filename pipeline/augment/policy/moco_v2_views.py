"""MoCo-v2's augmentation, which is also SimSiam's.

Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020,
https://arxiv.org/abs/2003.04297; `facebookresearch/moco`, main_moco.py, --aug-plus.

Differs from the authors' code: theirs blurs by Pillow, without a window. Ours, a tenth of the view,
cuts a Gaussian of sigma 2 at 2.75 sigma for 224 px, and at 2.25 for 96.
"""

from __future__ import annotations

from pipeline.augment.blur import Blur
from pipeline.augment.color import Color
from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy


class MoCoV2Views(Policy):
    """MoCo-v2's augmentation, SimSiam's too: larger crops and gentler colours than SimCLR.

    Chen et al. 2020, https://arxiv.org/abs/2003.04297.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter (0.4, 0.4, 0.4, 0.1).
        grayscale: probability of losing all colour.
        blur: probability of Gaussian blur.
        blur_sigma: smallest and largest standard deviation, in pixels.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size.
    """

    def __init__(
        self,
        *,
        area: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        jitter: float = 0.8,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_window: int | None = None,
    ) -> None:
        color = Color(
            jitter=jitter,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale=grayscale,
        )
        super().__init__(
            crop=Crop(area=area, flip=flip),
            augments=(color, Blur(probability=blur, sigma=blur_sigma, window=blur_window)),
        )
