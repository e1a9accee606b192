"""The augmentation for S2R2: many views of one image, all of one kind.

Varamesh, Diba, Tuytelaars, Van Gool, "Self-Supervised Ranking for Representation Learning", 2020,
https://arxiv.org/abs/2010.07258. Its authors published no code, and only the abstract of the paper
was at hand, so no value here is known to be the paper's. These are inferred from the first author's
other code of the same months (`alivaramesh/MIXEM`): SimCLR's colours at strength 1 for 0.8 of the
views, grayscale 0.2, blur 0.5 with sigma 0.1..2 and a window of a tenth of the view. The areas
0.2..1 are our own, as in our recipes; that code has 0.08..1.

Differs from that code: views are normalised; it does not normalise those of STL-10 and COCO.
"""

from __future__ import annotations

from pipeline.augment.policy.simclr_views import SimCLRViews


class S2R2Views(SimCLRViews):
    """S2R2's many symmetrical views, as far as known: SimCLR's colours, areas 0.2..1.

    Varamesh et al. 2020, https://arxiv.org/abs/2010.07258; the values are inferred from the first
    author's other code, the areas are our own.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        strength: of the colour jitter; 1 is 0.8, 0.8, 0.8 and 0.2 for brightness, contrast,
            saturation and hue.
        blur: probability of Gaussian blur.
        blur_window: width of the blur's filter in pixels, odd; by default a tenth of the view's
            size.
    """

    def __init__(
        self,
        *,
        area: tuple[float, float] = (0.2, 1.0),
        strength: float = 1.0,
        blur: float = 0.5,
        blur_window: int | None = None,
    ) -> None:
        super().__init__(area=area, strength=strength, blur=blur, blur_window=blur_window)
