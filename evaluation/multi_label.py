"""Images with any number of categories: a linear probe and k-NN on frozen features.

The probe is a binary logistic regression for each category k, on standardised features:

    mean over samples of BCE(w_k h + b_k, category k) + l2 / 2 * |w_k|^2     (b is not penalised)

the same problem as scikit-learn's LogisticRegression with C = 1 / (l2 * samples), minimised as in
`linear`, all categories at once. One strength l2 serves all; a part of the *training* set that the
fit has not seen chooses it, by mean average precision. A sample that does not count for a category,
such as one with a "difficult" object, is neither fitted nor ranked there.

k-NN: a category's score is its share among the nearest train samples, weighted as in `knn`.

Each category ranks the test samples; see `category_precision` for the three definitions of AP.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import knn, linear
from evaluation.category_precision import category_precision, mean_precision
from evaluation.features import Features
from evaluation.linear import Loss, Probe
from evaluation.protocol import Evaluation
from evaluation.score import nearest
from shards.layout import PRESENT, ShardSet
from shards.one_line import few

GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 0.2
"""Share of the train samples by which the strength is chosen."""


def run(
    train: Features,
    test: Features,
    *,
    categories: Sequence[str],
    l2_grid: Sequence[float] = GRID,
) -> Evaluation:
    """Choose l2 on a part of train, fit on all of train, report on test.

    Args:
        train: samples to fit; those without annotations are left out.
        test: samples to report on; likewise.
        categories: names of the K columns of both.
        l2_grid: strengths to choose from, all above 0. The best validation mAP wins, the stronger
            of equals.

    Returns:
        multi_label_map: mean over the categories that a test sample shows of their AP by `step`.
        multi_label_voc_map, multi_label_voc07_map: the same by `voc` and by `voc07`.
        multi_label_l2: the chosen strength.
        In the details, multi_label_ap: AP of each category, by `step`.

    Raises:
        ValueError: a setting is out of range, or the categories do not allow it.
    """
    linear.check(l2_grid)
    (train, train_NK), (test, test_NK) = train.annotated(), test.annotated()
    falling = sorted(l2_grid, reverse=True)
    l2 = _choose(train, train_NK, falling)
    probe = fit(train.h_NF, train_NK, l2=l2)
    found = category_precision(probe.logits(test.h_NF), test_NK)
    return Evaluation(
        {
            "multi_label_map": mean_precision(found.step_K),
            "multi_label_voc_map": mean_precision(found.voc_K),
            "multi_label_voc07_map": mean_precision(found.voc07_K),
            "multi_label_l2": l2,
        },
        details={"multi_label_ap": found.by_name(categories)},
    )


@torch.no_grad()
def run_knn(
    train: Features,
    test: Features,
    *,
    categories: Sequence[str],
    neighbours: int = 20,
    temperature: float = 0.07,
    rows: int | None = None,
) -> Evaluation:
    """Score every test sample's categories by its nearest train samples.

    A neighbour that does not count for a category has no say in it.

    Args:
        train: the samples that vote; those without annotations are left out.
        test: the samples to score; likewise.
        categories: names of the K columns of both.
        neighbours: votes per test sample; all of train where it is smaller.
        temperature: T of the weights exp(s / T) for cosine s.
        rows: test samples per block; changes memory and speed only.

    Returns:
        multi_label_knn_map: mean over the categories that a test sample shows of their AP.
        In the details, multi_label_knn_ap: AP of each category.

    Raises:
        ValueError: a setting is out of range, or the categories do not allow it.
    """
    knn.check(neighbours, temperature)
    (train, train_NK), (test, test_NK) = train.annotated(), test.annotated()
    # M neighbours; K is for categories.
    s_QM, row_QM = nearest(test.h_NF, train.h_NF, count=neighbours, rows=rows)
    weight_QM = knn.weights(s_QM, temperature)
    present_QK = weight_QM.new_zeros(len(s_QM), train_NK.shape[1])
    counted_QK = torch.zeros_like(present_QK)
    # One neighbour at a time: the order of the additions is the same in every run, and memory that
    # of two of them.
    for weight_Q, row_Q in zip(weight_QM.T, row_QM.T, strict=True):
        category_QK = train_NK[row_Q]
        present_QK += weight_Q[:, None] * (category_QK == PRESENT)
        counted_QK += weight_Q[:, None] * (category_QK <= PRESENT)
    share_QK = torch.where(counted_QK > 0, present_QK / counted_QK, 0)
    found = category_precision(share_QK, test_NK)
    return Evaluation(
        {"multi_label_knn_map": mean_precision(found.step_K)},
        details={"multi_label_knn_ap": found.by_name(categories)},
    )


def fit(
    h_NF: Tensor,
    category_NK: Tensor,
    *,
    l2: float,
    iterations: int = 200,
    start: Probe | None = None,
    chosen_N: Tensor | None = None,
) -> Probe:
    """Minimise the objective above on features h [N, F] with categories [N, K].

    A category that the samples do not both show and lack has weights of 0: it scores all alike.

    Args:
        h_NF: features; no copy of many is made.
        category_NK: 0 absent, 1 present, more: not counted.
        l2: strength of the penalty, on each category's *mean* cross-entropy.
        iterations: L-BFGS iterations at most.
        start: begin from this probe's weight and bias, fitted on the same rows; None begins at 0.
        chosen_N: numbers of the rows to fit; None is all of them.
    """
    fitted_NK = category_NK if chosen_N is None else category_NK[chosen_N]
    counted_K = (fitted_NK <= PRESENT).sum(dim=0)
    # `linear.fit` divides by the rows; a category is to be divided by those that it counts.
    weight_K = torch.where(_both(fitted_NK), len(fitted_NK) / counted_K, 0)
    return linear.fit(
        h_NF,
        category_NK,
        classes=category_NK.shape[1],
        l2=l2,
        iterations=iterations,
        start=start,
        loss=_binary_cross_entropies(weight_K),
        chosen_N=chosen_N,
    )


def names_of(of: ShardSet) -> list[str]:
    """Return the names of a set's categories, each once: sets of COCO's format may repeat one."""
    return [*dict.fromkeys(of.manifest.categories)]


def common_categories(train: ShardSet, test: ShardSet) -> list[str]:
    """Return the names of the categories that both sets have, in the order of train's columns."""
    return [name for name in names_of(train) if name in test.manifest.categories]


