"""The suite: which figures, and whose labels."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.suite import ONLINE, Suite
from model.encoder import SmallResNet
from model.method import JointEmbedding
from model.objective import SmoothAP
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from shards.layout import ShardSet
from shards.source.source import Sample
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

GROUP = ViewGroup(policy=SimCLRViews(), count=3, size=16)
CPU = torch.device("cpu")


def method() -> JointEmbedding:
    torch.manual_seed(0)
    return JointEmbedding(encoder=SmallResNet(width=4), objective=SmoothAP(), hidden_size=16)


def with_classes(shard_set: ShardSet, classes: list[str]) -> ShardSet:
    return ShardSet(shard_set.folder, replace(shard_set.manifest, classes=classes))


def test_labels_allow_more_figures(make_shard_set: MakeShardSet) -> None:
    labelled = make_shard_set(40)
    without = with_classes(labelled, [])

    def names(test: ShardSet, train: ShardSet | None) -> set[str]:
        suite = Suite(test=test, train=train, group=GROUP, device=CPU)
        return set(suite.run(method()).figures)

    assert names(without, None) == VIEWS
    assert names(labelled, None) == VIEWS | LABELS
    assert names(labelled, labelled) == VIEWS | LABELS | PROBE | ONE | {"knn_top1"}
    without_labels = Suite(test=labelled, train=labelled, group=GROUP, device=CPU)
    assert set(without_labels.run(method(), ONLINE).figures) == ONLINE_VIEWS | LABELS | {"knn_top1"}


def test_the_same_encoder_gets_the_same_figures_and_keeps_its_mode(
    make_shard_set: MakeShardSet,
) -> None:
    suite = Suite(test=make_shard_set(40), train=make_shard_set(41), group=GROUP, device=CPU)
    trained = method().train()
    assert suite.run(trained, ONLINE) == suite.run(trained, ONLINE)
    assert trained.training and trained.encoder.training


def test_features_are_of_every_sample(make_shard_set: MakeShardSet) -> None:
    suite = Suite(test=make_shard_set(41), train=None, group=GROUP, device=CPU)
    features = suite.features(method(), suite.test)
    assert sorted(features.id_N.tolist()) == list(range(41))
    assert features.label_N.tolist() == [sample % 10 for sample in features.id_N.tolist()]


def test_sets_whose_labels_mean_different_things_are_refused(make_shard_set: MakeShardSet) -> None:
    test = make_shard_set(40)
    train = with_classes(test, [*test.manifest.classes[:-1], "zebra"])
    with pytest.raises(ValueError, match=r"lacks.*\(zebra\).*two splits of one data set"):
        Suite(test=train, train=test, group=GROUP, device=CPU)


def test_a_test_set_that_lacks_a_class_is_matched_by_names(tmp_path: Path) -> None:
    """As folders of classes are numbered: without the second, the third is the second."""
    train = write(Labelled([0, 1, 2, 3] * 4), tmp_path / "train")
    found = []
    for name, labels, classes in (
        ("all", [0, 2, 2, 0, -1], [f"class {label}" for label in range(10)]),
        ("some", [0, 1, 1, 0, -1], ["class 0", "class 2"]),
        ("turned", [1, 0, 0, 1, -1], ["class 2", "class 0"]),
    ):
        source = Labelled(labels, first=20)
        source.classes = classes
        test = write(source, tmp_path / name)
        found.append(Suite(test=test, train=train, group=GROUP, device=CPU).run(method()))
    whole, some, turned = found
    assert PROBE | ONE | {"knn_top1"} < whole.figures.keys()
    assert some.figures == turned.figures == whole.figures
    (line,) = [line for line in some.remarks if line not in whole.remarks]
    assert "has 2 of the 10 classes of" in line


def test_fewer_samples_than_processes_are_refused(make_shard_set: MakeShardSet) -> None:
    with pytest.raises(ValueError, match="5 samples for 8 processes"):
        Suite(test=make_shard_set(5), train=None, group=GROUP, device=CPU, world_size=8)


class Labelled(Pictures):
    """Pictures of given labels, -1 for none; from another set where `first` is not 0."""

    def __init__(self, labels: list[int], *, first: int = 0) -> None:
        super().__init__(len(labels))
        self.labels, self.first = labels, first

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, label=self.labels[index], image=self.pixels(index + self.first))


ONLINE_VIEWS = {"view_map", "view_r1", "view_r5", "alignment", "uniformity", "effective_dimension"}
ONLINE_VIEWS |= {"rank_me", "lidar"}
VIEWS = ONLINE_VIEWS | {"rank_me_h", "lidar_h"}
LABELS = {"label_map", "label_r1", "label_r5"}
PROBE = {"linear_top1", "linear_l2"}
ONE = {"few_shot_1_top1", "few_shot_1_ci"}


@pytest.mark.parametrize(
    ("train", "test", "figures", "remark"),
    [
        # A class of the test set without a sample in the bank, as in a small part of a set.
        (
            [0, 0, 1, 1],
            [0, 1, 2, 2],
            LABELS | {"knn_top1"} | PROBE | ONE,
            "2 test samples are of a class",
        ),
        ([3, 3, 3, 3], [3, 3, 2, 2], LABELS, "no k-NN: All 4 labelled train samples have"),
        (
            [0, 1, 2, 3],
            [0, 0, 1, 1],
            LABELS | {"knn_top1"} | ONE,
            "no linear probe: The 4 labelled",
        ),
        ([0, 0, 1, 1], [2, 2, 3, 3], LABELS, "no k-NN: Test has none of the 2 classes"),
        ([0, 0, 1, 1], [0, 1], {"knn_top1"} | PROBE | ONE, "no label retrieval: No two of the 2"),
        ([0, 0, 1, 1], [-1, -1, -1], set(), "no k-NN: None of the 3 test samples"),
        ([-1, -1, -1], [0, 0, 1], LABELS, "no k-NN: None of the 3 train samples"),
    ],
)
def test_labels_that_do_not_suit_leave_figures_out_and_nothing_else(
    train: list[int], test: list[int], figures: set[str], remark: str, tmp_path: Path
) -> None:
    sets = [
        write(Labelled(labels, first=100 * number), tmp_path / str(number))
        for number, labels in enumerate((train, test))
    ]
    suite = Suite(test=sets[1], train=sets[0], group=GROUP, device=CPU)
    found = suite.run(method())
    assert set(found.figures) == VIEWS | figures
    assert any(line.startswith(remark) for line in found.remarks), found.remarks
    assert sum(line.startswith("no few-shot: ") for line in found.remarks) == 1


def test_what_has_no_labels_is_said_before_anything_is_computed(
    make_shard_set: MakeShardSet,
) -> None:
    labelled = make_shard_set(40)
    without, single = with_classes(labelled, []), with_classes(labelled, ["only"])
    for test, train, words in (
        (without, None, "no label retrieval: "),
        (without, labelled, "no label retrieval, k-NN, linear probe, few-shot: "),
        (labelled, without, "no k-NN, linear probe, few-shot: "),
        (single, single, "has a single class"),
        (labelled, labelled, "is the set that k-NN and probe are fitted on too"),
    ):
        (line,) = Suite(test=test, train=train, group=GROUP, device=CPU).remarks()
        assert words in line
    assert not Suite(test=labelled, train=None, group=GROUP, device=CPU).remarks()


def test_images_in_both_sets_are_counted_by_their_content(tmp_path: Path) -> None:
    train = write(Labelled([0, 0, 0, 1, 1, 1]), tmp_path / "train")
    test = write(Labelled([0, 1, 0, 1], first=4), tmp_path / "test")  # pictures 4 and 5 are in both
    suite = Suite(test=test, train=train, group=GROUP, device=CPU)
    (line,) = suite.run(method(), ONLINE).remarks
    assert line.startswith(f"2 of the 4 images of {test.root} are in {train.root} too")


def test_one_held_out_sample_is_refused_at_once(make_shard_set: MakeShardSet) -> None:
    with pytest.raises(ValueError, match="has 1 sample, and evaluation ranks its views"):
        Suite(test=make_shard_set(1), train=None, group=GROUP, device=CPU)


def test_a_set_that_cannot_be_read_costs_its_own_figures_alone(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    train = write(Pictures(20), tmp_path / "train")
    tar = next((tmp_path / "train").glob("*.tar"))
    tar.write_bytes(b"\xff" * tar.stat().st_size)
    suite = Suite(test=make_shard_set(40), train=train, group=GROUP, device=CPU)
    found = suite.run(method())
    assert set(found.figures) == VIEWS | LABELS
    (line,) = found.remarks
    assert line.startswith("no k-NN, linear probe, few-shot: ") and "tools.verify" in line


def test_progress_is_of_all_that_takes_time(make_shard_set: MakeShardSet) -> None:
    told: list[tuple[str, int, int]] = []
    Suite(
        test=make_shard_set(40),
        train=make_shard_set(41),
        group=GROUP,
        device=CPU,
        progress=lambda *words: told.append(words),
    ).run(method())
    kinds = dict.fromkeys(what.split()[0] for what, *_ in told)
    assert list(kinds) == ["views", "features", "linear", "few-shot"]
    assert sum(what.startswith("features") for what, *_ in told) == 2
    assert all(0 <= done < total for _, done, total in told)


class Annotated(Pictures):
    """Pictures that show categories: the one of their number, and the one of its double."""

    def __init__(self, samples: int, categories: list[str], *, first: int = 0) -> None:
        super().__init__(samples)
        self.classes, self.categories, self.first = [], categories, first

    def __getitem__(self, index: int) -> Sample:
        number, sample = index + self.first, super().__getitem__(index)
        shown = {number % 4, 2 * number % 4}
        told = bytes(int(k in shown) for k in range(len(self.categories)))
        return replace(sample, label=-1, image=self.pixels(number), categories=told)


SHARED = {"category_map", "category_ndcg"}
KNN = {"multi_label_knn_map"}
MULTI_LABEL_PROBE = {
    "multi_label_map",
    "multi_label_voc_map",
    "multi_label_voc07_map",
    "multi_label_l2",
}
FOUR = ["bear", "cat", "dog", "eel"]


@pytest.mark.parametrize(
    ("train", "figures", "remark"),
    [
        (None, SHARED, ""),
        (["eel", "dog", "cat", "bear"], SHARED | KNN | MULTI_LABEL_PROBE, ""),
        (
            ["eel", "fox", "bear", "gnu"],
            SHARED | KNN | MULTI_LABEL_PROBE,
            "4 categories are in one of",
        ),
        (["fox", "gnu"], SHARED, "share no category (fox, gnu; bear, cat, dog, …)"),
        ([], SHARED, "no multi-label k-NN, probe: "),
    ],
)
def test_categories_allow_more_figures(
    train: list[str] | None, figures: set[str], remark: str, tmp_path: Path
) -> None:
    test_set = write(Annotated(24, FOUR), tmp_path / "test")
    train_set = None
    if train is not None:
        train_set = write(Annotated(40, train, first=24), tmp_path / "train")
    suite = Suite(test=test_set, train=train_set, group=GROUP, device=CPU)
    found = suite.run(method())
    assert set(found.figures) == VIEWS | figures
    assert (remark in found.remarks[0]) if remark else not found.remarks, found.remarks
    assert found.remarks == suite.remarks()
    common = [name for name in train or [] if name in FOUR]
    assert all(list(ap) == common for ap in found.details.values())
    assert len(found.details) == (0 if figures == SHARED else 2)


def test_columns_are_matched_by_their_names(tmp_path: Path) -> None:
    """The same categories in another order have the same figures."""
    train = write(Annotated(40, FOUR, first=24), tmp_path / "train")
    test = write(Annotated(24, FOUR), tmp_path / "test")
    turned = write(Turned(24, [*reversed(FOUR)]), tmp_path / "turned")
    found, again = (
        Suite(test=each, train=train, group=GROUP, device=CPU).run(method(), ONLINE)
        for each in (test, turned)
    )
    assert set(found.figures) == ONLINE_VIEWS | SHARED | KNN  # no probe while a run trains
    same = SHARED | KNN
    assert {n: found.figures[n] for n in same} == {n: again.figures[n] for n in same}
    assert found.details == again.details


class Turned(Annotated):
    """The same with its columns in the opposite order."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, categories=sample.categories[::-1])


