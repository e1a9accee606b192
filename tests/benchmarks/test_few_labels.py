"""Probes of few labels, on features whose classes are known."""

import pytest
import torch

from benchmarks.few_labels import few_labels
from evaluation import linear
from evaluation.features import Features


def blobs(count: int, *, first_id: int, seed: int) -> Features:
    """Return features of three classes that overlap; labels have gaps, as shard sets' may."""
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.arange(count) % 3
    centre_KF = 1.5 * torch.eye(3, 8)
    h_NF = centre_KF[class_N] + torch.randn(count, 8, generator=generator)
    return Features(h_NF=h_NF, label_N=2 * class_N, id_N=torch.arange(count) + first_id)


def test_more_labels_are_worth_more_and_all_labels_are_the_probe_itself() -> None:
    train, test = blobs(600, first_id=0, seed=0), blobs(900, first_id=600, seed=1)
    found = few_labels(train, test, shares=(0.01, 0.1, 1.0), draws=4)
    assert {share: len(values) for share, values in found.items()} == {"0.01": 4, "0.1": 4, "1": 1}
    assert found["1"] == [linear.run(train, test)["linear_top1"]]
    assert len(set(found["0.1"])) > 1  # draws are of other images
    mean = {share: sum(values) / len(values) for share, values in found.items()}
    assert mean["0.01"] < mean["0.1"] < mean["1"]


def test_a_draw_depends_on_ids_and_not_on_the_order_of_images() -> None:
    train, test = blobs(600, first_id=0, seed=0), blobs(300, first_id=600, seed=1)
    order_N = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    turned = Features(
        h_NF=train.h_NF[order_N], label_N=train.label_N[order_N], id_N=train.id_N[order_N]
    )
    for share, values in few_labels(train, test, shares=(0.1,), draws=3).items():
        again = few_labels(turned, test, shares=(0.1,), draws=3)[share]
        assert torch.allclose(torch.tensor(values), torch.tensor(again), atol=0.01)


def test_a_share_that_is_none_of_a_small_class_is_refused() -> None:
    whole = blobs(600, first_id=0, seed=0)
    fewer = whole.rows((whole.label_N < 4) | (whole.id_N < 60))  # 200, 200 and 20 of the classes
    with pytest.raises(ValueError, match=r"of a class with 20 labels, 0.01 is none"):
        few_labels(fewer, whole, shares=(0.01,), draws=1)
