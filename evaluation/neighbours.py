"""Neighbours: for each image its most similar others, and one of them as its partner.

    h [N, F] ─▶ cosines, a block of rows at a time ─▶ K best others of each ─▶ a partner, or itself

Alkhalefi, Leontidis, Zhong, "Semantic Positive Pairs for Enhancing Visual Representation Learning
of Instance Discrimination Methods", TMLR 2024, https://arxiv.org/abs/2306.16122: pairs (i, j) with
c_lo <= cosine <= c_hi, added to the ordinary pairs (i, i). The authors' code was not found. Known
difference: only the K most similar of such j are candidates.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.score import blocks


@dataclass(frozen=True)
class Neighbours:
    """For each of N images up to K others, most similar first; equals in the order of the images.

    Args:
        position_NK: their places among the N, int64; -1 where there are fewer than K.
        score_NK: their cosines, float32; -inf there.
    """

    position_NK: Tensor
    score_NK: Tensor

    @property
    def best_N(self) -> Tensor:
        """The cosine of the most similar other [N]; -inf where there is none."""
        return self.score_NK[:, 0]

    def at_least(self, lower: float) -> "Neighbours":
        """Return the same without neighbours of a cosine below `lower`."""
        keep_NK = self.score_NK >= lower
        return Neighbours(
            self.position_NK.where(keep_NK, self.position_NK.new_tensor(-1)),
            self.score_NK.where(keep_NK, self.score_NK.new_tensor(-torch.inf)),
        )


def nearest_others(
    h_NF: Tensor, *, count: int, upper: float = 1.0, rows: int | None = None
) -> Neighbours:
    """Find for each image the most similar other ones, by an exact search.

    Memory: the features twice, one block of scores and 12 bytes a neighbour; never N x N.

    Args:
        h_NF: features of all images [N, F]; they need not be normalised.
        count: K, how many are kept of each; fewer where there are fewer others.
        upper: cosine above which two images count as copies of each other; 1 for none.
        rows: images per block; changes memory and speed only.

    Raises:
        ValueError: a setting is out of range, there are fewer than two images, or a feature is not
            finite.
    """
    N = len(h_NF)
    if count < 1 or not -1 <= upper <= 1:
        raise ValueError(
            f"count={count} and upper={upper}; expected 1 or more neighbours, and a cosine."
        )
    if N < 2:
        raise ValueError(f"{N} images have no others to be similar to; expected 2 or more.")
    broken = int((~h_NF.isfinite().all(dim=1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {N} images have features that are not finite: the encoder has diverged, "
            "or overflows in float16. Mine with another checkpoint."
        )
    x_NF = F.normalize(h_NF.float(), dim=1)
    found = []
    for start, S_QG in blocks(x_NF, x_NF, rows=rows):
        S_QG.diagonal(start).fill_(-torch.inf)  # not itself
        if upper < 1:  # else rounding, which gives copies up to 1.0000002, must not drop them
            S_QG.masked_fill_(S_QG.gt(upper), -torch.inf)
        found.append(_best(S_QG, min(count, N - 1)))
    position_NK, score_NK = (torch.cat(blocks_) for blocks_ in zip(*found, strict=True))
    return Neighbours(position_NK, score_NK).at_least(torch.finfo(torch.float32).min)


def lower_for(neighbours: Neighbours, keep: float) -> float:
    """Return the highest lower threshold with which this share of all images has a partner.

    A cosine means another similarity with every encoder; a share means the same with all.

    Args:
        neighbours: of all images, chosen without a lower threshold.
        keep: above 0, up to 1. More have one where cosines are equal; fewer where fewer others
            are below the upper threshold.

    Raises:
        ValueError: it is no such share, or no image has any neighbour.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}; expected a share of the images, above 0 and up to 1.")
    score_N = neighbours.best_N[neighbours.best_N.isfinite()].sort(descending=True).values
    if not len(score_N):
        raise ValueError(
            "no two images are below the upper threshold: to this encoder all are copies of each "
            "other. Raise --upper, or mine with an encoder that was trained longer."
        )
    wanted = max(1, round(keep * len(neighbours.best_N)))
    return float(score_N[min(wanted, len(score_N)) - 1])


