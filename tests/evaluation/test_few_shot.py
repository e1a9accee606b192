"""Few-shot classification against scikit-learn's nearest centroid, and the laws of its draws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from evaluation import few_shot
from evaluation.features import Features


def features(N: int, seed: int, *, classes: int = 5, size: int = 12) -> Features:
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.arange(N) % classes
    h_NF = torch.randn(N, size, generator=generator) * torch.linspace(0.2, 3, size)
    h_NF[:, :classes] += F.one_hot(class_N, classes)
    order_N = torch.randperm(N, generator=generator)
    return Features(h_NF[order_N], 10 * class_N[order_N], order_N)


@pytest.mark.filterwarnings("ignore:invalid value")  # one image a class has no variance
@pytest.mark.parametrize("shots", [1, 3])
def test_figures_are_scikit_learns_over_the_same_draws(shots: int) -> None:
    train, test = features(80, 0), features(150, 1)
    found = few_shot.run(train, test, shots=shots, draws=12, rows=7)
    right = []
    index_RKS = few_shot.draw(train.label_N // 10, train.id_N, shots=shots, draws=12, seed=0)
    queries = normalize(test.h_NF.double().numpy())
    for drawn in index_RKS.flatten(1).numpy():
        oracle = NearestCentroid()
        oracle.fit(normalize(train.h_NF.double().numpy()[drawn]), train.label_N.numpy()[drawn])
        right.append(oracle.score(queries, test.label_N.numpy()))
    assert found[f"few_shot_{shots}_top1"] == pytest.approx(np.mean(right), abs=1e-9)
    interval = 1.96 * np.std(right, ddof=1) / 12**0.5
    assert found[f"few_shot_{shots}_ci"] == pytest.approx(interval, abs=1e-9)
    assert len(set(right)) > 3 and 0.2 < np.mean(right) < 1


def test_a_draw_has_different_images_of_every_class_each_as_probable() -> None:
    class_N = torch.tensor([0] * 6 + [1] * 4 + [2] * 9)
    rows_RKS = few_shot.draw(class_N, torch.arange(19), shots=4, draws=3000, seed=0)
    assert rows_RKS.shape == (3000, 3, 4)
    assert (class_N[rows_RKS] == torch.arange(3)[:, None]).all()
    assert all(len(set(rows)) == 4 for rows in rows_RKS.flatten(0, 1).tolist())
    assert rows_RKS[:, 1].sort(dim=1).values.unique(dim=0).tolist() == [[6, 7, 8, 9]]
    share_6 = rows_RKS[:, 0].flatten().bincount(minlength=6) / 3000
    assert share_6.tolist() == pytest.approx([4 / 6] * 6, abs=0.05)


def test_a_larger_draw_begins_with_the_smaller_and_the_order_of_samples_does_not_matter() -> None:
    train = features(60, 2)
    draw = few_shot.draw(train.label_N // 10, train.id_N, shots=5, draws=4, seed=3)
    small = few_shot.draw(train.label_N // 10, train.id_N, shots=1, draws=4, seed=3)
    assert torch.equal(draw[:, :, :1], small)
    other = Features(train.h_NF.flip(0), train.label_N.flip(0), train.id_N.flip(0))
    again = few_shot.draw(other.label_N // 10, other.id_N, shots=5, draws=4, seed=3)
    assert torch.equal(train.id_N[draw], other.id_N[again])
    assert not torch.equal(
        draw, few_shot.draw(train.label_N // 10, train.id_N, shots=5, draws=4, seed=4)
    )


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = features(60, 4), features(70, 5)
    expected = few_shot.run(train, test, shots=2, draws=9)
    monkeypatch.setattr(few_shot, "MEANS", 2 * 5 * 2 * 12)  # two draws at once
    assert few_shot.run(train, test, shots=2, draws=9) == expected


def test_all_images_of_a_class_leave_nothing_to_chance() -> None:
    train, test = features(25, 6), features(70, 7)
    assert few_shot.run(train, test, shots=5, draws=3)["few_shot_5_ci"] == pytest.approx(
        0, abs=1e-9
    )


def test_classes_with_too_few_images_are_named() -> None:
    train = features(23, 8)  # the last two classes have 4
    names = [f"name {label}" for label in range(41)]
    with pytest.raises(
        ValueError, match=r"2 of 5 classes .* 5 train images \(name 30 has 4, name 40"
    ):
        few_shot.run(train, train, shots=5, classes=names)
    with pytest.raises(ValueError, match=r"\(30 has 4, 40 has 4\)"):
        few_shot.run(train, train, shots=5)


def test_rows_without_a_label_change_nothing_and_a_class_that_train_lacks_is_wrong() -> None:
    train, test = features(60, 9), features(50, 10)
    expected = few_shot.run(train, test, shots=2, draws=5)

    def beside(part: Features, label: int) -> Features:
        return Features(
            torch.cat([part.h_NF, part.h_NF[:50]]),
            torch.cat([part.label_N, torch.full((50,), label)]),
            torch.arange(len(part) + 50),
        )

    same = Features(train.h_NF, train.label_N, torch.arange(60))
    expected = few_shot.run(same, test, shots=2, draws=5)
    found = few_shot.run(same, beside(test, -1), shots=2, draws=5)
    assert found == expected
    found = few_shot.run(same, beside(test, 77), shots=2, draws=5)
    assert found["few_shot_2_top1"] == pytest.approx(expected["few_shot_2_top1"] / 2)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="draws=1"):
        few_shot.run(features(20, 0), features(20, 0), shots=1, draws=1)
