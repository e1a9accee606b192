"""Retrieval against scikit-learn's average precision, sorted lists, and known values."""

import itertools
import math
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch.utils._python_dispatch import TorchDispatchMode

from evaluation import retrieval
from evaluation.features import Features


def random_embeddings(V: int, A: int, D: int = 8, noise: float = 0.7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    sample_1AD = torch.randn(1, A, D, generator=generator)
    return sample_1AD + noise * torch.randn(V, A, D, generator=generator)


def rankings(z_QD: torch.Tensor, label: list[int]):
    """Scores and right answers of every query's gallery, the query left out, in float64."""
    z_QD = F.normalize(z_QD.double(), dim=1)
    for q in range(len(z_QD)):
        others = [g for g in range(len(z_QD)) if g != q]
        score = [float(z_QD[q] @ z_QD[g]) for g in others]
        yield score, [label[g] == label[q] for g in others]


def recall(score: list[float], right: list[bool], k: int) -> bool:
    order = sorted(range(len(score)), key=lambda i: -score[i])
    return any(right[i] for i in order[:k])


@pytest.mark.parametrize(("V", "A", "D"), [(2, 9, 8), (3, 6, 4), (5, 7, 8), (4, 2, 3)])
def test_view_average_precision_equals_scikit_learn(V: int, A: int, D: int):
    z_VAD = random_embeddings(V, A, D)
    sample = [q % A for q in range(V * A)]  # row v * A + a is view v of sample a
    expected = [
        average_precision_score(right, score)
        for score, right in rankings(z_VAD.flatten(0, 1), sample)
    ]
    found_Q = retrieval.view_average_precision(z_VAD)
    torch.testing.assert_close(found_Q.double(), torch.tensor(expected, dtype=torch.float64))
    assert retrieval.run_views(z_VAD)["view_map"] == pytest.approx(mean(expected))


def test_view_recall_equals_a_sorted_list():
    V, A = 3, 12
    z_VAD = random_embeddings(V, A, noise=1.5)
    ranked = list(rankings(z_VAD.flatten(0, 1), [q % A for q in range(V * A)]))
    found = retrieval.run_views(z_VAD)
    assert found["view_r1"] == pytest.approx(mean(recall(*query, 1) for query in ranked))
    assert found["view_r5"] == pytest.approx(mean(recall(*query, 5) for query in ranked))
    assert 0 < found["view_r1"] < found["view_r5"] < 1


def test_label_retrieval_equals_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    label_N = torch.randint(0, 6, (70,), generator=generator)
    h_NF = torch.randn(70, 10, generator=generator)
    h_NF[:, :6] += 0.7 * F.one_hot(label_N, 6)
    ranked = list(rankings(h_NF, label_N.tolist()))
    found = retrieval.run_labels(Features(h_NF, label_N, torch.arange(70)))
    expected = mean(float(average_precision_score(right, score)) for score, right in ranked)
    assert found["label_map"] == pytest.approx(expected, abs=1e-6)
    assert found["label_r1"] == pytest.approx(mean(recall(*query, 1) for query in ranked))
    assert found["label_r5"] == pytest.approx(mean(recall(*query, 5) for query in ranked))


def test_average_precision_with_ties_equals_scikit_learn():
    generator = torch.Generator().manual_seed(2)
    S_QG = torch.randint(0, 6, (50, 40), generator=generator).float()  # about 7 rows a score
    positive_QG = torch.rand(50, 40, generator=generator) < 0.2
    positive_QG[:, 0] = True
    found_Q = retrieval.average_precision(S_QG, positive_QG)
    for S_G, positive_G, found in zip(S_QG, positive_QG, found_Q, strict=True):
        expected = average_precision_score(positive_G.numpy(), S_G.numpy())
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_average_precision_of_known_orders():
    S_QG = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(4, 4)
    positive_QG = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = retrieval.average_precision(S_QG, positive_QG).tolist()
    assert found[:3] == pytest.approx([1, (1 / 3 + 2 / 4) / 2, 1 / 2])
    assert math.isnan(found[3])  # nothing to find
    nothing_QG = torch.zeros(4, 4, dtype=torch.bool)
    assert retrieval.average_precision(S_QG, nothing_QG).isnan().all()


def test_minus_infinity_takes_a_row_out_of_the_gallery():
    S_QG = torch.tensor([[-torch.inf, 2.0, 3.0, 1.0]])
    positive_QG = torch.tensor([[False, True, False, True]])
    expected = average_precision_score([1, 0, 1], [2.0, 3.0, 1.0])
    assert retrieval.average_precision(S_QG, positive_QG).item() == pytest.approx(expected)
    assert retrieval.negatives_above(S_QG, positive_QG).tolist() == [1]


def test_a_collapsed_encoder_gains_nothing_from_ties():
    V, A = 4, 5
    found = retrieval.run_views(torch.ones(V, A, 3))
    chance = (V - 1) / (V * A - 1)
    assert found == {"view_map": pytest.approx(chance), "view_r1": 0, "view_r5": 0}
    labels = Features(torch.ones(20, 3), torch.arange(20) % 2, torch.arange(20))
    expected = {"label_map": pytest.approx(9 / 19), "label_r1": 0, "label_r5": 0}
    assert retrieval.run_labels(labels) == expected


def test_equal_views_of_different_samples_are_found_perfectly():
    z_VAD = torch.eye(6).expand(3, 6, 6)
    assert set(retrieval.run_views(z_VAD).values()) == {1.0}


def test_random_embeddings_score_near_chance():
    z_VAD = torch.randn(4, 100, 32, generator=torch.Generator().manual_seed(3))
    assert retrieval.run_views(z_VAD)["view_map"] < 0.05


@pytest.mark.parametrize("rows", [1, 5, 24, 1000])
def test_block_size_does_not_change_the_result(rows: int):
    z_VAD = random_embeddings(4, 6)
    assert retrieval.run_views(z_VAD, rows=rows) == retrieval.run_views(z_VAD)
    label_N = torch.arange(24) % 3
    test = Features(z_VAD.flatten(0, 1), label_N, torch.arange(24))
    assert retrieval.run_labels(test, rows=rows) == pytest.approx(retrieval.run_labels(test))


def test_scale_and_half_precision_storage_do_not_matter():
    z_VAD = random_embeddings(3, 8).bfloat16()
    expected = retrieval.view_average_precision(z_VAD.double())
    assert torch.equal(retrieval.view_average_precision(z_VAD), expected)
    assert torch.equal(retrieval.view_average_precision(64 * z_VAD), expected)


def test_view_average_precision_carries_no_gradient_and_survives_autocast():
    z_VAD = random_embeddings(3, 8).requires_grad_()
    found_Q = retrieval.view_average_precision(z_VAD)
    assert not found_Q.requires_grad and found_Q.shape == (24,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieval.view_average_precision(z_VAD), found_Q)


def test_view_average_precision_never_waits_for_the_device():
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}

    class ShapeRecorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    called: set[str] = set()
    with ShapeRecorder():
        retrieval.view_average_precision(random_embeddings(3, 8))
    assert "aten::mm" in called and not called & waits
    with ShapeRecorder():
        retrieval.run_views(random_embeddings(3, 8))
    assert called & waits  # the recorder does see them


