"""The suite: which figures, and whose labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.suite import Suite
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
    views = {"view_map", "view_r1", "view_r5", "alignment", "uniformity", "effective_dimension"}
    labels = {"label_map", "label_r1", "label_r5"}
    probes = {"knn_top1", "linear_top1", "linear_l2"}

    def names(test: ShardSet, train: ShardSet | None) -> set[str]:
        return set(Suite(test=test, train=train, group=GROUP, device=CPU).run(method(), probe=True))

    assert names(without, None) == views
    assert names(labelled, None) == views | labels
    assert names(labelled, labelled) == views | labels | probes


def test_the_same_encoder_gets_the_same_figures_and_keeps_its_mode(
    make_shard_set: MakeShardSet,
) -> None:
    suite = Suite(test=make_shard_set(40), train=make_shard_set(41), group=GROUP, device=CPU)
    trained = method().train()
    assert suite.run(trained, probe=False) == suite.run(trained, probe=False)
    assert trained.training and trained.encoder.training


def test_features_are_of_every_sample(make_shard_set: MakeShardSet) -> None:
    suite = Suite(test=make_shard_set(41), train=None, group=GROUP, device=CPU)
    features = suite.features(method(), suite.test)
    assert sorted(features.id_N.tolist()) == list(range(41))
    assert features.label_N.tolist() == [sample % 10 for sample in features.id_N.tolist()]


def test_sets_whose_labels_mean_different_things_are_refused(make_shard_set: MakeShardSet) -> None:
    test = make_shard_set(40)
    train = with_classes(test, [*test.manifest.classes[:-1], "zebra"])
    with pytest.raises(ValueError, match=r"names differ.*zebra.*two splits of one data set"):
        Suite(test=test, train=train, group=GROUP, device=CPU)


def test_fewer_samples_than_processes_are_refused(make_shard_set: MakeShardSet) -> None:
    with pytest.raises(ValueError, match="5 samples for 8 processes"):
        Suite(test=make_shard_set(5), train=None, group=GROUP, device=CPU, world_size=8)


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
    figures = suite.run(method(), probe=False)
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
