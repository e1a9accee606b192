"""A folder of sound, odd and bad files: all accounted for, and what comes out trains whole."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from shards.engine import LocalWorkers
from shards.health.verification import verify
from shards.layout import ShardSet
from shards.source import ImageFolder
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.shards.damaged_inputs import LETHAL, DamageDraw, good, torture

GOOD = 2000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], ShardSet]:
    folder = tmp_path_factory.mktemp("torture")
    expected = torture(folder / "in")
    (folder / "in" / "odd_00" / "lethal.jpg").write_bytes(LETHAL(DamageDraw("lethal", 0, 0)))
    expected["odd_00/lethal.jpg"] = "repaired"
    good(folder / "in", GOOD)
    shard_set = write(
        ImageFolder(root=folder / "in"),
        folder / "out",
        samples_per_shard=150,
        preparation=Preparation(min_side=1, max_aspect=float("inf")),
        engine=LocalWorkers(2),
    )
    return folder, expected, shard_set


def test_every_file_is_accounted_for(made: tuple[Path, dict[str, str], ShardSet]) -> None:
    folder, expected, shard_set = made
    account, counts = shard_set.manifest.account, Counter(expected.values())
    assert len(expected) >= 400
    assert account.found == len(expected) + GOOD
    assert account.quarantined == counts["quarantined"]
    assert account.repaired == counts["repaired"]
    assert account.written == GOOD + counts["written"] + counts["repaired"]
    lines = (folder / "out" / "quarantine" / "reasons.jsonl").read_text().splitlines()
    told = {line["origin"]: line for line in map(json.loads, lines)}
    assert told.keys() == {name for name, what in expected.items() if what == "quarantined"}
    for name, line in told.items():
        assert (folder / "out" / line["file"]).read_bytes() == (folder / "in" / name).read_bytes()
    assert verify(shard_set.root, deep=True, engine=LocalWorkers(2)).problems == []


@pytest.mark.parametrize("resampling", ["warp", "resize"])
def test_what_is_left_trains_an_epoch(
    made: tuple[Path, dict[str, str], ShardSet], resampling: str
) -> None:
    _, _, shard_set = made
    group = ViewGroup(policy=SimCLRViews(), count=2, size=24, resampling=resampling)  # pyright: ignore[reportArgumentType]
    ids = []
    with Loader(shard_set, [group], batch_size_per_rank=32) as loader:
        for batch in loader:
            assert torch.isfinite(batch.views[0]).all()
            ids += batch.id_B.tolist()
    assert len(ids) == len(set(ids)) == len(shard_set) // 32 * 32


def test_what_is_left_can_be_evaluated(made: tuple[Path, dict[str, str], ShardSet]) -> None:
    _, _, shard_set = made
    ids = [sample for batch in Images(shard_set, size=24) for sample in batch.id_B.tolist()]
    assert len(ids) == len(set(ids)) == len(shard_set)
