"""The multi-label probe against scikit-learn, k-NN against a loop, and what is refused."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evaluation import linear, multi_label
from evaluation.features import Features

NAMES = ["bear", "cat", "dog", "eel"]


def features(
    N: int, *, seed: int, F: int = 12, apart: float = 1.0, unknown: float = 0.0
) -> Features:
    """Sums of four categories' directions, in features of very different scales."""
    fixed = torch.Generator().manual_seed(99)
    direction_KF = apart * torch.randn(4, F, generator=fixed)
    share_K = torch.tensor([0.5, 0.3, 0.15, 0.1])
    generator = torch.Generator().manual_seed(seed)
    category_NK = (torch.rand(N, 4, generator=generator) < share_K).to(torch.uint8)
    h_NF = category_NK.float() @ direction_KF + torch.randn(N, F, generator=generator)
    category_NK[torch.rand(N, 4, generator=generator) < unknown] = 2
    label_N = torch.full((N,), -1)
    scale_F = torch.logspace(-2, 2, F)
    return Features((h_NF + 3) * scale_F, label_N, torch.arange(N), category_NK)


def columns(given: Features) -> Tensor:
    assert given.category_NK is not None
    return given.category_NK


def mean_ap(score_NK: np.ndarray, category_NK: Tensor) -> float:
    """Over the categories that are shown, without what does not count, by scikit-learn."""
    found = []
    for score_N, category_N in zip(score_NK.T, category_NK.numpy().T, strict=True):
        counted_N = category_N < 2
        if (category_N == 1).any():
            found.append(average_precision_score(category_N[counted_N], score_N[counted_N]))
    return float(np.mean(found))


def test_of_columns_of_one_name_present_wins_and_then_what_does_not_count():
    category_NC = torch.tensor([[0, 0], [1, 0], [2, 1], [0, 2], [2, 2]], dtype=torch.uint8)
    assert multi_label._joined(category_NC).tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(("l2", "unknown"), [(1e-1, 0.0), (1e-3, 0.0), (1e-2, 0.2)])
def test_fit_equals_scikit_learn_at_equal_strength(l2: float, unknown: float):
    train = features(400, seed=0, unknown=unknown)
    x_NF = StandardScaler().fit_transform(train.h_NF.double().numpy())
    probe = multi_label.fit(train.h_NF, columns(train), l2=l2)
    for k, category_N in enumerate(columns(train).numpy().T):
        counted_N = category_N < 2
        oracle = LogisticRegression(C=1 / (l2 * counted_N.sum()), tol=1e-10, max_iter=10_000)
        oracle.fit(x_NF[counted_N], category_N[counted_N])
        expected = np.append(oracle.coef_, oracle.intercept_)
        found = np.append(probe.weight_KF[k].numpy(), probe.bias_K[k].numpy())
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-3)


def test_run_equals_scikit_learns_one_versus_rest_at_the_chosen_strength():
    train, test = features(300, seed=2), features(400, seed=3, unknown=0.1)
    found = multi_label.run(train, test, categories=NAMES)
    scaler = StandardScaler().fit(train.h_NF.double().numpy())
    C = 1 / (found.figures["multi_label_l2"] * len(train))
    oracle = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=10_000))
    oracle.fit(scaler.transform(train.h_NF.double().numpy()), columns(train).numpy())
    score_NK = oracle.decision_function(scaler.transform(test.h_NF.double().numpy()))
    expected = mean_ap(score_NK, columns(test))
    assert found.figures["multi_label_map"] == pytest.approx(expected, abs=2e-3)
    assert 0.4 < expected < 0.99
    assert found.figures["multi_label_map"] <= found.figures["multi_label_voc_map"] < 1
    ap = found.details["multi_label_ap"]
    assert list(ap) == NAMES
    assert np.mean(list(ap.values())) == pytest.approx(found.figures["multi_label_map"])


