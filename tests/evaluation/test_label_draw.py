"""Draws of labels against brute force, and sets that cannot be learned from."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.label_draw import LabelledSet, read_pair, trained_on_too
from pipeline.images import Images
from shards.layout import ShardSet
from shards.source.source import Sample
from shards.subset.masked import masked
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures


class OfLabels(Pictures):
    """Pictures of given labels, -1 for none."""

    def __init__(self, labels: list[int]) -> None:
        super().__init__(len(labels))
        self.labels = labels

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), label=self.labels[index])


def labelled(labels: list[int], folder: Path, *, seed: int = 0) -> ShardSet:
    return write(OfLabels(labels), folder, samples_per_shard=8 + seed, seed=seed)


def ids(known: LabelledSet, share: float, seed: int) -> set[int]:
    return set(known.id_N[known.draw(share, seed=seed)].tolist())


LABELS = [2] * 20 + [5] * 10 + [-1] * 7 + [7] * 31  # unbalanced, with gaps, some without


def test_a_draw_has_its_share_of_every_class(tmp_path: Path) -> None:
    known = LabelledSet.read(labelled(LABELS, tmp_path / "set"))
    assert known.label_K.tolist() == [2, 5, 7]
    for share in (0.1, 0.3, 0.55, 1.0):
        for seed in range(3):
            counts = Counter(LABELS[sample] for sample in ids(known, share, seed))
            assert counts == {2: round(20 * share), 5: round(10 * share), 7: round(31 * share)}
    assert ids(known, 0.3, 0) != ids(known, 0.3, 1)
    assert ids(known, 0.1, 0) < ids(known, 0.3, 0) < ids(known, 1.0, 0)


def test_every_sample_is_drawn_as_often_as_another(tmp_path: Path) -> None:
    known = LabelledSet.read(labelled([0] * 10 + [1] * 10, tmp_path / "set"))
    drawn = Counter(sample for seed in range(400) for sample in ids(known, 0.3, seed))
    assert len(drawn) == 20  # 120 times each; a deviation of the binomial law is 9
    assert all(abs(count - 120) < 5 * 9.2 for count in drawn.values())


def test_a_draw_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    one, other = (
        LabelledSet.read(labelled(LABELS, tmp_path / str(seed), seed=seed)) for seed in (0, 30)
    )
    assert one.id_N.tolist() != other.id_N.tolist()
    assert ids(one, 0.3, 4) == ids(other, 0.3, 4)


def test_a_share_that_leaves_a_class_out_is_refused(tmp_path: Path) -> None:
    known = LabelledSet.read(labelled(LABELS, tmp_path / "set"))
    with pytest.raises(ValueError, match=r"labels=0.02 of the 10 images of class 'class 5' in"):
        known.draw(0.02, seed=0)


def test_a_masked_set_has_these_samples_and_no_others(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    whole = make_shard_set(42)
    known = LabelledSet.read(whole)
    kept_N = torch.isin(known.id_N, torch.tensor([0, 3, 8, 9, 41]))
    kept_N[: whole.manifest.shards[0].samples] = True  # one shard whole, others gone
    some = masked(whole, kept_N.numpy(), tmp_path)
    assert len(some) == int(kept_N.sum()) and len(some.tars) < len(whole.tars) + 1
    found = [int(i) for batch in Images(some, size=16) for i in batch.id_B]
    assert found == known.id_N[kept_N].tolist()
    assert masked(whole, np.ones(42, dtype=bool), tmp_path).replaced == {}


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([-1] * 4, [0, 1], r"have no label, and learning needs 2 classes"),
        ([1] * 4, [0, 1], r"have a single class, and learning needs 2 classes"),
        ([0, 1, 0], [4, 5], r"no image of .* is of one of the 2 classes"),
        ([0, 1, 0], [-1, -1], r"no image of .* is of one of the 2 classes"),
    ],
)
def test_labels_that_do_not_suit_are_refused(
    train: list[int], test: list[int], message: str, tmp_path: Path
) -> None:
    trained, tested = labelled(train, tmp_path / "train"), labelled(test, tmp_path / "test")
    with pytest.raises(ValueError, match=message):
        read_pair(trained, tested, "learning")


def test_sets_without_classes_or_with_others_are_refused(make_shard_set: MakeShardSet) -> None:
    known = make_shard_set(42)

    def of(classes: list[str]) -> ShardSet:
        return replace(known, manifest=replace(known.manifest, classes=classes))

    with pytest.raises(ValueError, match="needs a labelled training set; name one with --train"):
        read_pair(None, known, "learning")
    for pair in ((of([]), known), (known, of([]))):
        with pytest.raises(ValueError, match="has no labels, and learning needs those"):
            read_pair(pair[0], pair[1], "learning")
    with pytest.raises(ValueError, match=r"lacks, or names twice \(zebra\).*without these classes"):
        read_pair(known, of([*known.manifest.classes[:-1], "zebra"]), "learning")
    twice = [*known.manifest.classes, "class 2"]
    with pytest.raises(ValueError, match=r"names twice \(class 2\)"):
        read_pair(of(twice), known, "learning")
    assert read_pair(of(twice), of(twice), "learning").classes == 10, "which one is no question"


def test_images_that_are_in_both_sets_are_counted(make_shard_set: MakeShardSet) -> None:
    small, large = make_shard_set(40), make_shard_set(42)
    assert next(trained_on_too(large, small, "x")).startswith("40 of the 40 images")
    assert "is trained on too" in next(trained_on_too(small, small, "x"))