class NamedTwice(Annotated):
    """The same with two columns of the first name, each of every other image that shows it."""

    def __init__(self, samples: int, categories: list[str], *, first: int = 0) -> None:
        super().__init__(samples, categories, first=first)
        self.categories = [categories[0], *categories]

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        shown, *others = sample.categories[:-1]
        number = (index + self.first) // 4 % 2
        told = bytes([shown * number, shown * (1 - number), *others])
        return replace(sample, categories=told)


def test_columns_of_one_name_are_one_category(tmp_path: Path) -> None:
    """As of COCO's format, where two ids have one name."""
    found, again = (
        Suite(
            test=write(source(24, FOUR), tmp_path / source.__name__ / "test"),
            train=write(source(40, FOUR, first=24), tmp_path / source.__name__ / "train"),
            group=GROUP,
            device=CPU,
        ).run(method(), ("multi_label", "multi_label_linear"))
        for source in (Annotated, NamedTwice)
    )
    assert set(found.figures) == SHARED | KNN | MULTI_LABEL_PROBE
    assert found == again


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_views_that_are_not_finite_have_no_figures(
    number: float, make_shard_set: MakeShardSet
) -> None:
    """Else they would be found at the first place, each by itself."""
    broken = method()
    with torch.no_grad():
        next(broken.encoder.parameters())[:] = number
    suite = Suite(test=make_shard_set(40), train=None, group=GROUP, device=CPU)
    found = suite.run(broken, ("views", "spectra"))
    assert not found.figures
    for line, what in zip(
        found.remarks, ("view retrieval, geometry", "RankMe, LiDAR of features"), strict=True
    ):
        assert line.startswith(f"no {what}: ")
        assert " of 120 views have features that are not finite" in line