def test_the_strength_is_the_best_on_the_held_out_rows_by_scikit_learn(
    monkeypatch: pytest.MonkeyPatch,
):
    train = features(150, seed=6, F=60, apart=0.3)  # few samples: the strength matters
    fits: list[Tensor] = []

    def recorded(h_NF: Tensor, category_NK: Tensor, **settings) -> linear.Probe:
        fits.append(h_NF if (some := settings.get("chosen_N")) is None else h_NF[some])
        return fit(h_NF, category_NK, **settings)

    fit = multi_label.fit
    monkeypatch.setattr(multi_label, "fit", recorded)
    chosen = multi_label.run(train, train, categories=NAMES).figures["multi_label_l2"]
    # All fits but the last are of the same rows; the others were held out.
    assert len(fits) == len(multi_label.GRID) + 1 and torch.equal(fits[-1], train.h_NF)
    assert all(torch.equal(h_NF, fits[0]) for h_NF in fits[:-1])
    held = ~(train.h_NF[:, None] == fits[0]).all(dim=2).any(dim=1).numpy()
    assert 20 < held.sum() < 40

    h, category_NK = train.h_NF.double().numpy(), columns(train)
    scaler = StandardScaler().fit(h[~held])
    precision = {}
    for l2 in multi_label.GRID:
        C = 1 / (l2 * (~held).sum())
        oracle = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=10_000))
        oracle.fit(scaler.transform(h[~held]), category_NK[~held].numpy())
        score_NK = oracle.decision_function(scaler.transform(h[held]))
        precision[l2] = mean_ap(score_NK, category_NK[torch.from_numpy(held)])
    assert precision[chosen] >= max(precision.values()) - 0.005
    assert max(precision.values()) - min(precision.values()) > 0.02


def test_the_test_set_does_not_choose():
    train = features(120, seed=4, F=60, apart=0.3)
    test = features(200, seed=5, F=60, apart=0.3)
    found = multi_label.run(train, test, categories=NAMES).figures
    other = Features(test.h_NF.flip(0), test.label_N, test.id_N, columns(test))
    shuffled = multi_label.run(train, other, categories=NAMES).figures
    assert found["multi_label_l2"] == shuffled["multi_label_l2"]
    assert found["multi_label_map"] > shuffled["multi_label_map"]


def test_rare_categories_are_fitted_and_held_out(monkeypatch: pytest.MonkeyPatch):
    """Two samples of a category among 200: one of them chooses the strength, one is fitted."""
    train = features(200, seed=7)
    columns(train)[:, 3] = 0
    columns(train)[[17, 60], 3] = 1
    fits: list[Tensor] = []

    def recorded(h_NF: Tensor, category_NK: Tensor, **settings) -> linear.Probe:
        some = settings.get("chosen_N")
        fits.append(category_NK if some is None else category_NK[some])
        return fit(h_NF, category_NK, **settings)

    fit = multi_label.fit
    monkeypatch.setattr(multi_label, "fit", recorded)
    multi_label.run(train, train, categories=NAMES)
    assert [int((rows[:, 3] == 1).sum()) for rows in (fits[0], fits[-1])] == [1, 2]


def test_a_category_that_cannot_be_learned_scores_all_alike():
    train, test = features(100, seed=8), features(80, seed=9)
    columns(train)[:, 1], columns(train)[:, 2] = 0, 1
    probe = multi_label.fit(train.h_NF, columns(train), l2=1e-3)
    assert not probe.weight_KF[1:3].any() and not probe.bias_K[1:3].any()
    ap = multi_label.run(train, test, categories=NAMES).details["multi_label_ap"]
    for k in (1, 2):
        share = (columns(test)[:, k] == 1).float().mean().item()
        assert ap[NAMES[k]] == pytest.approx(share)
    (remark,) = multi_label.unlearnable(train, test, NAMES)
    assert remark.startswith("2 of 4 categories") and "(cat, dog)" in remark
    assert not multi_label.unlearnable(test, train, NAMES)


def knn_by_loops(train: Features, test: Features, neighbours: int, temperature: float) -> Tensor:
    """The definition: one test sample, one cosine, one vote at a time, in float64."""
    score_NK = torch.zeros(len(test), 4, dtype=torch.float64)
    for n, h_F in enumerate(test.h_NF.double()):
        cosine = [float(cosine_similarity(h_F, g_F, dim=0)) for g_F in train.h_NF.double()]
        nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:neighbours]
        for k in range(4):
            votes = {i: math.exp(cosine[i] / temperature) for i in nearest}
            counted = {i: vote for i, vote in votes.items() if columns(train)[i, k] < 2}
            right = sum(vote for i, vote in counted.items() if columns(train)[i, k] == 1)
            score_NK[n, k] = right / sum(counted.values()) if counted else 0
    return score_NK


