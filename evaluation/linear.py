"""Linear probe: multinomial logistic regression on frozen, standardised features.

    mean over samples of cross-entropy(W h + b, label) + l2 / 2 * |W|^2     (b is not penalised)

The same problem as scikit-learn's LogisticRegression with C = 1 / (l2 * N), minimised by full-batch
L-BFGS on the features' own device. The strength l2 is chosen by cross-validation within the
*training* set: fifths are held out in turn, and the strength with the least cross-entropy of
held-out rows wins. (Accuracy on one fifth, as usual, is in steps, and chose strengths a hundred
times apart for encoders that differed by their seed alone.) Then the probe is fitted again on all
of it. The test set is used once, at the end, to report.

The features are held once. Each time that the loss is computed they are centred, a few rows at a
time, in the processor's cache, and the weights are divided by the deviations: one pass over the
memory, where a standardised copy takes two.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.features import Features, number_classes
from evaluation.label_draw import place_in_class, some_of_each_class
from evaluation.score import exact_float32

GRID = tuple(10 ** (-half / 2) for half in range(13))
"""Strengths from 1 to 1e-6, two a decade."""
FOLDS = 5
"""Parts of the train samples, of all classes alike, that are held out in turn."""
ENOUGH = 10_000
"""Held-out rows that say enough: of a large set fewer folds are held out in turn, at least one."""
GAIN = 1e-4
"""Share of the loss that is no gain: the stronger one wins, on every device and by any threads."""
PATIENCE = 2
"""Strengths that are worse than the best, after which weaker ones are not tried."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the outputs [B, K] for some rows and their targets [B, ...]; the sum over the rows."""


