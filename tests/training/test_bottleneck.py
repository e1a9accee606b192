"""The verdict follows the wait, names the largest stage, and tries what can help."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.profile import Profile, milliseconds, profile
from pipeline.tuning import Tuning
from shards.layout import open_shards
from tests.conftest import MakeShardSet
from training.bottleneck import Bottleneck

GROUPS = [ViewGroup(policy=SimCLRViews(), count=2, size=16)]
STAGES = Profile(read=0.001, decode=0.060, augment=0.030, finish=0.009)


@pytest.fixture
def loader(make_shard_set: MakeShardSet) -> Loader:
    return Loader(make_shard_set(16), GROUPS, batch_size_per_rank=8, tuning=Tuning(threads=1))


def test_a_run_that_waits_is_told_what_for_and_what_to_try(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tuning.cores", lambda: 4)
    verdict = Bottleneck(loader, STAGES)
    assert verdict.update(data_wait=0.9, step_seconds=1.0) is None, "the first lap warms up"
    text = verdict.update(data_wait=0.18, step_seconds=0.1) or ""
    for words in ("input-bound: 18.0%", "decode on 1 thread is the limit (60%", "100 ms a batch"):
        assert words in text
    # More threads; pictures of 32 px can lie in the shards undecoded.
    for advice in ("--tuning.threads 4", "--encoding raw", "tools.tune"):
        assert advice in text


def test_the_cores_are_shared_by_the_ranks_of_one_machine(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tuning.cores", lambda: 8)
    monkeypatch.setenv("WORLD_SIZE", "4")
    loader = Loader(
        make_shard_set(16),
        GROUPS,
        batch_size_per_rank=4,
        rank=0,
        world_size=4,
        tuning=Tuning(threads=1),
    )
    for ranks_per_node, threads in (("2", 4), ("4", 2)):  # two machines of two; one of four
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks_per_node)
        assert f"--tuning.threads {threads}," in Bottleneck(loader, STAGES).advice()
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # by hand: as careful as it must be
    assert "--tuning.threads 2," in Bottleneck(loader, STAGES).advice()


def test_a_run_that_computes_is_told_how_fast_it_could_be_fed(loader: Loader) -> None:
    verdict = Bottleneck(loader, STAGES)
    verdict.update(data_wait=0.0, step_seconds=1.0)
    text = verdict.update(data_wait=0.004, step_seconds=0.25) or ""
    assert text.startswith("compute-bound: 0.4%") and "100 ms" in text and "250 ms" in text


def test_it_speaks_only_when_the_answer_changes_clearly(loader: Loader) -> None:
    verdict = Bottleneck(loader, None)
    waits = [0.5, 0.01, 0.02, 0.04, 0.06, 0.04, 0.2, 0.029, 0.01]
    said = [verdict.update(data_wait=wait, step_seconds=1.0) for wait in waits]
    kinds = [text.split(":")[0] if text else "" for text in said]
    assert kinds == ["", "compute-bound", "", "", "input-bound", "", "", "compute-bound", ""]


def test_a_profile_adds_up_and_leaves_the_loader_as_it_is(loader: Loader) -> None:
    with loader, replace_loader(loader) as other:
        found = profile(loader, seconds=0.1)
        assert min(found.read, found.decode, found.augment) >= 0 and found.finish > 0
        assert found.seconds == pytest.approx(
            found.read + found.decode + found.augment + found.finish
        )
        assert (loader.epoch, loader.step) == (0, 0)
        ours, theirs = next(iter(loader)), next(iter(other))
        assert (ours.views[0] == theirs.views[0]).all() and (ours.id_B == theirs.id_B).all()
    assert replace(found, decode=10.0).largest == "decode"


def replace_loader(loader: Loader) -> Loader:
    return Loader(loader.shard_set, GROUPS, batch_size_per_rank=8)


def test_a_damaged_image_ends_the_profile_with_what_to_do(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(make_shard_set(16).root, tmp_path / "damaged"))
    tar = root / "00000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"IDAT")
    data[at - 8 : at + 64] = bytes(72)
    tar.write_bytes(data)
    with (
        Loader(open_shards(str(root)), GROUPS, batch_size_per_rank=16) as loader,
        pytest.raises(ValueError, match=r"00000.tar.*tools.verify"),
    ):
        profile(loader, seconds=0.1)


def test_a_profile_of_more_work_is_longer(make_shard_set: MakeShardSet) -> None:
    """Many times the pixels: the augmentation must show it, however busy the machine is."""
    shard_set = make_shard_set(64)
    large = [ViewGroup(policy=SimCLRViews(), count=16, size=64)]
    with (
        Loader(shard_set, GROUPS, batch_size_per_rank=16) as few,
        Loader(shard_set, large, batch_size_per_rank=16) as many,
    ):
        assert profile(many, seconds=0.2).augment > profile(few, seconds=0.2).augment


@pytest.mark.parametrize(
    ("ms", "text"),
    [(3080.4, "3,080"), (123456.7, "123,457"), (99.96, "100"), (42.24, "42.2"), (0.0512, "0.0512")],
)
def test_milliseconds_are_no_power_of_ten(ms: float, text: str) -> None:
    assert milliseconds(ms) == text
    profile = Profile(read=0.0, decode=ms / 1000, augment=0.0, finish=0.0)
    assert f"= {text} ms a batch" in str(profile)
