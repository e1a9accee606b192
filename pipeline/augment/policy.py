"""View policies: a crop followed by augmentations, under the names of the papers they come from."""

from __future__ import annotations

from collections.abc import Sequence

from ..dali import DataNode, fn
from .augment import Augment, Draw
from .blur import Blur
from .color import Color
from .crop import Crop
from .solarize import Solarize


class Policy:
    """A crop followed by any augmentations, in their order; the named policies are instances.

    Args:
        crop: the geometric part.
        augments: what happens to the cropped views, first to last.
    """

    def __init__(self, *, crop: Crop, augments: Sequence[Augment] = ()) -> None:
        self.crop = crop
        self.augments = tuple(augments)

    @property
    def late(self) -> tuple[Augment, ...]:
        """What can wait for the hand-over: Solarize as the last, Color but for blurs after it.

        Blur and colour commute except where colours are clamped; docs/augmentation.md has the
        difference that it makes.
        """
        before = [augment for augment in self.augments if not isinstance(augment, Blur)]
        solarize = before[-1:] if self.augments and isinstance(self.augments[-1], Solarize) else []
        color = before[: len(before) - len(solarize)][-1:]
        return tuple(a for a in (*color, *solarize) if isinstance(a, (Color, Solarize)))

    def augment(
        self, views: DataNode, draw: Draw, *, late: Sequence[Augment] = ()
    ) -> tuple[DataNode, DataNode | None]:
        """Return the augmented views, and what is left to do.

        Args:
            views: uint8 [V, H, W, 3], layout "FHWC".
            draw: random numbers, the same whatever is late.
            late: those of the augmentations that wait for the hand-over.

        Returns:
            The views, and the factors of the late augmentations, float32 [V, P] on the CPU.
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


class SimCLR(Policy):
    """SimCLR's augmentation; solarisation off.

    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020, https://arxiv.org/abs/2002.05709. For CIFAR-10 the paper uses
    strength 0.5 and no blur.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        flip: probability of a horizontal flip.
        strength: of the colour jitter; 1 is 0.8, 0.8, 0.8 and 0.2 for brightness, contrast,
            saturation and hue.
        jitter: probability of colour jitter.
        grayscale: probability of losing all colour.
        blur: probability of Gaussian blur.
        blur_sigma: smallest and largest standard deviation, in pixels.
        blur_window: width of the blur's filter in pixels; in the paper a tenth of the view.
        solarize: probability of solarisation.
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
        blur_window: int = 9,
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


class MoCoV2(Policy):
    """MoCo-v2's augmentation, SimSiam's too: larger crops and gentler colours than SimCLR.

    Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020,
    https://arxiv.org/abs/2003.04297.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter (0.4, 0.4, 0.4, 0.1).
        grayscale: probability of losing all colour.
        blur: probability of Gaussian blur.
        blur_window: width of the blur's filter in pixels.
    """

    def __init__(
        self,
        *,
        area: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        jitter: float = 0.8,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_window: int = 9,
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
            augments=(color, Blur(probability=blur, window=blur_window)),
        )


class SwAV(SimCLR):
    """SwAV's crops with SimCLR's colours: areas 0.14..1, or 0.05..0.14 for the small crops.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    NeurIPS 2020, https://arxiv.org/abs/2006.09882.

    Args:
        small: the small crops of multi-crop, areas 0.05..0.14.
        blur_window: width of the blur's filter in pixels.
    """

    def __init__(self, *, small: bool = False, blur_window: int = 9) -> None:
        super().__init__(area=(0.05, 0.14) if small else (0.14, 1.0), blur_window=blur_window)


class GroCo(Policy):
    """GroCo's asymmetric pair, which is BYOL's: one view always blurred, the other solarised.

    Shvetsova, Petersen, Kukleva, Schiele, Kuehne, "Learning by Sorting", ICCV 2023,
    https://arxiv.org/abs/2301.02009.

    Args:
        second: the second view of the pair: blur 0.1 and solarise 0.2 instead of blur 1 and 0.
        area: smallest and largest part of the image's area that a view shows.
        blur_window: width of the blur's filter in pixels.
    """

    def __init__(
        self,
        *,
        second: bool = False,
        area: tuple[float, float] = (0.14, 1.0),
        blur_window: int = 9,
    ) -> None:
        super().__init__(
            crop=Crop(area=area),
            augments=(
                Color(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
                Blur(probability=0.1 if second else 1.0, window=blur_window),
                Solarize(probability=0.2 if second else 0.0),
            ),
        )
