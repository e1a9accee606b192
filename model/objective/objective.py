"""The interface of every objective: a function from the embeddings of all views to a scalar."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A loss of embeddings: z [V, A, D] → scalar.

    An objective knows nothing of ranks, precision, settings or labels: it sees the views of all
    samples of all ranks; which rows belong together follows from their position. A new one is
    a file with a class that has a `loss`, and a line in this package's `__init__`.
    """

    def extra_repr(self) -> str:
        """Return the settings, for the header of a run."""
        own = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return ", ".join(f"{name}={own[name]}" for name in own if name != "training")

    def forward(
        self, z_VAD: Tensor, *, gallery_views: int | None = None, samples: slice | None = None
    ) -> Tensor:
        """Return the loss in float32, or in float64 for float64 embeddings.

        Args:
            z_VAD: embeddings [V, A, D], normalised or not, of any floating type. Autocast and
                half precision end here: differences of scores are divided by temperatures as
                low as 0.01, and bfloat16 rounds a cosine near 1 to steps of 0.004.
            gallery_views: how many views, the first ones, others are compared with; the views
                after them only ask. All by default; the large crops in multi-crop.
            samples: whose views ask; all by default. The mean of the losses of equal parts is the
                loss of the whole: so each rank may take its own samples' part.

        Raises:
            ValueError: the shape is not [V, A, D] with V ≥ 2 and A ≥ 2, or the gallery has fewer
                than 2 views or more than there are.
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
        gallery_views = V if gallery_views is None else gallery_views
        if not 2 <= gallery_views <= V:
            raise ValueError(
                f"gallery_views={gallery_views}, expected 2 to {V}, the number of views: a view "
                "of the gallery needs another view of its sample there."
            )
        asking = range(A)[samples or slice(None)]
        with torch.autocast(z_VAD.device.type, enabled=False):
            z_VAD = z_VAD if z_VAD.dtype == torch.float64 else z_VAD.float()
            return self.loss(z_VAD, gallery_views, slice(asking.start, asking.stop))

    @abstractmethod
    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        """Return the loss of z [V, A, D], in float32 or float64; see `forward`."""
