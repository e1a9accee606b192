"""Damage of every kind is found, named, and repaired without touching what is sound."""

import json
import os
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shards.health.watch
import shards.writing.write
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.part import shards_of
from shards.engine import LocalWorkers
from shards.health.repair import repair
from shards.health.verification import CheckShard, verify
from shards.health.watch import Watch
from shards.layout import ShardSet, open_shards
from shards.sealed_json import seal, unseal
from shards.source import ImageFolder
from shards.subset.selection import select
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

VIEWS = [ViewGroup(policy=SimCLRViews(), count=2, size=16)]


@pytest.fixture
def copy(make_shard_set: MakeShardSet, tmp_path: Path) -> ShardSet:
    return _copy(make_shard_set(40), tmp_path / "copy")


def _copy(shard_set: ShardSet, folder: Path) -> ShardSet:
    shutil.copytree(shard_set.root, folder)
    return open_shards(folder)


def flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def contents(root: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def good_samples(shard_set: ShardSet) -> dict[str, bytes]:
    """Each sample's image by key, through the index, as training reads it."""
    found = {}
    for tar, index in zip(shard_set.tars, shard_set.indexes, strict=True):
        data = Path(tar).read_bytes()
        for line in Path(index).read_text().splitlines()[1:]:
            words = line.split()
            for extension, at, size, name in zip(*[iter(words)] * 4, strict=True):
                if extension == "png":
                    found[name] = data[int(at) : int(at) + int(size)]
    return found


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_a_sound_set_has_no_problems(make_shard_set: MakeShardSet, encoding: str) -> None:
    shard_set = make_shard_set(40, encoding=encoding)
    for deep in (False, True):
        found = verify(shard_set.root, deep=deep, engine=LocalWorkers(2))
        assert (found.problems, found.samples, found.shards) == ([], 40, 5)


def test_each_of_200_flipped_bits_is_found(copy: ShardSet) -> None:
    random, root = np.random.RandomState(0), Path(copy.root)
    files = sorted(path for path in root.iterdir() if path.is_file())
    found: Counter[str] = Counter()
    for number in range(200):
        path = files[number % len(files)]
        sound = path.read_bytes()
        flip(path, random.randint(len(sound)), random.randint(8))
        problems = verify(root, deep=True).problems
        assert problems, f"{path.name}, flip {number}"
        assert path.name in {problem.file for problem in problems}, problems
        found[path.suffix] += 1
        path.write_bytes(sound)
    assert found.keys() == {".tar", ".idx", ".jsonl", ".json"}
    assert verify(root, deep=True).problems == []


def test_200_flipped_bits_at_once_are_repaired_and_the_sound_samples_stay(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    shard_set = _copy(make_shard_set(400, samples_per_shard=40), tmp_path / "set")
    before, random = good_samples(shard_set), np.random.RandomState(1)
    hit: set[str] = set()
    for name in shard_set.tars:
        with tarfile.open(name) as members:
            starts = [(member.offset, member.name.partition(".")[0]) for member in members]
        for _ in range(20):
            byte = random.randint(Path(name).stat().st_size)
            flip(Path(name), byte, random.randint(8))
            keys = [key for start, key in starts if start <= byte]
            end = starts[-1][0] + 1024  # the last label, and after it the end mark
            if byte < end:
                hit.add(keys[-1])
    flip(Path(shard_set.indexes[3]), 77, 2)
    flip(Path(shard_set.root) / "manifest.json", 400, 0)
    result = repair(shard_set.root)
    assert {problem.key for problem in result.quarantined} == hit
    assert not result.unrepaired
    after = good_samples(open_shards(shard_set.root))
    assert after == {name: data for name, data in before.items() if name[:-4] not in hit}
    found = verify(shard_set.root, deep=True)
    assert (found.problems, found.samples) == ([], 400 - len(hit))
    assert open_shards(shard_set.root).manifest.account.quarantined == len(hit)
    kept = list((Path(shard_set.root) / "quarantine").rglob("damaged-*.tar"))
    assert len(kept) == len(hit)
    with Loader(open_shards(shard_set.root), VIEWS, batch_size_per_rank=8) as loader:
        ids = [sample for batch in loader for sample in batch.id_B.tolist()]
    assert len(ids) == (400 - len(hit)) // 8 * 8
    assert not {f"{sample:06d}" for sample in ids} & hit


@pytest.mark.parametrize("name", ["00002.idx", "manifest.json", "plan.json"])
@pytest.mark.parametrize("damage", ["flipped", "emptied", "binary"])
def test_what_can_be_made_again_is_the_same_to_the_byte(
    copy: ShardSet, name: str, damage: str
) -> None:
    before, path = contents(copy.root), Path(copy.root) / name
    if damage == "flipped":
        flip(path, len(before[name]) // 2, 1)
    else:
        path.write_bytes(b"" if damage == "emptied" else bytes(range(256)))
    repair(copy.root)
    after = contents(copy.root)
    if name == "plan.json":  # its fingerprint is for unfinished writings only
        assert json.loads(after.pop(name)).keys() == json.loads(before.pop(name)).keys()
    assert after == before


def test_a_plan_that_lacks_settings_is_named_and_made_again(copy: ShardSet) -> None:
    path = Path(copy.root) / "plan.json"
    values = unseal(path.read_text())
    path.write_text(seal({**values, "seed": "0"}, indent=1))
    assert str(verify(copy.root).problems[0]) == "plan.json is damaged: seed is '0', expected int"
    del values["preparation"]
    path.write_text(seal(values, indent=1))
    assert str(verify(copy.root).problems[0]) == "plan.json lacks preparation"
    assert repair(copy.root).rebuilt == ["plan.json"]
    assert not verify(copy.root).problems


def test_a_lost_index_or_table_is_made_again(copy: ShardSet) -> None:
    before, root = good_samples(copy), Path(copy.root)
    index = (root / "00001.idx").read_bytes()
    (root / "00001.idx").unlink()
    (root / "00003.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.idx is missing.*--repair true"):
        open_shards(root)
    repair(root)
    assert (root / "00001.idx").read_bytes() == index
    assert good_samples(open_shards(root)) == before
    assert verify(root, deep=True).problems == []


def test_a_truncated_tar_loses_only_what_was_cut(copy: ShardSet) -> None:
    tar = Path(copy.tars[2])
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"00002\.tar has .* bytes, .* truncated.*--repair true"):
        open_shards(copy.root)
    lost = len(repair(copy.root).quarantined)
    assert 1 <= lost <= 7
    assert len(open_shards(copy.root)) == 40 - lost
    assert verify(copy.root, deep=True).problems == []


def test_a_missing_tar_is_not_repaired_but_asked_for(copy: ShardSet) -> None:
    Path(copy.tars[0]).unlink()
    (problem,) = repair(copy.root).unrepaired
    assert str(problem) == "00000.tar is missing: copy it again"
    assert [p.what for p in verify(copy.root).problems] == ["is missing: copy it again"]


def test_tar_and_table_both_damaged_are_not_guessed_at(copy: ShardSet) -> None:
    flip(Path(copy.tars[0]), 600, 0)
    flip(Path(copy.root) / "00000.jsonl", 300, 0)
    (problem,) = repair(copy.root).unrepaired
    assert problem.file == "00000.tar" and "copy one of them again" in problem.what


def test_a_damaged_tar_that_is_read_again_is_no_image_that_takes_long(copy: ShardSet) -> None:
    """By -1 the engine knows that nothing is decoded, so that nothing hangs there."""
    shard = copy.manifest.shards[0]
    samples = [*range(shard.samples + 1)]

    def told() -> list[int]:
        calls: list[int] = []
        CheckShard.of(copy, deep=False)(shard, lambda done, _: calls.append(done))
        return calls

    assert told() == [-1, 0, *samples]
    flip(Path(copy.tars[0]), 600, 0)
    assert told() == [-1, 0, -1, *samples]


def test_repairing_a_sound_set_changes_nothing(copy: ShardSet) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in Path(copy.root).iterdir()}
    result = repair(copy.root)
    assert not (result.rebuilt or result.quarantined or result.unrepaired)
    assert before == {p.name: p.stat().st_mtime_ns for p in Path(copy.root).iterdir()}


def test_a_set_that_came_without_its_plan_is_repaired_too(copy: ShardSet) -> None:
    (Path(copy.root) / "plan.json").unlink()
    flip(Path(copy.tars[0]), 600, 0)
    repair(copy.root)
    assert verify(copy.root).problems == []
    assert len(open_shards(copy.root)) == len(copy) - 1


def test_an_undecodable_image_of_an_unverified_writing_is_found_by_deep_and_repaired(
    class_folders: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.writing.write, "MEASURED", 1)  # for its colours the first is decoded
    root = class_folders()
    source = ImageFolder(root=root)
    key = source[int(shards.writing.write.shuffled(12, 0)[-1])].key
    bad = root / f"{key}.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    how = Preparation(verify_decode=False)
    shard_set = write(source, tmp_path / "out", preparation=how)
    assert verify(shard_set.root).problems == []
    (problem,) = verify(shard_set.root, deep=True).problems
    assert str(problem) == f"00000.tar, sample {key} cannot be decoded"
    assert not repair(shard_set.root).quarantined  # its bytes are those that were written
    repair(shard_set.root, deep=True)
    assert verify(shard_set.root, deep=True).problems == []
    assert len(open_shards(shard_set.root)) == 11


def test_a_subset_of_a_repaired_set_is_to_be_selected_again(copy: ShardSet) -> None:
    select(copy, "half", fraction=0.5)
    flip(Path(copy.tars[0]), 600, 0)
    told = [str(problem) for problem in repair(copy.root).unrepaired]
    assert told == ["subsets/half was selected before: remove it and select it again"]


def test_a_repaired_set_lists_all_that_is_in_quarantine(
    class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    root = class_folders()
    (root / "class_00" / "0001.jpg").write_bytes(b"no image")
    shard_set = write(ImageFolder(root=root), tmp_path / "out", samples_per_shard=4)
    flip(Path(shard_set.tars[1]), 700, 1)
    (Path(shard_set.root) / "00000.jsonl").unlink()
    assert len(repair(shard_set.root).quarantined) == 1
    lines = (Path(shard_set.root) / "quarantine" / "reasons.jsonl").read_text().splitlines()
    reasons = sorted(json.loads(line)["reason"] for line in lines)
    assert reasons == ["damaged after writing", "not an image"]
    account = open_shards(shard_set.root).manifest.account
    assert (account.found, account.written, account.quarantined) == (12, 10, 2)
    (Path(shard_set.root) / "manifest.json").write_text("{}")
    assert not repair(shard_set.root).unrepaired
    assert open_shards(shard_set.root).manifest.account == account


def watched(shard_set: ShardSet, rank: int = 0, world_size: int = 1) -> list[str]:
    own = shards_of(shard_set.manifest.shards, rank, world_size, seed=0)
    with Watch(shard_set, own) as watch:
        deadline = time.monotonic() + 20
        while watch.checked < watch.total and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.checked == watch.total
        return watch.news()


def test_damage_that_opening_cannot_see_is_reported_while_training(copy: ShardSet) -> None:
    assert watched(copy) == []
    random = np.random.RandomState(2)
    for name in (*copy.tars, *copy.indexes):
        sound = Path(name).read_bytes()
        for _ in range(4):
            flip(Path(name), random.randint(len(sound)), random.randint(8))
            (told,) = watched(open_shards(copy.root))
            assert told == f"{name} is not what was written: its sha256 differs"
            Path(name).write_bytes(sound)


def test_ranks_share_the_watching(copy: ShardSet) -> None:
    for name in copy.tars:
        flip(Path(name), 5000, 3)
    told = [watched(copy, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(len(lines) for lines in told) == [2, 3]
    assert sorted(line.split()[0] for lines in told for line in lines) == copy.tars


def test_the_watch_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.health.watch, "_GENTLE", 1000.0)  # bytes a second: minutes for a tar
    shard_set = write(Pictures(20), tmp_path / "out", samples_per_shard=1)
    begin = time.monotonic()
    with Watch(shard_set, shard_set.manifest.shards) as watch:
        pass
    assert time.monotonic() - begin < 2
    assert watch.checked < watch.total == 20 and watch.news() == []


def test_the_command_names_problems_below_any_path_and_how_to_repair(
    class_folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from tools.verify import main

    root = tmp_path / os.fsdecode(b"caf\xe9\n")
    write(ImageFolder(root=class_folders()), root)
    (root / "00000.idx").write_text("v1.2 0\n")
    with pytest.raises(SystemExit) as ended:
        main(str(root), workers=1)
    assert ended.value.code == 1
    problem, summary, repair, *_ = capsys.readouterr().out.split("\n")
    assert "00000.idx" in problem and summary.endswith("problems")
    assert r"caf\udce9\n: 1 shards" in summary
    assert repair.startswith("to repair: python -m tools.verify '")