def test_a_diverged_embedding_shows_as_nan():
    z_VAD = random_embeddings(3, 8)
    z_VAD[0, 0, 0] = torch.nan
    assert retrieval.view_average_precision(z_VAD).mean().isnan()


def test_rows_without_a_label_are_neither_queries_nor_gallery():
    z_QD = random_embeddings(4, 6).flatten(0, 1)
    label_N = torch.arange(24) % 3
    mixed = Features(
        torch.cat([z_QD, z_QD]), torch.cat([label_N, torch.full((24,), -1)]), torch.arange(48)
    )
    alone = Features(z_QD, label_N, torch.arange(24))
    assert retrieval.run_labels(mixed) == pytest.approx(retrieval.run_labels(alone))


def test_a_label_of_its_own_stays_in_the_gallery_but_is_no_query():
    h_NF = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.1]])  # the third is nearest to the first
    found = retrieval.run_labels(Features(h_NF, torch.tensor([0, 0, 7]), torch.arange(3)))
    assert found == {"label_map": pytest.approx(0.5), "label_r1": 0.0, "label_r5": 1.0}


def test_some_queries_rank_the_whole_set_and_are_the_same_ones_in_any_order():
    generator = torch.Generator().manual_seed(4)
    label_N = torch.randint(0, 6, (70,), generator=generator)
    h_NF = torch.randn(70, 10, generator=generator)
    h_NF[:, :6] += 0.7 * F.one_hot(label_N, 6)
    whole = Features(h_NF, label_N, torch.arange(70))
    ranked = rankings(h_NF, label_N.tolist())
    ap = [float(average_precision_score(right, score)) for score, right in ranked]
    first, two = (retrieval.run_labels(whole, queries=n)["label_map"] for n in (1, 2))
    for one in (first, 2 * two - first):  # each is that of a query; the second is another one
        assert min(abs(each - one) for each in ap) < 1e-6
    assert abs(two - first) > 1e-4
    order_N = torch.randperm(70, generator=generator)
    other = Features(h_NF[order_N], label_N[order_N], order_N)
    some = retrieval.run_labels(whole, queries=30)
    assert retrieval.run_labels(other, queries=30) == pytest.approx(some)
    assert some["label_map"] != retrieval.run_labels(whole)["label_map"]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 8, 4\], expected \[V, A, D\] with 2 or more"):
        retrieval.run_views(torch.zeros(1, 8, 4))
    with pytest.raises(ValueError, match="No two of the 3 labelled samples"):
        label_N = torch.tensor([0, 1, 2, -1, -1])
        retrieval.run_labels(Features(torch.zeros(5, 2), label_N, torch.arange(5)))


@pytest.mark.parametrize(("views", "samples"), [(2, 2), (2, 4), (3, 2), (4, 3), (5, 2)])
def test_chance_is_the_mean_over_all_rankings(views: int, samples: int) -> None:
    """Each choice of places for the positives is as probable as any other."""
    positives, gallery = views - 1, views * samples - 1
    values = [
        sum(hits / place for hits, place in enumerate(places, start=1)) / positives
        for places in itertools.combinations(range(1, gallery + 1), positives)
    ]
    expected = sum(values) / len(values)
    assert retrieval.chance(views=views, samples=samples) == pytest.approx(expected)
