"""A set that has gone since the run began may be back later; one that never was is a mistake."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards.outage import Unreachable
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from training.data import ShardSets
from training.header import news
from training.run import run_folder
from training.settings import Settings, parse


def settings(tmp_path: Path, *more: str) -> Settings:
    sets = ["--shards", str(tmp_path / "train"), "--evaluation_test", str(tmp_path / "test")]
    return parse([*sets, "--run", str(tmp_path / "run"), "--steps", "5", *more])


@pytest.mark.parametrize("gone", ["train", "test"])
def test_a_set_that_has_gone_since_the_run_began_is_waited_for(tmp_path: Path, gone: str) -> None:
    for name in ("train", "test"):
        write(Pictures(8), tmp_path / name)
    asked = settings(tmp_path)
    (tmp_path / gone).rename(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError, match="it does not exist"):  # no run has begun
        ShardSets.open(asked.config, rank=0)
    run_folder.prepare(asked.config.run, asked, taken=False)
    with pytest.raises(Unreachable, match=f"{gone}: was there when this run began.* mounted"):
        ShardSets.open(asked.config, rank=0)
    (tmp_path / "unmounted").rename(tmp_path / gone)
    ShardSets.open(asked.config, rank=0)
    for flag in ("--shards", "--evaluation_test"):
        with pytest.raises(FileNotFoundError, match="typo is not a folder of shards"):
            ShardSets.open(settings(tmp_path, flag, str(tmp_path / "typo")).config, rank=0)
    (tmp_path / gone / "00000.tar").unlink()  # the folder is there: that is damage
    with pytest.raises(FileNotFoundError, match=r"00000\.tar is missing"):
        ShardSets.open(asked.config, rank=0)


def test_evaluations_without_a_set_are_said(make_shard_set: MakeShardSet) -> None:
    sets = ShardSets(make_shard_set(42), 0, None, None, None, None)
    loaded: Any = SimpleNamespace(reshaped=False)  # as much of `Data` as is asked for
    said = "nothing is evaluated: there is no --evaluation_test"
    least = ["--shards", "x", "--run", "r", "--steps", "5"]
    for flags in (["--evaluate_every", "2"], ["--evaluations", "2"], []):
        found = news(parse([*least, *flags]).config, sets, loaded, None, None, [])
        assert (said in found) == bool(flags)
