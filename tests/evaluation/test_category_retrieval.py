"""Retrieval by shared categories against scikit-learn's nDCG and average precision."""

from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, ndcg_score

from evaluation import category_retrieval
from evaluation.category_retrieval import graded
from evaluation.features import Features


def features(N: int, *, seed: int, K: int = 6, share: float = 0.2) -> Features:
    generator = torch.Generator().manual_seed(seed)
    category_NK = (torch.rand(N, K, generator=generator) < share).to(torch.uint8)
    h_NF = torch.randn(N, 10, generator=generator)
    h_NF[:, :K] += 1.5 * category_NK
    return Features(h_NF, torch.full((N,), -1), torch.arange(N), category_NK)


def by_scikit_learn(test: Features) -> tuple[list[float], list[float]]:
    """The nDCG and AP of each query, without pairs of which it is not known."""
    assert test.category_NK is not None
    h_NF = F.normalize(test.h_NF.double(), dim=1)
    ndcg, ap = [], []
    categories = test.category_NK.tolist()
    for q, mine in enumerate(categories):
        score, gain = [], []
        for g, theirs in enumerate(categories):
            shared = sum(a == b == 1 for a, b in zip(mine, theirs, strict=True))
            possible = any(a and b for a, b in zip(mine, theirs, strict=True))
            if g != q and (shared or not possible):
                score.append(float(h_NF[q] @ h_NF[g]))
                gain.append(shared)
        if any(gain):
            ndcg.append(float(ndcg_score([gain], [score])))
            ap.append(float(average_precision_score(np.array(gain) > 0, score)))
    return ndcg, ap


@pytest.mark.parametrize("unknown", [0.0, 0.1])
def test_retrieval_equals_scikit_learn(unknown: float):
    test = features(70, seed=0)
    assert test.category_NK is not None
    generator = torch.Generator().manual_seed(1)
    test.category_NK[torch.rand(70, 6, generator=generator) < unknown] = 2
    ndcg, ap = by_scikit_learn(test)
    assert len(ndcg) < 70, "some images show nothing that another shows"
    found = category_retrieval.run(test)
    assert found["category_ndcg"] == pytest.approx(mean(ndcg), abs=1e-6)
    assert found["category_map"] == pytest.approx(mean(ap), abs=1e-6)
    assert 0.5 < found["category_ndcg"] < 0.99 and 0.4 < found["category_map"] < 0.99


def test_gains_with_ties_equals_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    S_QG = torch.randint(0, 6, (50, 40), generator=generator).float()  # about 7 rows a score
    gain_QG = torch.randint(0, 4, (50, 40), generator=generator).float()
    S_QG -= 3  # scores below 0 are in order too
    S_QG[:, 0] = -0.0
    ndcg_Q, ap_Q = graded(S_QG, gain_QG)
    for ndcg, ap, S_G, gain_G in zip(ndcg_Q, ap_Q, S_QG, gain_QG, strict=True):
        expected = ndcg_score(gain_G[None].numpy(), S_G[None].numpy())
        assert ndcg.item() == pytest.approx(expected, abs=1e-9)
        expected = average_precision_score(gain_G.numpy() > 0, S_G.numpy())
        assert ap.item() == pytest.approx(expected, abs=1e-9)


def test_gains_of_known_orders():
    gain_QG = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    S_QG = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, -torch.inf], [3.0, 2.0, 1.0]])
    gain_QG[1, 2] = 0  # out of the gallery
    ndcg_Q, ap_Q = graded(S_QG, gain_QG)
    assert ndcg_Q[:2].tolist() == ap_Q[:2].tolist() == [1, 1]
    assert ndcg_Q[2].isnan() and ap_Q[2].isnan()
    reverse = graded(S_QG[:1].flip(1), gain_QG[:1])
    assert reverse[1].item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert reverse[0].item() == pytest.approx((2 / 2 + 1 / np.log2(3)) / (2 + 1 / np.log2(3)))


def test_a_collapsed_encoder_gains_what_chance_gives():
    test = features(60, seed=3)
    alike = Features(torch.ones(60, 10), test.label_N, test.id_N, test.category_NK)
    found = category_retrieval.run(alike)
    chance = []
    for seed in range(20):
        h_NF = torch.randn(60, 64, generator=torch.Generator().manual_seed(seed))
        random = Features(h_NF, test.label_N, test.id_N, test.category_NK)
        chance.append(category_retrieval.run(random)["category_ndcg"])
    assert found["category_ndcg"] == pytest.approx(mean(chance), abs=0.01)
    assert found["category_map"] == pytest.approx(mean(by_scikit_learn(alike)[1]), abs=1e-6)
    assert found["category_map"] < category_retrieval.run(test)["category_map"] - 0.1


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_block_size_does_not_change_the_result(rows: int):
    test = features(50, seed=4)
    assert category_retrieval.run(test, rows=rows) == pytest.approx(category_retrieval.run(test))


def test_no_more_than_so_many_images_are_queries_and_always_the_same():
    test = features(300, seed=5)
    assert test.category_NK is not None
    found, every = category_retrieval.run(test, queries=100), category_retrieval.run(test)
    assert found != every and found == pytest.approx(every, abs=0.05)
    order_N = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = Features(
        test.h_NF[order_N], test.label_N, test.id_N[order_N], test.category_NK[order_N]
    )
    assert category_retrieval.run(shuffled, queries=100) == pytest.approx(found, abs=1e-6)


def test_nothing_to_retrieve_is_refused():
    lonely = Features(torch.ones(3, 2), torch.full((3,), -1), torch.arange(3), torch.eye(3).byte())
    with pytest.raises(ValueError, match="No two of the 3 annotated samples share a category"):
        category_retrieval.run(lonely)
    with pytest.raises(ValueError, match="not of a multi-label set"):
        category_retrieval.run(Features(lonely.h_NF, lonely.label_N, lonely.id_N))
