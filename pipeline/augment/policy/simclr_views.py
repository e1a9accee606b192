"""SimCLR's augmentation.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, https://arxiv.org/abs/2002.05709, appendix A;
`google-research/simclr`, data_util.py. For CIFAR-10 the paper uses strength 0.5 and no blur.

Differs from the authors' code: interpolation is bilinear with a filter against aliasing, theirs is
bicubic without one; the colour changes have one order, theirs is random.
"""

from __future__ import annotations

from pipeline.augment.blur import Blur
from pipeline.augment.color import Color
from pipeline.augment.crop import Crop
from pipeline.augment.policy.policy import Policy
from pipeline.augment.solarize import Solarize


class SimCLRViews(Policy):
    """SimCLR's augmentation: strong colours, half of the views blurred, no solarisation.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        flip: probability of a horizontal flip.
        strength: of the colour jitter; 1 is 0.8, 0.8, 0.8 and 0.2 for brightness, contrast,
            saturation and hue.
        jitter: probability of colour jitter.
        grayscale: probability of losing all colour.
        blur: probability of Gaussian blur.
        blur_sigma: smallest and largest standard deviation, in pixels.
        blur_window: width of the blur's filter in pixels, odd; by default, as in the paper, a
            tenth of the view's size.
        solarize: probability of solarisation, which the paper does not have.
    """

    def __init__(
        self,
        *,
        area: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        strength: float = 1.0,
        jitter: float = 0.8,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_window: int | None = None,
        solarize: float = 0.0,
    ) -> None:
        super().__init__(
            crop=Crop(area=area, flip=flip),
            augments=(
                Color(
                    jitter=jitter,
                    brightness=0.8 * strength,
                    contrast=0.8 * strength,
                    saturation=0.8 * strength,
                    hue=0.2 * strength,
                    grayscale=grayscale,
                ),
                Blur(probability=blur, sigma=blur_sigma, window=blur_window),
                Solarize(probability=solarize),
            ),
        )
