"""What every objective is: a function from the embeddings of all views to one scalar."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A loss of embeddings: z [V, A, D] → scalar.

    An objective knows nothing of ranks, precision, settings or labels: it sees the views of all
    samples of all ranks, and which rows belong together it sees from their place. A new one is
    a file with a class that has a `loss`, and a line in this package's `__init__`.
    """

    def extra_repr(self) -> str:
        """Return the settings, for the header of a run."""
        own = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return ", ".join(f"{name}={own[name]}" for name in own if name != "training")

    def forward(self, z_VAD: Tensor) -> Tensor:
        """Return the loss in float32, or in float64 for float64 embeddings.

        Args:
            z_VAD: embeddings [V, A, D], normalised or not, of any floating type. Autocast and
                half precision end here: differences of scores are divided by temperatures as
                low as 0.01, and bfloat16 rounds a cosine near 1 to steps of 0.004.

        Raises:
            ValueError: with fewer than two views, or fewer than two samples.
        """
        if z_VAD.ndim != 3:
            raise ValueError(
                f"found embeddings of shape {list(z_VAD.shape)}, expected [V, A, D]: "
                "views, samples, embedding."
            )
        V, A, _ = z_VAD.shape
        if V < 2 or A < 2:
            raise ValueError(
                f"found {V} views of {A} samples, but an objective compares views of one sample "
                "with views of others: use 2 or more of both."
            )
        with torch.autocast(z_VAD.device.type, enabled=False):
            return self.loss(z_VAD if z_VAD.dtype == torch.float64 else z_VAD.float())

    @abstractmethod
    def loss(self, z_VAD: Tensor) -> Tensor:
        """Return the loss of z [V, A, D], in float32 or float64, with V ≥ 2 and A ≥ 2."""
