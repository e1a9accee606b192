"""GroCo: positives are sorted behind negatives, by a sorting network that can be differentiated.

Shvetsova, Petersen, Kukleva, Schiele, Kuehne, "Learning by Sorting: Self-supervised Learning with
Group Ordering Constraints", ICCV 2023, https://arxiv.org/abs/2301.02009

    scores [Q, n], n = K hardest negatives + M positives, each group ascending
      ─▶ n layers that compare neighbours, and swap them as surely as they are in the wrong order
      ─▶ the probability that an input ends among the last M places ─▶ cross-entropy

Differs from the authors' code (ninatu/learning_by_sorting, 47c074e, on diffsort, 5c417ea): the
permutation matrix is not built, see `in_the_last_places`; with fewer than K negatives all are used.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.objective.one_pass import OnePass
from model.objective.queries import rows_at_once


class GroCo(OnePass):
    """The mean over queries of the cross-entropy of ending up in one's own group.

    A view's positives are the gallery's other views of its sample. Its negatives are the same view
    of the other samples, of which the K most similar count. Order inside a group is free.

    The rows that a query is compared with get no gradient (`stop_gradient`): a sample moves as a
    query only. Values stay far from 0, 0.147 at best with K = 10 and two views, and gradients are
    small: the authors' learning rates are large, 24 for SGD with 1024 samples.

    Args:
        negatives: K, how many negatives of each view count.
        steepness: of the swaps' sigmoid, (1/2 + arctan(steepness · difference) / π). The loss
            scales with it; the learning rate is to follow.
        stop_gradient: whether only the query gets a gradient, as published.
    """

    def __init__(
        self, *, negatives: int = 10, steepness: float = 1.0, stop_gradient: bool = True
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives={negatives}, expected 1 or more, such as 10.")
        if steepness <= 0:
            raise ValueError(f"steepness={steepness}, expected a number above 0, such as 1.")
        self.negatives = negatives
        self.steepness = steepness
        self.stop_gradient = stop_gradient

    def value_and_gradient(
        self, z_VAD: Tensor, gallery_views: int, samples: slice, *, grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `OnePass.value_and_gradient`."""
        V, A, _ = z_VAD.shape
        z_ND = z_VAD.flatten(0, 1)
        row_VA = torch.arange(V * A, device=z_ND.device).unflatten(0, (V, A))
        asking_VB = row_VA[:, samples]
        negative_VBK = torch.stack([self.hardest(z_AD, samples) for z_AD in z_VAD])
        negative_VBK += row_VA[:, :1, None]  # row v·A + a is view v of sample a

        loss = z_ND.new_zeros(())
        dz_ND = torch.zeros_like(z_ND) if grad else z_ND
        # First the queries that are in the gallery themselves, then those that are not. The other
        # views of a sample are in the gallery A rows further on each, and round its end.
        for views, nearest in ((slice(gallery_views), 1), (slice(gallery_views, V), 0)):
            row_Q = asking_VB[views].flatten()
            if not len(row_Q):
                continue
            further_M = A * torch.arange(nearest, gallery_views, device=z_ND.device)
            positive_QM = (row_Q[:, None] + further_M) % (gallery_views * A)
            columns = [*negative_VBK[views].flatten(0, 1).unbind(1), *positive_QM.unbind(1)]
            M = len(further_M)

            z_QD = z_ND[row_Q]
            score_QX = torch.stack([(z_QD * z_ND[other_Q]).sum(-1) for other_Q in columns], dim=1)
            with torch.set_grad_enabled(grad):
                part = self.per_query(score_QX.requires_grad_(grad), M).sum()
            loss += part.detach()
            if grad:
                (dscore_QX,) = torch.autograd.grad(part, score_QX)
                for other_Q, dscore_Q1 in zip(columns, dscore_QX.split(1, dim=1), strict=True):
                    dz_ND.index_add_(0, row_Q, dscore_Q1 * z_ND[other_Q])
                    if not self.stop_gradient:
                        dz_ND.index_add_(0, other_Q, dscore_Q1 * z_QD)
        loss /= asking_VB.numel()
        return loss, dz_ND.div_(asking_VB.numel()).view_as(z_VAD) if grad else None

    def hardest(self, z_AD: Tensor, samples: slice) -> Tensor:
        """Return the samples most similar to those that ask, in one view; [B, K], ascending."""
        A = len(z_AD)
        found = []
        asks_B = torch.arange(A, device=z_AD.device)[samples]
        for asks_Q in asks_B.split(rows_at_once(A, z_AD.device)):
            S_QA = z_AD[asks_Q] @ z_AD.T
            S_QA.scatter_(1, asks_Q[:, None], -torch.inf)  # the sample itself
            found.append(S_QA.topk(min(self.negatives, A - 1), dim=-1).indices.flip(-1))
        return torch.cat(found)

    def per_query(self, score_QX: Tensor, M: int) -> Tensor:
        """Return the loss of each query [Q].

        Args:
            score_QX: cosines with K negatives, ascending, and then with M positives [Q, K + M].
            M: number of positives.
        """
        score_QX = torch.cat([score_QX[:, :-M], score_QX[:, -M:].sort(-1).values], dim=1)
        positive_QX = torch.zeros_like(score_QX)
        positive_QX[:, -M:].fill_(1)
        behind_QX = self.in_the_last_places(score_QX, positive_QX)
        # The cross-entropy of the first places is the same number: their probability is the rest.
        probable_QX = behind_QX.nan_to_num(0.5).clamp(0, 1)  # else NaN would end the run
        loss_Q = F.binary_cross_entropy(probable_QX, positive_QX, reduction="none").mean(-1)
        return loss_Q.masked_fill(behind_QX.isnan().any(-1), torch.nan)

    def in_the_last_places(self, score_QX: Tensor, place_QX: Tensor) -> Tensor:
        """Return how probably each input ends in the places that are 1 in `place_QX` [Q, X].

        The authors multiply the layers' swaps to a permutation matrix [Q, X, X] and add up its
        columns of these places. Here the places are sent back through the layers instead, which is
        the same product, taken from its other end: [Q, X] is all there ever is.
        """
        X = score_QX.shape[1]
        swaps = []
        for layer in range(X):  # an odd-even network: pairs begin at wire 0, 1, 0, 1, …
            first = layer % 2
            before_QP, after_QP = _pairs(score_QX, first)
            keep_QP = 0.5 + torch.atan(self.steepness * (after_QP - before_QP)) / math.pi
            score_QX = _swap(score_QX, keep_QP, first)
            swaps.append((keep_QP, first))
        for keep_QP, first in reversed(swaps):
            place_QX = _swap(place_QX, keep_QP, first)
        return place_QX


def _pairs(x_QX: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return both members [Q, P] of the pairs of neighbours from wire `first` on."""
    pairs = (x_QX.shape[1] - first) // 2
    paired_QP2 = x_QX[:, first : first + 2 * pairs].unflatten(1, (pairs, 2))
    return paired_QP2[..., 0], paired_QP2[..., 1]


def _swap(x_QX: Tensor, keep_QP: Tensor, first: int) -> Tensor:
    """Return x with its pairs of neighbours mixed: each stays with the probability `keep_QP`."""
    a_QP, b_QP = _pairs(x_QX, first)
    mixed_QP2 = torch.stack([b_QP.lerp(a_QP, keep_QP), a_QP.lerp(b_QP, keep_QP)], dim=-1)
    last = first + 2 * keep_QP.shape[1]
    return torch.cat([x_QX[:, :first], mixed_QP2.flatten(1), x_QX[:, last:]], dim=1)
