"""Views of a pair set are cut from image and partner in turn, with every resampling."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import read
from pipeline.augment import Crop, Policy, SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Batch, Loader
from pipeline.partners import shares
from shards.layout import ShardSet
from shards.source.pairs import Pairs
from shards.survey import rows_of
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
WHOLE = Policy(crop=Crop(area=(1, 1), aspect=(1, 1), flip=0))
SAMPLES = 24


@pytest.fixture(scope="module", params=["png", "raw"])
def pair_set(request, make_shard_set: MakeShardSet, tmp_path_factory) -> ShardSet:
    """Sample i's partner is sample i + 1, and the last's is itself."""
    return paired(make_shard_set(SAMPLES, encoding=request.param), tmp_path_factory.mktemp("set"))


def paired(shard_set: ShardSet, out: Path) -> ShardSet:
    ids = np.array([r.id for s in shard_set.manifest.shards for r in rows_of(shard_set, s)])
    at = np.argsort(ids)
    return write(
        Pairs(shard_set=shard_set, partners=at[partner_id(ids)], scores=np.ones(len(ids))),
        out / "pairs",
        samples_per_shard=8,
        preparation=Preparation(encoding="raw" if shard_set.manifest.raw else "original"),
    )


def partner_id(ids: np.ndarray) -> np.ndarray:
    return np.minimum(ids + 1, SAMPLES - 1)


def take(loader: Loader, count: int) -> list[Batch]:
    return list(islice(loader.endless(), count))


def groups(counts: tuple[int, ...], policy: Policy, resampling: Any = "auto") -> list[ViewGroup]:
    return [ViewGroup(policy=policy, count=c, size=32, resampling=resampling) for c in counts]


@pytest.mark.parametrize("resampling", ["resize", "warp", "supersample"])
@pytest.mark.parametrize("counts", [(2,), (5,), (1, 1), (3, 2, 4)])
def test_views_are_of_the_image_and_of_its_partner_in_turn(
    pair_set: ShardSet, counts: tuple[int, ...], resampling
) -> None:
    """A crop of the whole image shows which image it was cut from."""
    source = Pictures(SAMPLES)
    # Scaling up and then down by a filter changes an image a little.
    levels = 40 if resampling == "supersample" else 0.6
    with Loader(pair_set, groups(counts, WHOLE, resampling), batch_size_per_rank=8) as loader:
        batch = take(loader, 1)[0]
    view = 0
    for count, views_VBCHW in zip(counts, batch.views, strict=True):
        for v in range(count):
            ids = batch.id_B.numpy()
            for b, sample in enumerate(ids if view % 2 == 0 else partner_id(ids)):
                expected = torch.from_numpy(source.pixels(int(sample)).copy()).permute(2, 0, 1)
                found = (views_VBCHW[v, b] * STD + MEAN) * 255
                assert (found - expected).abs().mean() < levels / 4
                assert (found - expected).abs().max() < levels
            view += 1


def test_shares_count_through_all_groups() -> None:
    assert shares([2], 2) == [{0: 1}, {0: 1}]
    assert shares([3, 2], 2) == [{0: 2, 1: 1}, {0: 1, 1: 1}]
    assert shares([1, 1], 2) == [{0: 1}, {1: 1}]
    assert shares([1], 2) == [{0: 1}, {}]


def test_resumed_views_are_the_uninterrupted_ones(pair_set: ShardSet) -> None:
    def loader() -> Loader:
        return Loader(pair_set, groups((3, 2), SimCLRViews()), batch_size_per_rank=10, seed=7)

    with loader() as straight:
        take(straight, 3)  # into the second epoch
        state = straight.state_dict()
        expected = take(straight, 2)
    with loader() as second:
        second.load_state_dict(state)
        resumed = take(second, 2)
    for one, other in zip(expected, resumed, strict=True):
        assert torch.equal(one.id_B, other.id_B)
        for left, right in zip(one.views, other.views, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("resampling", ["resize", "warp"])
def test_crops_need_only_their_surroundings(
    make_shard_set: MakeShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resampling
) -> None:
    """Up to two crops an image, so four views of a pair, are decoded in part."""
    pair_set = paired(make_shard_set(SAMPLES, height=64, width=96), tmp_path)
    calls: list[int] = []
    in_part = read.decode_surroundings

    def counted(*arguments):
        calls.append(1)
        return in_part(*arguments)

    def views(count: int) -> torch.Tensor:
        calls.clear()
        of = groups((count,), SimCLRViews(), resampling)
        with Loader(pair_set, of, batch_size_per_rank=8, seed=1) as loader:
            return take(loader, 1)[0].views[0]

    monkeypatch.setattr("pipeline.graph.decode_surroundings", counted)
    partial = views(4)
    assert len(calls) == 2
    views(6)
    assert not calls
    monkeypatch.setattr("pipeline.graph.FEW_VIEWS", 0)
    whole = views(4)
    assert not calls
    # Coordinates are rounded differently, which sometimes is one level of 255.
    assert (partial - whole).abs().max() < 2.5 / 255 / STD.min()


def test_only_crops_grow_with_the_views_and_no_faster_than_without_partners(
    make_shard_set: MakeShardSet, pair_set: ShardSet
) -> None:
    def operators(shard_set: ShardSet, count: int) -> int:
        of = groups((count,), SimCLRViews(), "warp")
        pipeline = Loader(shard_set, of, batch_size_per_rank=4).stage("augment")
        return len(pipeline._ops or [])

    own = make_shard_set(SAMPLES, encoding="raw" if pair_set.manifest.raw else "png")
    assert operators(pair_set, 16) - operators(pair_set, 8) == 8  # one draws a crop, as in `own`
    assert operators(own, 16) - operators(own, 8) == 8


def test_evaluation_sees_the_images_alone(pair_set: ShardSet, make_shard_set: MakeShardSet) -> None:
    encoding = "raw" if pair_set.manifest.raw else "png"
    found = {}
    for name, shard_set in {
        "pairs": pair_set,
        "own": make_shard_set(24, encoding=encoding),
    }.items():
        batches = list(Images(shard_set, size=32, batch_size=8))
        id_N = torch.cat([batch.id_B for batch in batches])
        found[name] = torch.cat([batch.image_BCHW for batch in batches])[id_N.argsort()]
    assert torch.equal(found["pairs"], found["own"])
