"""Linear probe: multinomial logistic regression on frozen, standardised features.

    mean over samples of cross-entropy(W h + b, label) + l2 / 2 * |W|^2     (b is not penalised)

The same problem as scikit-learn's LogisticRegression with C = 1 / (l2 * N), minimised by full-batch
L-BFGS on the features' own device. The strength l2 is chosen on a part of the *training* set that
the fit has not seen; then the probe is fitted again on all of it. The test set is used once, at the
end, to report.

The features are held once. Each time that the loss is computed they are centred, a few rows at a
time, in the processor's cache, and the weights are divided by the deviations: one pass over the
memory, where a standardised copy takes two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.features import Features, number_classes
from evaluation.label_draw import some_of_each_class
from evaluation.score import exact_float32

GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
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
    validation_fraction: float = 0.2,
    seed: int = 0,
    iterations: int = 200,
) -> dict[str, float]:
    """Choose l2 on a part of train, fit on all of train, report on test.

    Args:
        train: samples to fit; those without a label are left out.
        test: samples to report on; those without a label are left out.
        l2_grid: strengths to choose from, all above 0. The best validation accuracy wins, the
            stronger of equals.
        validation_fraction: share of every class's train samples held out for that choice, 0 to 1.
        seed: decides which samples are held out.
        iterations: L-BFGS iterations at most, for every strength.

    Returns:
        {"linear_top1": share of test samples classified rightly, 0 to 1; "linear_l2": the chosen}.

    Raises:
        ValueError: a setting is out of range, or the labels do not allow classification.
    """
    check(l2_grid, validation_fraction, iterations)
    label_K, train, test = number_classes(train, test)
    l2 = _choose(
        train, len(label_K), sorted(l2_grid, reverse=True), validation_fraction, seed, iterations
    )
    probe = fit(train.h_NF, train.label_N, classes=len(label_K), l2=l2, iterations=iterations)
    return {"linear_top1": _accuracy(probe, test.h_NF, test.label_N), "linear_l2": l2}


def check(l2_grid: Sequence[float], validation_fraction: float, iterations: int) -> None:
    """Refuse settings that are out of range."""
    if not l2_grid or min(l2_grid) <= 0 or not 0 < validation_fraction < 1 or iterations < 1:
        raise ValueError(
            f"l2_grid={tuple(l2_grid)}, validation_fraction={validation_fraction} and "
            f"iterations={iterations}: strengths must be above 0, the fraction between 0 and 1, "
            f"iterations at least 1; the defaults are {GRID}, 0.2 and 200."
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
        start: begin from this probe, fitted on the same rows; None begins at 0.
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
    held_N = some_of_each_class(class_N, id_N, held_K, seed=seed)
    if not bool(held_N.any()):
        raise ValueError(
            f"The {len(class_N)} labelled train samples have {len(count_K)} classes with one "
            "sample each: nothing can be held out to choose by. Use more labelled train samples."
        )
    return held_N


def _choose(
    train: Features,
    classes: int,
    l2_grid: Sequence[float],
    fraction: float,
    seed: int,
    iterations: int,
) -> float:
    """Return the strength with the best validation accuracy; the grid is in falling order."""
    if len(l2_grid) == 1:
        return l2_grid[0]
    held_N = split(train.label_N, train.id_N, fraction=fraction, seed=seed)
    fitted_N, held_out_N = (~held_N).nonzero()[:, 0], held_N.nonzero()[:, 0]

    def fitted(l2: float, start: Probe | None) -> Probe:
        return fit(
            train.h_NF,
            train.label_N,
            classes=classes,
            l2=l2,
            iterations=iterations,
            start=start,
            chosen_N=fitted_N,
        )

    return best_strength(
        l2_grid, fitted, lambda probe: _accuracy(probe, train.h_NF, train.label_N, held_out_N)
    )


def best_strength(
    l2_grid: Sequence[float],
    fitted: Callable[[float, Probe | None], Probe],
    score: Callable[[Probe], float],
) -> float:
    """Return the strength whose probe scores best, the first of equals.

    Args:
        l2_grid: strengths in falling order.
        fitted: makes the probe of a strength, beginning from the last one's, which is near to it.
        score: of a probe on held-out rows, 0 or more.
    """
    chosen, best, probe = l2_grid[0], -1.0, None
    for l2 in l2_grid:
        probe = fitted(l2, probe)
        if (found := score(probe)) > best:
            chosen, best = l2, found
    return chosen


def _accuracy(probe: Probe, h_NF: Tensor, class_N: Tensor, chosen_N: Tensor | None = None) -> float:
    """Return the share of the chosen rows that are classified rightly; None chooses all."""
    parts = _parts(h_NF, class_N, chosen_N, _rows(h_NF, len(probe.bias_K)))
    right = torch.stack([(probe.predict(h_BF) == class_B).sum() for h_BF, class_B in parts])
    return int(right.sum()) / (len(h_NF) if chosen_N is None else len(chosen_N))