def cross_entropy(logits_BK: Tensor, class_B: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of rows of class numbers [B]."""
    return F.cross_entropy(logits_BK, class_B, reduction="sum")


# Numbers that are centred together. 4 MiB on the CPU, which its caches hold; fewer make threads
# wait for each other more often. A GPU wants fewer, larger kernels: 64 MiB.
CPU_NUMBERS = 2**20
GPU_NUMBERS = 2**24
COPIED = 2**26  # a choice of rows with fewer numbers, 256 MiB, is copied; it is quicker


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted classifier of features: standardise, then weight [K, F] and bias [K]."""

    mean_F: Tensor
    std_F: Tensor
    weight_KF: Tensor
    bias_K: Tensor

    def predict(self, h_NF: Tensor) -> Tensor:
        """Return the class number [N] of every row of h [N, F]."""
        return self.logits(h_NF).argmax(dim=1)

    def logits(self, h_NF: Tensor) -> Tensor:
        """Return the outputs [N, K] for every row of h [N, F]."""
        with exact_float32(h_NF.device):
            found = [
                self.standardise(part_NF) @ self.weight_KF.T + self.bias_K
                for part_NF in h_NF.split(_rows(h_NF, len(self.bias_K)))
            ]
        return torch.cat(found)

    def standardise(self, h_NF: Tensor) -> Tensor:
        """Return rows of h [N, F] with the mean and deviation of the training rows taken out."""
        return (h_NF.float() - self.mean_F) / self.std_F


def run(
    train: Features,
    test: Features,
    *,
    l2_grid: Sequence[float] = GRID,
) -> dict[str, float]:
    """Choose l2 by cross-validation in train, fit on all of train, report on test.

    Args:
        train: samples to fit; those without a label are left out.
        test: samples to report on; those without a label are left out.
        l2_grid: strengths to choose from, all above 0.

    Returns:
        {"linear_top1": share of test samples classified rightly, 0 to 1; "linear_l2": the chosen}.

    Raises:
        ValueError: a setting is out of range, or the labels do not allow classification.
    """
    check(l2_grid)
    label_K, train, test = number_classes(train, test)
    falling, K = sorted(l2_grid, reverse=True), len(label_K)
    l2, near = _choose(train, K, falling)
    start = None
    if near is not None:  # weak penalties take more iterations than there are: go on where it was
        start = _empty(train.h_NF, None, _rows(train.h_NF, K), K)
        start = replace(start, weight_KF=near.weight_KF, bias_K=near.bias_K)
    probe = fit(train.h_NF, train.label_N, classes=K, l2=l2, start=start)
    return {"linear_top1": _accuracy(probe, test.h_NF, test.label_N), "linear_l2": l2}


def check(l2_grid: Sequence[float]) -> None:
    """Refuse strengths that are out of range."""
    if not l2_grid or min(l2_grid) <= 0:
        raise ValueError(
            f"l2_grid={tuple(l2_grid)}: strengths must be above 0; the defaults are 1 to 1e-6."
        )


def fit(
    h_NF: Tensor,
    class_N: Tensor,
    *,
    classes: int,
    l2: float,
    iterations: int = 200,
    start: Probe | None = None,
    loss: Loss = cross_entropy,
    chosen_N: Tensor | None = None,
) -> Probe:
    """Minimise the objective above on features h [N, F] of class numbers [N].

    Args:
        h_NF: features of any floating dtype; no copy of many is made.
        class_N: class numbers, 0 to classes - 1; or whatever targets the loss has.
        classes: K.
        l2: strength of the penalty, on the *mean* cross-entropy.
        iterations: L-BFGS iterations at most.
        start: begin from this probe, and keep its mean and deviation; None begins at 0.
        loss: takes the place of the cross-entropy.
        chosen_N: numbers of the rows to fit; None is all of them.
    """
    # Evaluation may be called in inference mode, whose tensors L-BFGS cannot change.
    with torch.inference_mode(False), torch.no_grad(), exact_float32(h_NF.device):
        if chosen_N is not None and len(chosen_N) * h_NF.shape[1] <= COPIED:
            h_NF, class_N, chosen_N = h_NF[chosen_N], class_N[chosen_N], None
        rows, class_N = _rows(h_NF, classes), class_N.clone()  # of no inference mode
        N = len(h_NF) if chosen_N is None else len(chosen_N)
        probe = start or _empty(h_NF, chosen_N, rows, classes)
        weight_KF = nn.Parameter(probe.weight_KF.clone())
        bias_K = nn.Parameter(probe.bias_K.clone())
        optimizer = torch.optim.LBFGS(
            [weight_KF, bias_K],
            max_iter=iterations,
            tolerance_grad=1e-6,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()  # L-BFGS switches it on; only the loss needs it, by its logits
        def closure() -> Tensor:
            objective = l2 / 2 * weight_KF.square().sum(dtype=torch.float64)
            scaled_KF = weight_KF / probe.std_F
            weight_gradient_KF, bias_gradient_K = torch.zeros_like(scaled_KF), 0 * bias_K
            for h_BF, class_B in _parts(h_NF, class_N, chosen_N, rows):
                x_BF = h_BF.float() - probe.mean_F
                logits_BK = torch.addmm(bias_K, x_BF, scaled_KF.T).requires_grad_()
                with torch.enable_grad():
                    part = loss(logits_BK, class_B)
                (gradient_BK,) = torch.autograd.grad(part, logits_BK)
                objective += part.detach() / N
                weight_gradient_KF.addmm_(gradient_BK.T, x_BF, alpha=1 / N)
                bias_gradient_K += gradient_BK.sum(dim=0) / N
            weight_KF.grad = weight_gradient_KF / probe.std_F + l2 * weight_KF
            bias_K.grad = bias_gradient_K
            return objective

        optimizer.step(closure)
    return replace(probe, weight_KF=weight_KF.detach(), bias_K=bias_K.detach())


def _empty(h_NF: Tensor, chosen_N: Tensor | None, rows: int, classes: int) -> Probe:
    """Return a probe with mean and deviation of the chosen rows, and weights of 0."""
    N = len(h_NF) if chosen_N is None else len(chosen_N)
    mean_F = h_NF.new_zeros(h_NF.shape[1], dtype=torch.float64)
    variance_F = torch.zeros_like(mean_F)
    for h_BF, _ in _parts(h_NF, h_NF, chosen_N, rows):
        mean_F += h_BF.sum(dim=0, dtype=torch.float64) / N
    for h_BF, _ in _parts(h_NF, h_NF, chosen_N, rows):
        variance_F += (h_BF - mean_F).square().sum(dim=0) / N
    std_F = variance_F.sqrt()
    std_F = torch.where(std_F > 1e-6 * mean_F.abs(), std_F, 1)  # a constant feature stays 0
    weight_KF = torch.zeros(classes, len(mean_F), device=h_NF.device)
    return Probe(
        mean_F=mean_F.float(), std_F=std_F.float(), weight_KF=weight_KF, bias_K=weight_KF[:, 0]
    )


def _rows(h_NF: Tensor, classes: int) -> int:
    """Return how many rows are centred together."""
    numbers = GPU_NUMBERS if h_NF.is_cuda else CPU_NUMBERS
    # With many classes the gradient of the weights, which each part adds to, should cost less than
    # the part itself.
    return max(64, numbers // h_NF.shape[1], 4 * classes)


def _parts(
    h_NF: Tensor, class_N: Tensor, chosen_N: Tensor | None, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the chosen rows after the other, with their classes; None chooses all."""
    if chosen_N is None:
        yield from zip(h_NF.split(rows), class_N.split(rows), strict=True)
        return
    for chosen_B in chosen_N.split(rows):
        yield h_NF[chosen_B], class_N[chosen_B]


def split(class_N: Tensor, id_N: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Return the mask [N] of the rows held out for validation: True is held out.

    The same share of every class, chosen by seed and sample id, so that the order in which the
    samples came does not matter. A class keeps at least one row to fit, and with two rows or more
    gives at least one.

    Raises:
        ValueError: no class has two rows.
    """
    count_K = class_N.bincount()
    held_K = (count_K * fraction).round().long().clamp(min=1).minimum(count_K - 1)
    _refuse_single_rows(count_K)
    return some_of_each_class(class_N, id_N, held_K, seed=seed)


def _refuse_single_rows(count_K: Tensor) -> None:
    if int(count_K.max()) < 2:
        raise ValueError(
            f"The {int(count_K.sum())} labelled train samples have {len(count_K)} classes with one "
            "sample each: nothing can be held out to choose by. Use more labelled train samples."
        )


def folds_of(class_N: Tensor, id_N: Tensor, *, count: int, seed: int) -> Tensor:
    """Return with which others each row [N] is held out: 0 to count - 1, or -1 for never.

    Every class is spread evenly, by seed and sample id. The only row of a class is never held out,
    so that no held-out row is of a class that the fit has not seen.

    Raises:
        ValueError: no class has two rows.
    """
    count_K = class_N.bincount()
    _refuse_single_rows(count_K)
    # Small classes begin with another fold each: else the first would have most of their rows.
    fold_N = (place_in_class(class_N, id_N, seed=seed) + class_N) % count
    return fold_N.masked_fill(count_K[class_N] == 1, -1)


def _choose(train: Features, classes: int, l2_grid: Sequence[float]) -> tuple[float, Probe | None]:
    """Return the strength with the least cross-entropy of held-out rows, and a probe that has it.

    The grid is falling. That probe has not seen the rows of the first fold.
    """
    if len(l2_grid) == 1:
        return l2_grid[0], None
    fold_N = folds_of(train.label_N, train.id_N, count=FOLDS, seed=0)
    asked = -(-ENOUGH * FOLDS // int((fold_N >= 0).sum()))
    # Of few rows a fold may have none.
    some = [fold for fold in range(FOLDS) if bool((fold_N == fold).any())][:asked]
    held = [(fold_N == fold).nonzero()[:, 0] for fold in some]
    fitted = [(fold_N != fold).nonzero()[:, 0] for fold in some]
    probes: list[Probe | None] = [None] * len(some)
    chosen, least, worse = (l2_grid[0], None), math.inf, 0
    for l2 in l2_grid:
        loss = 0.0
        for fold, (fitted_N, held_N) in enumerate(zip(fitted, held, strict=True)):
            # Beginning from the last strength's, which is near to it.
            probe = probes[fold] = fit(
                train.h_NF,
                train.label_N,
                classes=classes,
                l2=l2,
                start=probes[fold],
                chosen_N=fitted_N,
            )
            loss += _loss(probe, train, held_N)
        if loss < least * (1 - GAIN):
            chosen, least, worse = (l2, probes[0]), loss, 0
        elif not loss <= least:  # or not a number
            worse += 1
        if worse == PATIENCE:
            break
    return chosen


def _loss(probe: Probe, train: Features, chosen_N: Tensor) -> float:
    """Return the sum of the cross-entropies of chosen rows."""
    parts = _parts(train.h_NF, train.label_N, chosen_N, _rows(train.h_NF, len(probe.bias_K)))
    losses = [cross_entropy(probe.logits(h_BF), class_B).double() for h_BF, class_B in parts]
    return float(torch.stack(losses).sum())


def _accuracy(probe: Probe, h_NF: Tensor, class_N: Tensor) -> float:
    """Return the share of the rows that are classified rightly."""
    parts = _parts(h_NF, class_N, None, _rows(h_NF, len(probe.bias_K)))
    right = torch.stack([(probe.predict(h_BF) == class_B).sum() for h_BF, class_B in parts])
    return int(right.sum()) / len(h_NF)