@pytest.mark.parametrize(("neighbours", "unknown"), [(1, 0.0), (20, 0.0), (5, 0.5)])
def test_knn_equals_a_loop_over_the_definition(neighbours: int, unknown: float):
    train, test = features(70, seed=10, unknown=unknown), features(40, seed=11)
    train, test = (
        Features(each.h_NF / torch.logspace(-2, 2, 12) - 3, each.label_N, each.id_N, columns(each))
        for each in (train, test)
    )
    found = multi_label.run_knn(train, test, categories=NAMES, neighbours=neighbours)
    expected = mean_ap(knn_by_loops(train, test, neighbours, 0.07).numpy(), columns(test))
    assert found.figures == {"multi_label_knn_map": pytest.approx(expected, abs=1e-6)}
    assert 0.3 < expected < 0.99
    assert list(found.details["multi_label_knn_ap"]) == NAMES
    for rows in (1, 7):
        again = multi_label.run_knn(train, test, categories=NAMES, neighbours=neighbours, rows=rows)
        assert again.figures == pytest.approx(found.figures)


def test_rows_without_annotations_change_nothing():
    train, test = features(150, seed=12), features(80, seed=13)

    def disturbed(part: Features) -> Features:
        return Features(
            torch.cat([test.h_NF, part.h_NF]),  # would be perfect neighbours
            torch.full((80 + len(part),), -1),
            torch.arange(80 + len(part)) - 80,
            torch.cat([torch.full((80, 4), 2, dtype=torch.uint8), columns(part)]),
        )

    for run in (multi_label.run, multi_label.run_knn):
        found = run(disturbed(train), disturbed(test), categories=NAMES)
        assert found == run(train, test, categories=NAMES)


def test_run_repeats_itself_and_works_in_inference_mode():
    train, test = features(150, seed=14), features(80, seed=15)
    expected = multi_label.run(train, test, categories=NAMES)
    with torch.inference_mode():
        inside = Features(
            train.h_NF.clone(), train.label_N.clone(), train.id_N.clone(), columns(train).clone()
        )
        assert multi_label.run(inside, test, categories=NAMES) == expected


def test_what_cannot_be_learned_or_ranked_is_refused():
    train, test = features(30, seed=16), features(20, seed=17)
    without = Features(train.h_NF, train.label_N, train.id_N)
    unknown = Features(
        train.h_NF, train.label_N, train.id_N, torch.full((30, 4), 2, dtype=torch.uint8)
    )
    constant = Features(train.h_NF, train.label_N, train.id_N, torch.ones(30, 4, dtype=torch.uint8))
    broken = Features(train.h_NF / 0, train.label_N, train.id_N, columns(train))
    for part, words in (
        (without, "30 samples are not of a multi-label set"),
        (unknown, "None of the 30 samples has annotations"),
        (broken, "30 of 30 samples have features that are not finite"),
        (constant, "No category is in some of the 30 train samples"),
    ):
        with pytest.raises(ValueError, match=words):
            multi_label.run(part, test, categories=NAMES)
    single = Features(train.h_NF[:5], train.label_N[:5], train.id_N[:5], torch.eye(5, 4).byte())
    columns(single)[4] = 0
    with pytest.raises(ValueError, match="5 classes with one sample each"):
        multi_label.run(single, test, categories=NAMES)
    with pytest.raises(ValueError, match="the defaults are"):
        multi_label.run(train, test, categories=NAMES, l2_grid=(0.0,))
    with pytest.raises(ValueError, match="neighbours=0 and temperature"):
        multi_label.run_knn(train, test, categories=NAMES, neighbours=0)
    with pytest.raises(ValueError, match=r"need categories \[30, K\], found \[20, 4\]"):
        Features(train.h_NF, train.label_N, train.id_N, columns(test))
