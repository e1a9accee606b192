"""Linear probe: multinomial logistic regression on frozen, standardised features.

    mean over samples of cross-entropy(W h + b, label) + l2 / 2 * |W|^2     (b is not penalised)

The same problem as scikit-learn's LogisticRegression with C = 1 / (l2 * N), minimised by full-batch
L-BFGS on the features' own device. The strength l2 is chosen on a part of the *training* set that
the fit has not seen; then the probe is fitted again on all of it. The test set is used once, at the
end, to report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features, number_classes
from evaluation.label_draw import some_of_each_class
from evaluation.score import exact_float32

GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the outputs [B, K] for some rows and their targets [B, ...]; the sum over the rows."""


def cross_entropy(logits_BK: Tensor, class_B: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of rows of class numbers [B]."""
    return F.cross_entropy(logits_BK, class_B, reduction="sum")


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
            x_NF = (h_NF - self.mean_F) / self.std_F
            return x_NF @ self.weight_KF.T + self.bias_K


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
) -> Probe:
    """Minimise the objective above on features h [N, F] of class numbers [N].

    Args:
        h_NF: features; a standardised copy of them is made.
        class_N: class numbers, 0 to classes - 1; or whatever targets the loss has.
        classes: K.
        l2: strength of the penalty, on the *mean* cross-entropy.
        iterations: L-BFGS iterations at most.
        start: begin from this probe's weight and bias, fitted on the same rows; None begins at 0.
        loss: takes the place of the cross-entropy.
    """
    # Evaluation may be called under no_grad or inference mode; only this function needs gradients.
    with torch.inference_mode(False), torch.enable_grad(), exact_float32(h_NF.device):
        std_F, mean_F = torch.std_mean(h_NF.float(), dim=0, correction=0)
        std_F = torch.where(std_F > 1e-6 * mean_F.abs(), std_F, 1)  # a constant feature stays 0
        x_NF = (h_NF - mean_F) / std_F
        class_N = class_N.clone()
        if start is None:
            weight_KF, bias_K = x_NF.new_zeros(classes, x_NF.shape[1]), x_NF.new_zeros(classes)
        else:
            weight_KF, bias_K = start.weight_KF.clone(), start.bias_K.clone()
        weight_KF.requires_grad_()
        bias_K.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight_KF, bias_K],
            max_iter=iterations,
            tolerance_grad=1e-6,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            mean = loss(x_NF @ weight_KF.T + bias_K, class_N) / len(class_N)
            objective = mean + l2 / 2 * weight_KF.square().sum()
            objective.backward()
            return objective

        optimizer.step(closure)
    return Probe(mean_F=mean_F, std_F=std_F, weight_KF=weight_KF.detach(), bias_K=bias_K.detach())


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
    h_NF, class_N = train.h_NF[~held_N], train.label_N[~held_N]
    chosen, best, probe = l2_grid[0], -1.0, None
    # From strong to weak, each from the last one's solution: they are near to each other.
    for l2 in l2_grid:
        probe = fit(h_NF, class_N, classes=classes, l2=l2, iterations=iterations, start=probe)
        accuracy = _accuracy(probe, train.h_NF[held_N], train.label_N[held_N])
        if accuracy > best:
            chosen, best = l2, accuracy
    return chosen


def _accuracy(probe: Probe, h_NF: Tensor, class_N: Tensor) -> float:
    return float((probe.predict(h_NF) == class_N).double().mean())
