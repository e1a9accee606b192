"""Features: order, modes, precision, and the messages for sets that cannot be classified."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from evaluation import retrieval
from evaluation.features import Features, embed, number_classes
from evaluation.score import blocks, exact_float32


@dataclass(frozen=True)
class FakeBatch:
    image_BCHW: Tensor
    label_B: Tensor
    id_B: Tensor
    category_BK: Tensor | None = None


class Pool(nn.Module):
    """Mean over the image, then batch norm and dropout, which act only in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.seen: list[torch.dtype] = []

    def forward(self, image_BCHW: Tensor) -> Tensor:
        assert not self.training and not self.drop.training
        h_BF = image_BCHW.mean(dim=(2, 3)) @ torch.eye(3)
        self.seen.append(h_BF.dtype)
        return self.drop(self.frozen(h_BF))


def batches(N: int = 7, size: int = 3) -> list[FakeBatch]:
    image_NCHW = torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label_N, id_N = torch.arange(N) % 3 - 1, 100 - torch.arange(N)
    return [
        FakeBatch(image_NCHW[i : i + size], label_N[i : i + size], id_N[i : i + size])
        for i in range(0, N, size)
    ]


def features(label: list[int], F: int = 4) -> Features:
    N = len(label)
    h_NF = torch.randn(N, F, generator=torch.Generator().manual_seed(N))
    return Features(h_NF, torch.tensor(label), torch.arange(N))


def test_embed_keeps_the_order_of_the_batches_and_uses_eval_mode():
    encoder = Pool().train()
    found = embed(encoder, batches())
    image_NCHW = torch.cat([batch.image_BCHW for batch in batches()])
    expected_NF = image_NCHW.mean(dim=(2, 3)) / (1 + encoder.frozen.eps) ** 0.5
    torch.testing.assert_close(found.h_NF, expected_NF)
    assert found.label_N.tolist() == [-1, 0, 1, -1, 0, 1, -1]
    assert found.id_N.tolist() == list(range(100, 93, -1))
    assert found.h_NF.dtype == torch.float32 and found.id_N.dtype == torch.int64


def test_a_known_number_of_samples_changes_nothing():
    expected = embed(Pool().eval(), batches())
    found = embed(Pool().eval(), batches(), samples=7)
    assert torch.equal(found.h_NF, expected.h_NF) and torch.equal(found.id_N, expected.id_N)
    found.h_NF.requires_grad_().sum().backward()  # no tensor of inference mode


def test_embed_restores_every_modules_own_mode():
    encoder = Pool().train()
    encoder.frozen.eval()  # a part that is frozen while the rest trains
    embed(encoder, batches())
    assert encoder.training and encoder.drop.training and not encoder.frozen.training


def test_embed_restores_the_modes_when_a_batch_fails():
    def broken():
        yield batches()[0]
        raise OSError("the disk went away")

    encoder = Pool().train()
    encoder.frozen.eval()
    with pytest.raises(OSError, match="the disk went away"):
        embed(encoder, broken())
    assert encoder.training and encoder.drop.training and not encoder.frozen.training


def test_embed_copies_what_a_loader_may_overwrite():
    def reused():
        batch = batches(size=2)[0]
        for value in (1, 2):
            batch.label_B.fill_(value)
            batch.id_B.fill_(value)
            yield batch

    found = embed(Pool(), reused())
    assert found.label_N.tolist() == found.id_N.tolist() == [1, 1, 2, 2]


def test_features_of_embed_can_take_part_in_autograd():
    # Tensors made in inference mode cannot: the linear probe would fail on them.
    weight = torch.ones(3, requires_grad=True)
    (embed(Pool(), batches()).h_NF @ weight).sum().backward()
    assert weight.grad is not None


def test_autocast_computes_low_and_keeps_float32():
    encoder = Pool()
    found = embed(encoder, batches(), autocast=torch.bfloat16)
    assert set(encoder.seen) == {torch.bfloat16} and found.h_NF.dtype == torch.float32
    embed(encoder, batches())
    assert encoder.seen[-1] == torch.float32


def test_embed_refuses_no_batches_and_feature_maps():
    with pytest.raises(ValueError, match="no batch"):
        embed(Pool(), [])
    with pytest.raises(ValueError, match=r"\[3, 3, 4, 4\], expected features \[B, F\]"):
        embed(nn.Identity(), batches())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_numbers_are_refused_by_every_evaluation(value: float):
    good, bad = features([0, 1, 0]), features([0, 1, 0])
    bad.h_NF[1, 2] = value
    with pytest.raises(ValueError, match="1 of 3 samples have features that are not finite"):
        number_classes(good, bad)
    with pytest.raises(ValueError, match="1 of 3 samples have features that are not finite"):
        retrieval.run_labels(bad)


def test_features_refuse_lengths_that_differ():
    with pytest.raises(ValueError, match=r"found \[2, 4\], \[3\] and \[2\]"):
        Features(torch.zeros(2, 4), torch.zeros(3), torch.zeros(2))


def test_labelled_drops_the_rows_without_a_label():
    found = features([3, -1, 5, -1]).labelled()
    assert found.label_N.tolist() == [3, 5] and found.id_N.tolist() == [0, 2]
    assert torch.equal(found.h_NF, features([3, -1, 5, -1]).h_NF[[0, 2]])


def test_classes_are_numbered_in_the_order_of_their_labels():
    label_K, train, test = number_classes(features([70, 5, -1, 30]), features([30, -1, 70]))
    assert label_K.tolist() == [5, 30, 70]
    assert train.label_N.tolist() == [2, 0, 1] and test.label_N.tolist() == [1, 2]


def test_a_test_sample_of_a_class_that_train_lacks_is_right_for_no_classifier():
    label_K, train, test = number_classes(features([70, 5, 5]), features([5, 30, 70, 99, -1]))
    assert label_K.tolist() == [5, 70] and train.label_N.tolist() == [1, 0, 0]
    assert test.label_N.tolist() == [0, -1, 1, -1]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (features([-1, -1]), features([0, 1]), "None of the 2 train samples"),
        (features([0, 1]), features([-1]), "None of the 1 test samples"),
        (features([4, 4, -1]), features([4]), "All 2 labelled train samples have the label 4"),
        (features([0, 1]), features([2, 3, -1]), "none of the 2 classes of train, 0 to 1"),
        (features([0, 1]), features([0, 1], F=5), "size 4, test features 5"),
    ],
)
def test_sets_that_do_not_fit_are_refused(train: Features, test: Features, message: str):
    with pytest.raises(ValueError, match=message):
        number_classes(train, test)


def test_scores_are_exact_whatever_training_has_set():
    generator = torch.Generator().manual_seed(0)
    query_QD, gallery_GD = (torch.randn(64, 256, generator=generator) for _ in range(2))
    exact_QG = query_QD.double() @ gallery_GD.double().T
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 on CPUs that have it, TF32 on GPUs
        with torch.autocast("cpu", dtype=torch.bfloat16):
            S_QG = torch.cat([S for _, S in blocks(query_QD, gallery_GD, rows=10)])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert S_QG.dtype == torch.float32
    assert (S_QG - exact_QG).abs().max() < 1e-4  # bfloat16 is wrong by 0.2 here


def test_precision_is_restored_when_the_body_fails():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), exact_float32(torch.device("cpu")):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
