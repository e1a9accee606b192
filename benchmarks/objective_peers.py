"""The objectives of others, each as a function of z [V, A, D], and what memory they will need.

published Smooth-AP   written down from its formula (methods.md, 5.1), after
github.com/Andrew-Brown1/Smooth_AP at 59927ec: every comparison of two
views for every query
PML …                 pytorch-metric-learning. Its SmoothAPLoss (2.9.0) mixes up V and A when it
collects the positives, so its value is right at V = A only; what it
computes costs the same
lightly …             lightly, whose losses are of two views: with four the mean over the six
pairs of views, as its users write it. So a query's negatives are those
of two views at a time, not of all: fewer scores than ours
lightly SwaVLoss      the same views as four large crops against 3000 prototypes, the scores of
which are counted in
diffsort GroCo        the authors' form (methods.md, 2.1) on their sorter: permutation matrices
"""

from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
BINS, NEGATIVES, PROTOTYPES = 10, 10, 3000


def published_smooth_ap(z_VAD: Tensor) -> Tensor:
    """The O(N³) form: a query is its own positive, exponents are clamped to ±50."""

    def step(difference: Tensor) -> Tensor:
        return 1 / (1 + (-difference / 0.05).clamp(-50, 50).exp())

    V, A, _ = z_VAD.shape
    N = V * A
    z_AVD = F.normalize(z_VAD, dim=-1).transpose(0, 1)
    z_ND = z_AVD.flatten(0, 1)
    S_QG, S_AVV = z_ND @ z_ND.T, z_AVD @ z_AVD.mT
    above_QGG = step(S_QG[:, None, :].repeat(1, N, 1) - S_QG[:, :, None]) * (1 - torch.eye(N))
    position_QG = 1 + above_QGG.sum(-1)
    above_AVVV = step(S_AVV[..., None, :] - S_AVV[..., None]) * (1 - torch.eye(V))
    among_positives_AVV = 1 + above_AVVV.sum(-1)
    position_AVV = (
        position_QG.unflatten(0, (A, V)).unflatten(2, (A, V)).diagonal(0, 0, 2).movedim(-1, 0)
    )
    return 1 - (among_positives_AVV / position_AVV).mean()


def metric_learning(name: str, **settings: float) -> Loss:
    """Return a loss of pytorch-metric-learning."""
    from pytorch_metric_learning import losses

    loss = getattr(losses, name)(**settings)

    def of(z_VAD: Tensor) -> Tensor:
        V, A, _ = z_VAD.shape
        sample_N = torch.arange(A, device=z_VAD.device).repeat_interleave(V)
        return loss(z_VAD.transpose(0, 1).flatten(0, 1), sample_N)

    return of


def lightly(name: str, **settings: float) -> Loss:
    """Return the mean over pairs of views of a loss of lightly."""
    import lightly.loss

    loss = getattr(lightly.loss, name)(**settings)
    return lambda z_VAD: torch.stack([loss(a, b) for a, b in combinations(z_VAD, 2)]).mean()


def lightly_swav() -> Loss:
    """Return SwAV with every view a large crop, prototypes included."""
    from lightly.loss import SwaVLoss

    loss = SwaVLoss()
    generator = torch.Generator().manual_seed(0)

    def of(z_VAD: Tensor) -> Tensor:
        prototype_KD = torch.randn(PROTOTYPES, z_VAD.shape[-1], generator=generator)
        prototype_KD = F.normalize(prototype_KD, dim=-1).requires_grad_()
        score_VAK = F.normalize(z_VAD, dim=-1) @ prototype_KD.T
        return loss(list(score_VAK), [])

    return of


def diffsort_groco(z_VAD: Tensor) -> Tensor:
    """GroCo with whole matrices of scores and of permutations."""
    from diffsort import DiffSortNet

    V, A, _ = z_VAD.shape
    K, M = min(NEGATIVES, A - 1), V - 1
    network = DiffSortNet("odd_even", K + M, steepness=1, distribution="cauchy")
    z_VAD = F.normalize(z_VAD, dim=-1)
    positive_X = (torch.arange(K + M) >= K).float()
    losses = []
    for v in range(V):
        other_VAD = z_VAD.detach()
        negative_AA = (z_VAD[v] @ other_VAD[v].T).masked_fill(torch.eye(A) > 0, -torch.inf)
        negative_AK = negative_AA.topk(K, dim=1).values.flip(1)
        positives = [(z_VAD[v] * other_VAD[w]).sum(-1) for w in range(V) if w != v]
        positive_AM = torch.stack(positives, dim=1).sort(1).values
        _, permutation_AXX = network(torch.cat([negative_AK, positive_AM], dim=1))
        behind_AX = permutation_AXX[:, :, K:].sum(2).clip(0, 1)
        before_AX = permutation_AXX[:, :, :K].sum(2).clip(0, 1)
        losses.append(F.binary_cross_entropy(behind_AX, positive_X.expand_as(behind_AX)) / 2)
        losses.append(F.binary_cross_entropy(before_AX, 1 - positive_X.expand_as(behind_AX)) / 2)
    return torch.stack(losses).sum() / V


PEERS: dict[str, Callable[[], Loss]] = {
    "published Smooth-AP": lambda: published_smooth_ap,
    "PML SmoothAPLoss": lambda: metric_learning("SmoothAPLoss", temperature=0.05),
    "PML FastAPLoss": lambda: metric_learning("FastAPLoss", num_bins=BINS),
    "PML NTXentLoss": lambda: metric_learning("NTXentLoss", temperature=0.1),
    "lightly NTXentLoss": lambda: lightly("NTXentLoss", temperature=0.1),
    "lightly DCLLoss": lambda: lightly("DCLLoss", temperature=0.1),
    "lightly VICRegLoss": lambda: lightly("VICRegLoss"),
    "lightly BarlowTwinsLoss": lambda: lightly("BarlowTwinsLoss", lambda_param=0.0051),
    "lightly SwaVLoss": lightly_swav,
    "diffsort GroCo": lambda: diffsort_groco,
}


def bytes_needed(name: str, N: int, V: int) -> float:
    """Estimate the peak of one step: float32 tensors of the largest shape, so many at once."""
    pairs_of_pairs = N * (V - 1) * N * (N - V)
    pairs_of_views, A = V * (V - 1) // 2, N // V
    X = NEGATIVES + V - 1
    return {
        "published Smooth-AP": 8.0 * 4 * N**3,
        "PML SmoothAPLoss": 6.0 * 4 * N**3,
        "PML FastAPLoss": 5.0 * 4 * (BINS + 1) * N**2,
        "PML NTXentLoss": 5.0 * 4 * pairs_of_pairs,
        "lightly NTXentLoss": 10.0 * 4 * pairs_of_views * A**2,
        "lightly DCLLoss": 16.0 * 4 * pairs_of_views * A**2,
        "lightly SwaVLoss": 4.0 * 4 * pairs_of_views * A * PROTOTYPES,
        "diffsort GroCo": 4.0 * (6 * X**3 * N + 3 * V * A**2),
    }.get(name, 4.0 * N**2)  # ours are to stay below N×N; a new one may need a line here