def of_categories(features: Features, of: ShardSet, names: Sequence[str]) -> Features:
    """Return the features of a set with a column for each of these categories, in this order."""
    category_NK, places = features.category_NK, dict[str, list[int]]()
    assert category_NK is not None, of.root
    for column, name in enumerate(of.manifest.categories):
        places.setdefault(name, []).append(column)
    joined = [_joined(category_NK[:, places[name]]) for name in names]
    return replace(features, category_NK=torch.stack(joined, dim=1))


def remarks(train: ShardSet | None, test: ShardSet) -> list[str]:
    """Return what the manifests say will be left out, and should be known of the figures."""
    here = test.manifest.categories
    if not here:
        return [f"no multi-label figures: {test.root} has no categories"]
    if train is None:
        return []
    there, without = train.manifest.categories, "no multi-label k-NN, probe"
    if not there:
        return [f"{without}: {train.root} has no categories"]
    if not common_categories(train, test):
        names = f"{few(there, 3)}; {few(here, 3)}"
        return [f"{without}: {train.root} and {test.root} share no category ({names})"]
    if train.manifest == test.manifest:
        words = "what they say is not of held-out images"
        return [
            f"{test.root} is the set that multi-label k-NN and probe are fitted on too: {words}"
        ]
    apart = [n for n in dict.fromkeys((*there, *here)) if n not in there or n not in here]
    if apart:
        words = f"in one of {train.root} and {test.root} alone ({few(apart, 3)})"
        return [f"{len(apart)} categories are {words}: multi-label k-NN and probe are without them"]
    return []


def unlearnable(train: Features, test: Features, categories: Sequence[str]) -> list[str]:
    """Return a remark on categories that a test sample shows, but no train sample, or each one."""
    train_NK, test_NK = train.annotated()[1], test.annotated()[1]
    strange_K = (test_NK == PRESENT).any(dim=0) & ~_both(train_NK)
    names = [name for name, no in zip(categories, strange_K.tolist(), strict=True) if no]
    if not names:
        return []
    return [
        f"{len(names)} of {len(categories)} categories of test samples are in none of the train "
        f"samples, or in all ({few(names, 3)}): nothing can be learned of them, and they count"
    ]


def _joined(category_NC: Tensor) -> Tensor:
    """Return one column [N] for those of one name: it is present where any of them is."""
    present_N = (category_NC == PRESENT).any(dim=1)
    return category_NC.amax(dim=1).masked_fill(present_N, PRESENT)


def _both(category_NK: Tensor) -> Tensor:
    """Return the mask [K] of the categories that some samples show and others lack."""
    return (category_NK == PRESENT).any(dim=0) & (category_NK < PRESENT).any(dim=0)


def _binary_cross_entropies(weight_K: Tensor) -> Loss:
    """Return a loss that leaves out what does not count, with a weight for each category."""

    def loss(logits_BK: Tensor, category_BK: Tensor) -> Tensor:
        loss_BK = F.binary_cross_entropy_with_logits(
            logits_BK,
            (category_BK == PRESENT).to(logits_BK.dtype),
            weight=weight_K * (category_BK <= PRESENT),
            reduction="none",
        )
        # In float32 what a rare category gains is lost in the sum, and the fit would end early.
        return loss_BK.sum(dtype=torch.float64)

    return loss


def _choose(train: Features, category_NK: Tensor, l2_grid: Sequence[float]) -> float:
    """Return the strength with the best validation mAP; the grid is in falling order."""
    if not bool(_both(category_NK).any()):
        raise ValueError(
            f"No category is in some of the {len(train)} train samples and absent from others, so "
            "there is nothing to learn. Was a sorted set cut short?"
        )
    if len(l2_grid) == 1:
        return l2_grid[0]
    held_N = linear.split(_rarest(category_NK), train.id_N, fraction=HELD_OUT, seed=0)
    held_NK = category_NK[held_N]
    if not bool((held_NK == PRESENT).any()):
        raise ValueError(
            f"The {len(held_NK)} of {len(train)} train samples that are held out to choose l2 show "
            "no category. Use more train samples."
        )
    fitted_N, h_HF = (~held_N).nonzero()[:, 0], train.h_NF[held_N]

    def fitted(l2: float, start: Probe | None) -> Probe:
        return fit(train.h_NF, category_NK, l2=l2, start=start, chosen_N=fitted_N)

    def score(probe: Probe) -> float:
        return mean_precision(category_precision(probe.logits(h_HF), held_NK).step_K)

    return _best(l2_grid, fitted, score)


def _best(
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


def _rarest(category_NK: Tensor) -> Tensor:
    """Return the rarest category [N] that each sample shows; K where it shows none.

    A part of each of these groups holds out a part of every category, the rare ones too.
    """
    N, K = category_NK.shape
    present_NK = category_NK == PRESENT
    count_NK = torch.where(present_NK, present_NK.sum(dim=0), N + 1)
    fewest_N, rarest_N = count_NK.min(dim=1)
    return torch.where(fewest_N <= N, rarest_N, K)
