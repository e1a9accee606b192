"""Weighted k-NN against scikit-learn and against a loop over the definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from evaluation import knn, score
from evaluation.features import Features


def features(N: int, *, seed: int, classes: int = 5, labels: int = 1) -> Features:
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.randint(0, classes, (N,), generator=generator)
    h_NF = torch.randn(N, 16, generator=generator)
    h_NF[:, :classes] += 1.2 * F.one_hot(class_N, classes)
    return Features(h_NF, class_N * labels, torch.arange(N))


def top1_by_loops(train: Features, test: Features, neighbours: int, temperature: float) -> float:
    """The definition: one test sample, one cosine, one vote at a time, in float64."""
    right = 0
    for h_F, label in zip(test.h_NF.double(), test.label_N.tolist(), strict=True):
        cosine = [float(F.cosine_similarity(h_F, g_F, dim=0)) for g_F in train.h_NF.double()]
        nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:neighbours]
        votes: dict[int, float] = {}
        for i in nearest:
            vote = int(train.label_N[i])
            votes[vote] = votes.get(vote, 0.0) + math.exp(cosine[i] / temperature)
        right += max(votes, key=lambda vote: votes[vote]) == label
    return right / len(test)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.07), (7, 1.0)])
def test_knn_equals_a_loop_over_the_definition(neighbours: int, temperature: float):
    train, test = features(60, seed=0), features(40, seed=1)
    expected = top1_by_loops(train, test, neighbours, temperature)
    found = knn.run(train, test, neighbours=neighbours, temperature=temperature)
    assert found == {"knn_top1": pytest.approx(expected)} and 0.3 < expected < 1


def test_knn_equals_scikit_learn_with_the_same_weights():
    train, test = features(700, seed=2, labels=10), features(300, seed=3, labels=10)
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute")
    oracle.set_params(weights=lambda distance: np.exp((1 - distance) / 0.07))
    oracle.fit(train.h_NF.double().numpy(), train.label_N.numpy())
    expected = oracle.score(test.h_NF.double().numpy(), test.label_N.numpy())
    assert knn.run(train, test)["knn_top1"] == pytest.approx(expected)


def test_block_size_does_not_change_the_result():
    train, test = features(200, seed=4), features(101, seed=5)
    assert knn.run(train, test, rows=1) == knn.run(train, test, rows=7) == knn.run(train, test)


def test_votes_that_are_counted_in_parts_are_for_the_same_classes(monkeypatch: pytest.MonkeyPatch):
    train, test = features(200, seed=4), features(101, seed=5)
    classes: list[Tensor] = []
    classify = knn._classify

    def kept(*given: Any) -> Tensor:
        classes.append(classify(*given))
        return classes[-1]

    monkeypatch.setattr(knn, "_classify", kept)
    expected = knn.run(train, test)
    (whole_Q,) = classes
    for votes, samples in ((7 * 5, 7), (1, 1)):  # of five classes; and a last part of three
        classes.clear()
        monkeypatch.setattr(knn, "VOTES", votes)
        assert knn.run(train, test) == expected
        assert torch.equal(torch.cat(classes), whole_Q)
        assert max(map(len, classes)) == samples


def test_a_gallery_in_parts_has_the_same_neighbours(monkeypatch: pytest.MonkeyPatch):
    train, test = features(200, seed=4), features(101, seed=5)
    expected = score.nearest(test.h_NF, train.h_NF, count=20)
    similarity_QG = F.normalize(test.h_NF, dim=1) @ F.normalize(train.h_NF, dim=1).T
    assert torch.equal(expected[1], similarity_QG.argsort(dim=1, descending=True)[:, :20])
    for columns in (7, 199):  # fewer than are asked for; and a last part of one
        monkeypatch.setattr(score, "GALLERY", 16 * columns)
        found = score.nearest(test.h_NF, train.h_NF, count=20, rows=10)
        torch.testing.assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_more_neighbours_than_train_samples_means_all_of_them():
    train, test = features(15, seed=6), features(30, seed=7)
    everyone = top1_by_loops(train, test, 15, 0.07)
    assert knn.run(train, test, neighbours=20)["knn_top1"] == pytest.approx(everyone)


def test_rows_without_a_label_neither_vote_nor_count():
    train, test = features(80, seed=8), features(40, seed=9)
    with_strangers = [
        Features(
            torch.cat([part.h_NF, test.h_NF]),  # would be perfect neighbours
            torch.cat([part.label_N, torch.full((40,), -1)]),
            torch.arange(len(part) + 40),
        )
        for part in (train, test)
    ]
    assert knn.run(*with_strangers) == knn.run(train, test)


def test_equal_votes_go_to_the_lowest_label():
    train = Features(torch.eye(2), torch.tensor([9, 4]), torch.arange(2))
    test = Features(torch.ones(1, 2), torch.tensor([4]), torch.arange(1))
    assert knn.run(train, test) == {"knn_top1": 1.0}


def test_a_tiny_temperature_lets_the_nearest_decide_without_overflow():
    train, test = features(60, seed=10), features(40, seed=11)
    nearest = knn.run(train, test, neighbours=1)
    assert knn.run(train, test, temperature=1e-6) == nearest


def test_impossible_settings_are_refused():
    train = features(20, seed=12)
    with pytest.raises(ValueError, match="neighbours=0 and temperature"):
        knn.run(train, train, neighbours=0)
    with pytest.raises(ValueError, match="temperature=0"):
        knn.run(train, train, temperature=0)
