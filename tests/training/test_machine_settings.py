"""Settings of the machine: a flag before a run's own, before what was tuned, before defaults."""

from pathlib import Path

import pytest
import torch

from pipeline.tuning import Tuning
from shards.layout import ShardSet
from tests.conftest import MakeShardSet
from training import machine_settings
from training.config import Config
from training.settings import parse

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard_set(make_shard_set: MakeShardSet) -> ShardSet:
    return make_shard_set(16)


def config(run: Path, *flags: str) -> Config:
    return parse(["--shards", "x", "--run", str(run), "--steps", "5", *flags]).config


def resolve(config: Config, shard_set: ShardSet, *, continued: bool = False) -> tuple[Tuning, str]:
    return machine_settings.resolve(
        config,
        shard_set,
        device=CPU,
        batch_size_per_rank=8,
        ranks_per_node=1,
        continued=continued,
    )


def test_flags_come_first_then_what_was_tuned_then_defaults(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = config(tmp_path / "run")
    defaults = Tuning().filled(batch_size=8)
    assert resolve(plain, shard_set) == (defaults, "defaults")

    path = machine_settings.path_for(plain, shard_set, CPU, 8, 1)
    machine_settings.write(path, Tuning(threads=7, prefetch=5), remarks={"made by": "a test"})
    found, source = resolve(plain, shard_set)
    assert (found.threads, found.prefetch, found.finish) == (7, 5, "fused")
    assert source == str(path)
    flagged, source = resolve(config(tmp_path / "run", "--tuning.threads", "3"), shard_set)
    assert (flagged.threads, flagged.prefetch) == (3, 5) and "flags" in source
    assert resolve(config(tmp_path / "run", "--tuned", "none"), shard_set)[0] == defaults
    # Another load has another file.
    assert resolve(config(tmp_path / "run", "--views.count", "5"), shard_set)[0] == defaults


def test_a_continued_run_keeps_what_moves_pixels_and_nothing_else(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = tmp_path / "run"
    machine_settings.write(
        run / machine_settings.NAME, Tuning(threads=64, prefetch=9, finish="dali", decode="cpu")
    )
    plain = config(run)
    machine_settings.write(
        machine_settings.path_for(plain, shard_set, CPU, 8, 1), Tuning(prefetch=4, finish="fused")
    )
    found, _ = resolve(plain, shard_set, continued=True)
    assert (found.finish, found.decode, found.prefetch) == ("dali", "cpu", 4)
    assert found.threads == Tuning().filled(batch_size=8).threads
    assert resolve(plain, shard_set)[0].finish == "fused", "a new run is free"


@pytest.mark.parametrize("text", ["threads: many", "speed: 3", "[1, 2]", "threads: 0", ": ["])
def test_a_file_of_something_else_is_refused_with_the_remedy(
    shard_set: ShardSet, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        resolve(config(tmp_path / "run", "--tuned", str(path)), shard_set)
    for words in (str(path), "tools.tune", "--tuned none"):
        assert words in str(error.value)


@pytest.mark.parametrize("home", ["none", "unreadable"])
def test_a_run_needs_no_home(
    shard_set: ShardSet, tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of a user with no entry, as in containers
    if home == "unreadable":  # as root may read all: a name at which stat fails too
        monkeypatch.setenv("HOME", f"/{'x' * 300}")
    plain = config(tmp_path / "run")
    assert resolve(plain, shard_set) == (Tuning().filled(batch_size=8), "defaults")
    if home == "none":
        with pytest.raises(ValueError, match="Set HOME or XDG_CACHE_HOME; or give --out FILE"):
            machine_settings.path_for(plain, shard_set, CPU, 8, 1)