def choose_partners(
    neighbours: Neighbours, *, best: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Choose one of each image's neighbours; an image without any is its own partner.

    The paper's set holds every pair within the thresholds once, so of the pairs of one image none
    comes before the others: by default each is as probable. The best is the purest choice, and the
    one that differs least from the image itself.

    Args:
        neighbours: the candidates.
        best: take the most similar.
        seed: of the choice.

    Returns:
        The partners' positions [N], int64, and their cosines [N], float32; 1 for itself.
    """
    position_NK, score_NK = neighbours.position_NK, neighbours.score_NK
    count_N = (position_NK >= 0).sum(dim=1)
    # On the CPU, whose stream of random numbers the device does not change.
    unit_N = torch.rand(len(count_N), generator=torch.Generator().manual_seed(seed))
    choice_N = (unit_N.to(count_N.device, torch.float64) * count_N).long() * (not best)
    partner_N, score_N = (of.gather(1, choice_N[:, None])[:, 0] for of in (position_NK, score_NK))
    own_N, alone_N = torch.arange(len(count_N), device=count_N.device), count_N == 0
    return partner_N.where(~alone_N, own_N), score_N.where(~alone_N, score_N.new_tensor(1.0))


def pair_purity(partner_N: Tensor, label_N: Tensor) -> float | None:
    """Return the share of pairs of two images with equal labels; None if no pair is labelled.

    Args:
        partner_N: partners' positions; pairs with itself do not count.
        label_N: labels; pairs of which one image has none (-1) do not count either.
    """
    own_N = torch.arange(len(partner_N), device=partner_N.device)
    counts_N = (partner_N != own_N) & (label_N >= 0) & (label_N[partner_N] >= 0)
    pairs = int(counts_N.sum())
    return int(((label_N == label_N[partner_N]) & counts_N).sum()) / pairs if pairs else None


def random_purity(label_N: Tensor) -> float | None:
    """Return the share of equal labels among all pairs of two labelled images; None without any."""
    n_C = label_N[label_N >= 0].unique(return_counts=True)[1].double()
    N = float(n_C.sum())
    return float((n_C * (n_C - 1)).sum()) / (N * (N - 1)) if N > 1 else None


def _best(S_QG: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return columns and scores [Q, count] of the best of each row; equals by their column.

    `topk` leaves open which of several equal scores it takes, and in which order.
    """
    G = S_QG.shape[1]
    score_QK, column_QK = S_QG.topk(min(count + 1, G), dim=1)
    if score_QK.shape[1] > count:
        last_Q = score_QK[:, count - 1]
        tied = ((last_Q == score_QK[:, count]) & last_Q.isfinite()).nonzero()[:, 0]
        score_QK, column_QK = score_QK[:, :count], column_QK[:, :count]
        if len(tied):  # some equals of the last were left out: take the first ones of them
            last = last_Q[tied, None]
            place = torch.arange(G, 0, -1, device=S_QG.device)  # larger for columns further left
            first = (place * (S_QG[tied] == last)).topk(count, dim=1).indices
            above = score_QK[tied] > last  # those are all there
            taken = above.sum(dim=1, keepdim=True)
            # Above come first, in any order; then the first equals, as many as there is room for.
            number = torch.arange(count, device=S_QG.device)
            column_QK[tied] = torch.where(
                number < taken, column_QK[tied], first.gather(1, (number - taken).clamp(min=0))
            )
            score_QK = S_QG.gather(1, column_QK)
    order = column_QK.argsort(dim=1)
    score_QK, column_QK = score_QK.gather(1, order), column_QK.gather(1, order)
    score_QK, order = score_QK.sort(dim=1, descending=True, stable=True)
    return column_QK.gather(1, order), score_QK
