"""Objectives that are a mean over queries, in O(N · chunk) memory.

Smooth-AP, NT-Xent and their relatives look at the scores of one query at a time, so neither the
N×N scores nor their gradient need to exist at once:

    a chunk of queries: S = z_chunk zᵀ ─▶ loss, dL/dS ─▶ dL/dz += dL/dS z (queries)
                                                       dL/dz += dL/dSᵀ z_chunk (gallery)
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from model.objective.one_pass import OnePass

# Scores in a chunk. An objective holds about three such tensors: on the CPU each core's share of
# them should stay in its cache (2 MiB in float32); a GPU wants few large pieces (64 MiB).
CPU_CHUNK = 1 << 19
GPU_CHUNK = 1 << 24
# A matrix product of fewer rows loses more than the smaller chunk gains: with a large gallery
# several chunks share a product.
MIN_ROWS = 64


def rows_at_once(columns: int, device: torch.device) -> int:
    """Return of how many queries the scores [rows, columns] are one matrix product."""
    return max(MIN_ROWS, chunk_rows(columns, device))


def chunk_rows(columns: int, device: torch.device) -> int:
    """Return how many queries make a chunk of scores [rows, columns]."""
    return max(1, (GPU_CHUNK if device.type == "cuda" else CPU_CHUNK) // columns)


class PerQuery(NamedTuple):
    """Losses of a chunk of queries and, when asked for, their derivatives."""

    loss_Q: Tensor
    """Loss of each query [Q]."""
    dS_QG: Tensor | None = None
    """Derivative by every score [Q, G]; zero at the query itself."""
    dS_QK: Tensor | None = None
    """The gradient of the positives' scores [Q, K], added to it in their columns."""


class MeanOverQueries(OnePass):
    """The mean, over all views that ask, of a function of a query's cosines with the gallery.

    A query's positives are the gallery's other views of its sample: K = gallery views - 1 of them,
    or all gallery views if the query itself is not in the gallery (a small crop).
    """

    @abstractmethod
    def per_query(self, S_QG: Tensor, S_QK: Tensor, positive_QK: Tensor, *, grad: bool) -> PerQuery:
        """Return the losses of a chunk of queries and, if `grad`, their derivatives.

        Args:
            S_QG: cosines of the queries with the gallery [Q, G]; -inf with itself, so that a
                query is never in its own gallery. May be overwritten.
            S_QK: the same scores for the positives only [Q, K].
            positive_QK: the columns of the positives in `S_QG` [Q, K].
            grad: whether the derivatives are wanted.
        """

    def value_and_gradient(
        self, z_VAD: Tensor, gallery_views: int, samples: slice, *, grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `OnePass.value_and_gradient`."""
        V, A, _ = z_VAD.shape
        z_ND = z_VAD.flatten(0, 1)  # row v·A + a is view v of sample a
        G = gallery_views * A
        z_GD = z_ND[:G]
        row_N = torch.arange(V * A, device=z_ND.device)
        asking_N = row_N.unflatten(0, (V, A))[:, samples].flatten()
        inside = gallery_views * (samples.stop - samples.start)
        product, rows = rows_at_once(G, z_ND.device), chunk_rows(G, z_ND.device)

        loss = z_ND.new_zeros(())
        dz_ND = torch.zeros_like(z_ND) if grad else z_ND
        # First the queries that are in the gallery themselves, then those that are not. The other
        # views of a sample are in the gallery A rows further on each, and round its end.
        for asks_Q, nearest in ((asking_N[:inside], 1), (asking_N[inside:], 0)):
            for row_Q in asks_Q.split(product) if len(asks_Q) else ():
                positive_QK = (row_Q[:, None] + A * row_N[nearest:gallery_views]) % G
                z_QD = z_ND[row_Q]
                S_QG = z_QD @ z_GD.T
                if nearest:
                    S_QG.scatter_(1, row_Q[:, None], -torch.inf)  # the query itself
                for S_RG, positive_RK in zip(
                    S_QG.split(rows), positive_QK.split(rows), strict=True
                ):
                    S_RK = S_RG.gather(1, positive_RK)
                    loss_R, dS_RG, dS_RK = self.per_query(S_RG, S_RK, positive_RK, grad=grad)
                    loss += loss_R.sum()
                    if dS_RG is not None and dS_RK is not None:
                        S_RG.copy_(dS_RG.scatter_add_(1, positive_RK, dS_RK))
                if grad:
                    dS_QG = S_QG  # its scores are used up, chunk by chunk
                    dz_ND.index_add_(0, row_Q, dS_QG @ z_GD)  # as queries
                    dz_ND[:G].addmm_(dS_QG.T, z_QD)  # as gallery
        loss /= len(asking_N)
        return loss, dz_ND.div_(len(asking_N)).view_as(z_VAD) if grad else None
