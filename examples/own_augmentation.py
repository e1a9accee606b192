"""An augmentation of one's own, written with DALI's operators: views of fewer tones.

    VIEWRANK_MODULES=examples/own_augmentation.py python train.py --config recipes/sample_s2r2.yaml \
        --views.policy own_augmentation.PosterizedViews --views.policy.probability 0.5

`python -m tools.preview DATA --config … --views.policy own_augmentation.PosterizedViews` draws them.
"""

from dataclasses import dataclass

from pipeline.augment import Augment, Color, Crop, Policy
from pipeline.augment.augment import Draw, check_probability
from pipeline.dali import DataNode, fn, types


@dataclass(frozen=True, kw_only=True)
class Posterize(Augment):
    """In some views, the lower bits of every value are 0.

    Args:
        probability: that a view is posterised.
        bits: upper bits that are kept, 1 to 7.
    """

    probability: float = 0.3
    bits: int = 4

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        if not 1 <= self.bits <= 7:
            raise ValueError(f"bits={self.bits}; expected 1 to 7.")

    def apply(self, views: DataNode, draw: Draw) -> DataNode:
        """See `Augment.apply`: one operator for all views of the batch."""
        kept = 256 - 2 ** (8 - self.bits)
        mask_V = draw.choice(self.probability, chosen=kept, otherwise=255)
        mask = fn.reshape(fn.cast(mask_V, dtype=types.UINT8), shape=[-1, 1, 1, 1])
        return views & (mask.gpu() if views.device == "gpu" else mask)


class PosterizedViews(Policy):
    """A crop, SimCLR's colours at half strength, and posterisation.

    Args:
        area: smallest and largest part of the image's area that a view shows.
        probability: that a view is posterised.
        bits: upper bits that are kept.
    """

    def __init__(
        self,
        *,
        area: tuple[float, float] = (0.2, 1.0),
        probability: float = 0.3,
        bits: int = 4,
    ) -> None:
        color = Color(
            jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
        )
        posterize = Posterize(probability=probability, bits=bits)
        super().__init__(crop=Crop(area=area, flip=0.5), augments=(color, posterize))
