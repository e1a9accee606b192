"""A data set of one's own: handwritten digits of scikit-learn, as a source of tools.shard.

    VIEWRANK_MODULES=examples/own_dataset.py python -m tools.shard digits --scale 4 --out data/digits
    python train.py --config recipes/own_cpu.yaml --shards data/digits …

Whatever has a length and gives a sample by its position will do: a database, an archive, an API.
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from shards.source import Sample, Source


class Digits(Source):
    """1,797 handwritten digits of 8 × 8 pixels, enlarged."""

    name = "digits"
    split = ""

    def __init__(self, *, scale: int = 4) -> None:
        """Load the digits.

        Args:
            scale: Pixels of the image for each of the data set's, in height and in width.
        """
        if not 1 <= scale <= 64:
            raise ValueError(f"scale={scale}; expected 1 to 64.")
        held: Any = load_digits()
        self._pixels_NHW = (held.images * (255 / 16)).astype(np.uint8)
        self._label_N = held.target
        self._scale = scale
        self.classes = [str(name) for name in held.target_names]

    def __len__(self) -> int:
        return len(self._pixels_NHW)

    def __getitem__(self, index: int) -> Sample:
        """Return a digit, in three equal colours."""
        large_HW = self._pixels_NHW[index].repeat(self._scale, 0).repeat(self._scale, 1)
        return Sample(
            key=f"{index:04d}",
            image=np.repeat(large_HW[..., None], 3, axis=2),
            label=int(self._label_N[index]),
            id=index,
            metadata={},
        )

    def label(self, index: int) -> int:
        """See `Source.label`."""
        return int(self._label_N[index])