def test_sets_with_classes_and_sets_with_categories_are_told_what_they_lack_if_asked(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    labelled, annotated = make_shard_set(40), write(Annotated(24, FOUR), tmp_path / "test")
    for shard_set, protocols, words in (
        (labelled, ["multi_label"], "no multi-label figures: "),
        (annotated, ["knn"], "no label retrieval: "),
        (with_classes(labelled, []), ["knn", "multi_label"], "no label retrieval: "),
        (labelled, ["linear"], "no figures: k-NN and probes need a training set"),
        (annotated, ["multi_label_linear"], "no figures: k-NN and probes need a training set"),
    ):
        suite = Suite(test=shard_set, train=None, group=GROUP, device=CPU)
        (line,) = suite.run(method(), protocols).remarks
        assert line.startswith(words)
    both = Suite(test=annotated, train=annotated, group=GROUP, device=CPU)
    (line,) = both.remarks()
    assert "multi-label k-NN and probe are fitted on too" in line


def test_copies_are_found_by_features_and_by_embeddings(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    """References searched for themselves are found; labels that mean classes are refused."""
    source = Pictures(40)
    source.classes = []
    queries = write(Renamed(40), str(tmp_path / "queries"))
    references = write(source, str(tmp_path / "references"))
    suite = Suite(
        test=make_shard_set(40),
        train=None,
        group=GROUP,
        device=CPU,
        queries=queries,
        references=references,
    )
    figures = suite.run(method(), ONLINE).figures
    for name in ("copy_map", "copy_recall_at_p90", "copy_r1", "copy_z_map", "copy_z_r1"):
        assert figures[name] == 1
    with pytest.raises(ValueError, match=r"has classes.*tools\.shard copies"):
        replace(suite, queries=make_shard_set(40))


class Renamed(Pictures):
    """Every picture as a query of itself."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.classes = []

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), label=index)
