"""Each rank reads its own tars, and nothing of the others."""

from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import pytest

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from pipeline.part import part_of, part_size, shards_of
from shards.layout import ShardSet, open_shards
from shards.shard_index import lines_of
from shards.tar import key_of
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

SMALL = ViewGroup(policy=SimCLRViews(), count=2, size=16)


def keys(shard_set: ShardSet) -> list[str]:
    return [
        f"{shard.name}/{key_of(line)}"
        for shard in shard_set.manifest.shards
        for line in lines_of(shard_set, shard)
    ]


@pytest.mark.parametrize(("samples", "world_size"), [(40, 1), (41, 2), (50, 3), (47, 5), (9, 9)])
def test_parts_are_even_slices_of_the_samples(
    make_shard_set: MakeShardSet, samples: int, world_size: int
) -> None:
    """A list of all samples, cut by hand, is the oracle."""
    shard_set = make_shard_set(samples)
    found: list[str] = []
    for rank in range(world_size):
        with part_of(shard_set, rank, world_size) as part:
            found += keys(part)
            assert len(part) == len(keys(part)) == part_size(samples, rank, world_size)
        assert samples // world_size <= len(part) <= samples // world_size + 1
        assert part.manifest.statistics == shard_set.manifest.statistics
    assert found == keys(shard_set)


def test_dealt_out_parts_are_disjoint_complete_and_of_other_tars(
    make_shard_set: MakeShardSet,
) -> None:
    shard_set = make_shard_set(50)
    of_seed: dict[int, list[list[str]]] = {}
    for seed in range(3):
        with ExitStack() as stack:
            parts = [stack.enter_context(part_of(shard_set, r, 3, seed=seed)) for r in range(3)]
            of_seed[seed] = [sorted(keys(part)) for part in parts]
        assert sorted(chain(*of_seed[seed])) == sorted(keys(shard_set))
    assert of_seed[0] != of_seed[1] != of_seed[2]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_one_process_reads_a_set_of_ours_in_its_own_order(
    make_shard_set: MakeShardSet, seed: int | None
) -> None:
    shard_set = make_shard_set(40)
    with part_of(shard_set, 0, 1, seed=seed) as part:
        assert keys(part) == keys(shard_set)


@pytest.mark.parametrize(("samples", "world_size"), [(40, 1), (41, 2), (50, 3), (9, 9)])
def test_each_tar_is_one_rank_s_to_check_and_is_one_that_it_reads(
    make_shard_set: MakeShardSet, samples: int, world_size: int
) -> None:
    shard_set = make_shard_set(samples)
    found: list[str] = []
    for rank in range(world_size):
        own = shards_of(shard_set.manifest.shards, rank, world_size, seed=5)
        with part_of(shard_set, rank, world_size, seed=5) as part:
            assert {shard.name for shard in own} <= {shard.name for shard in part.manifest.shards}
        found += [shard.name for shard in own]
    assert sorted(found) == [shard.name for shard in shard_set.manifest.shards]


def test_a_rank_needs_no_tar_and_no_index_of_the_others(tmp_path: Path) -> None:
    """The files of the others are taken away once the set is open."""
    write(Pictures(60), tmp_path / "shards", samples_per_shard=10)
    for rank in range(2):
        shard_set = open_shards(tmp_path / "shards")
        loader = Loader(shard_set, [SMALL], batch_size_per_rank=5, rank=rank, world_size=2)
        with part_of(shard_set, rank, 2, seed=0) as own:
            kept = {shard.name for shard in own.manifest.shards}
        assert len(kept) == 3
        others = [p for p in (tmp_path / "shards").glob("0*") if p.stem not in kept]
        assert len(others) == 9
        for path in others:
            path.rename(tmp_path / path.name)
        with loader:
            epochs = [[i for batch in loader for i in batch.id_B.tolist()] for _ in range(3)]
        assert [sorted(epoch) for epoch in epochs] == [sorted(epochs[0])] * 3
        assert len(set(epochs[0])) == 30 and epochs[0] != epochs[1] != epochs[2]
        for path in others:
            (tmp_path / path.name).rename(path)


def test_what_reads_a_part_keeps_no_file_of_it(
    make_shard_set: MakeShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shard_set = make_shard_set(41)
    with Loader(shard_set, [SMALL], batch_size_per_rank=5, rank=1, world_size=4) as loader:
        stages = [loader.stage("read"), loader.stage("decode")]
        epochs = [[i for batch in loader for i in batch.id_B.tolist()] for _ in range(3)]
        assert not list(tmp_path.iterdir()) and all(stage.run() for stage in stages)
    assert [sorted(epoch) for epoch in epochs] == [sorted(epochs[0])] * 3
    next(iter(Images(shard_set, size=16, rank=1, world_size=4)))
    assert not list(tmp_path.iterdir())


def test_a_state_of_moving_parts_is_refused(make_shard_set: MakeShardSet) -> None:
    """Older versions gave a rank another part in each epoch."""
    shard_set = make_shard_set(40)
    state = Loader(shard_set, [SMALL], batch_size_per_rank=8, world_size=2).state_dict()
    del state["parts"]
    with pytest.raises(ValueError, match="another version of viewrank wrote the checkpoint"):
        Loader(shard_set, [SMALL], batch_size_per_rank=8, world_size=2).load_state_dict(state)
    alone = Loader(shard_set, [SMALL], batch_size_per_rank=8)
    state = alone.state_dict()
    assert "parts" not in state and not alone.differences(state)
