"""Writing a shard set, against readers that share no line with the writer."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wds2idx
from PIL import Image
from webdataset.compat import WebDataset

import shards.storage
import shards.writing.output
from shards.layout import ShardSet, open_shards
from shards.source import ImageFolder, Sample, Source
from shards.writing.prepare import Preparation
from shards.writing.write import Progress, write


class ListedSource(Source):
    """Samples from a list."""

    name = "listed"
    split = ""

    def __init__(self, samples: list[Sample], classes: list[str]) -> None:
        self.samples, self.classes = samples, classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def pixel(key: str, label: int = -1, id: int = 0) -> Sample:
    return Sample(key, PIXEL, label, id, {})


_FILE = io.BytesIO()
Image.new("L", (8, 8), 129).save(_FILE, "PNG")
PIXEL = _FILE.getvalue()  # the smallest picture


def read(shard_set: ShardSet) -> dict[str, dict[str, Any]]:
    """All samples by key, as webdataset's own reader gives them."""
    found = list(WebDataset(shard_set.tars, shardshuffle=False, empty_check=False))
    assert len(found) == len({sample["__key__"] for sample in found})
    return {sample["__key__"]: sample for sample in found}


def contents(shard_set: ShardSet) -> dict[str, bytes]:
    """Every file of a set by name; the manifest too, as no command was given."""
    root = Path(shard_set.root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_webdataset_reads_back_every_byte(class_folders, tmp_path: Path):
    root = class_folders(classes=3, per_class=7)
    shard_set = write(ImageFolder(root=root), tmp_path / "out", samples_per_shard=4)
    samples = read(shard_set)
    files = sorted(root.rglob("*.jpg"))
    assert len(samples) == len(files) == 21
    for position, file in enumerate(files):
        sample = samples[str(file.relative_to(root).with_suffix(""))]
        assert sample["jpg"] == file.read_bytes()
        assert np.frombuffer(sample["id.i64"], "<i8").tolist() == [position]
        assert np.frombuffer(sample["y.i64"], "<i8").tolist() == [position // 7]
        assert json.loads(sample["json"]) == {"file": str(file.relative_to(root))}


def test_plain_tar_lists_what_the_source_holds(class_folders, tmp_path: Path):
    shard_set = write(ImageFolder(root=class_folders()), tmp_path / "out", samples_per_shard=5)
    for tar, shard in zip(shard_set.tars, shard_set.manifest.shards, strict=True):
        listed = subprocess.run(["tar", "-tf", tar], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        names = listed.stdout.split()
        assert len(names) == len(set(names)) == 4 * shard.samples
        kinds = Counter(name.partition(".")[2] for name in names)
        assert kinds == dict.fromkeys(["id.i64", "jpg", "json", "y.i64"], shard.samples)
        assert Path(tar).stat().st_size == shard.tar.bytes
        assert hashlib.sha256(Path(tar).read_bytes()).hexdigest() == shard.tar.sha256


def test_the_index_is_that_of_dalis_own_indexer(class_folders, tmp_path: Path):
    shard_set = write(ImageFolder(root=class_folders()), tmp_path / "out", samples_per_shard=5)
    for tar, index in zip(shard_set.tars, shard_set.indexes, strict=True):
        with wds2idx.IndexCreator(tar, str(tmp_path / "oracle.idx"), verbose=False) as oracle:
            oracle.create_index()
        assert Path(index).read_bytes() == (tmp_path / "oracle.idx").read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(
    class_folders, tmp_path: Path
):
    source = ImageFolder(root=class_folders(per_class=20))
    one, same, other = (
        write(source, tmp_path / name, seed=seed, samples_per_shard=7)
        for name, seed in [("one", 3), ("same", 3), ("other", 4)]
    )
    assert contents(one) == contents(same)
    assert one.manifest == same.manifest
    assert one.manifest.shards != other.manifest.shards
    assert read(one).keys() == read(other).keys()


def test_tars_carry_no_trace_of_time_or_user(class_folders, tmp_path: Path):
    shard_set = write(ImageFolder(root=class_folders()), tmp_path / "out")
    with tarfile.open(shard_set.tars[0]) as tar:
        traces = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert traces == {(0, 0, 0, "", "", 0o444)}


@pytest.mark.parametrize(
    ("samples", "per_shard", "counts"),
    [(1, 10, [1]), (10, 10, [10]), (11, 10, [6, 5]), (101, 25, [21, 20, 20, 20, 20])],
)
def test_shards_differ_by_at_most_one_sample(tmp_path: Path, samples, per_shard, counts):
    source = ListedSource([pixel(f"{i}", id=i) for i in range(samples)], [])
    shard_set = write(source, tmp_path / "out", samples_per_shard=per_shard)
    assert [shard.samples for shard in shard_set.manifest.shards] == counts
    assert len(read(shard_set)) == samples


def test_a_source_sorted_by_class_is_mixed_in_every_shard(tmp_path: Path):
    classes, per_class = 20, 100
    source = ListedSource(
        [pixel(f"{i}", i // per_class, i) for i in range(classes * per_class)],
        [str(label) for label in range(classes)],
    )
    shard_set = write(source, tmp_path / "out", samples_per_shard=100)
    label = {key: int.from_bytes(s["y.i64"], "little") for key, s in read(shard_set).items()}
    for tar in shard_set.tars:
        with tarfile.open(tar) as members:
            keys = [m.name.partition(".")[0] for m in members if m.name.endswith(".png")]
        # 100 of 2,000 at random miss a given class with probability 0.006.
        assert len({label[key] for key in keys}) >= 18
        assert max(Counter(label[key] for key in keys).values()) <= 17


def test_a_limit_is_a_random_subset_and_the_ids_stay(tmp_path: Path):
    source = ListedSource(
        [pixel(f"{i}", i // 100, i) for i in range(1000)], [str(i) for i in range(10)]
    )
    some = read(write(source, tmp_path / "some", limit=200))
    all_ids = {k: s["id.i64"] for k, s in read(write(source, tmp_path / "all")).items()}
    assert len(some) == 200
    assert all(all_ids[key] == sample["id.i64"] for key, sample in some.items())
    counts = Counter(int.from_bytes(sample["y.i64"], "little") for sample in some.values())
    assert len(counts) == 10 and min(counts.values()) >= 8  # 20 expected, deviation 3.8
    more = read(write(source, tmp_path / "more", limit=5000))
    assert len(more) == 1000


def test_what_is_skipped_is_what_a_limit_of_that_number_writes(tmp_path: Path):
    source = ListedSource([pixel(f"{i}", 0, i) for i in range(100)], ["only"])
    train = read(write(source, tmp_path / "train", limit=60))
    held_out = read(write(source, tmp_path / "held-out", skip=60, limit=15))
    rest = read(write(source, tmp_path / "rest", skip=75))
    parts = [set(part) for part in (train, held_out, rest)]
    assert [len(part) for part in parts] == [60, 15, 25]
    assert len(set.union(*parts)) == 100
    other = read(write(source, tmp_path / "other", skip=60, limit=15, seed=1))
    assert set(other) != set(held_out)


def test_statistics_are_those_of_the_pixels(class_folders, tmp_path: Path):
    root = class_folders(classes=2, per_class=10, suffix="png")
    found = write(ImageFolder(root=root), tmp_path / "out").manifest.statistics
    images = [np.asarray(Image.open(path)) / 255 for path in root.rglob("*.png")]
    # Each image counts alike, as it does once views are resized.
    means = np.mean([image.mean((0, 1)) for image in images], 0)
    squares = np.mean([(image**2).mean((0, 1)) for image in images], 0)
    assert found.mean == pytest.approx(means, abs=1e-6)
    assert found.std == pytest.approx(np.sqrt(squares - means**2), abs=1e-6)
    heights, widths = [i.shape[0] for i in images], [i.shape[1] for i in images]
    assert (found.min_height, found.max_height) == (min(heights), max(heights))
    assert (found.min_width, found.max_width) == (min(widths), max(widths))
    shorter = [min(pair) for pair in zip(heights, widths, strict=True)]
    assert found.median_shorter_side == statistics.median(shorter)
    assert found.images == 20


def test_the_median_side_of_an_even_count_lies_between_the_middle_two(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for side in (10, 12, 15, 40):
        Image.new("RGB", (side, 30)).save(tmp_path / "in" / f"{side}.png")
    found = write(ImageFolder(root=tmp_path / "in"), tmp_path / "out").manifest.statistics
    assert found.median_shorter_side == 13.5


def test_sizes_are_as_shown_after_exif_orientation(tmp_path: Path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    Image.new("RGB", (30, 10)).save(tmp_path / "in" / "turned.jpg", exif=exif)
    found = write(ImageFolder(root=tmp_path / "in"), tmp_path / "out").manifest.statistics
    assert (found.min_width, found.min_height) == (10, 30)


def test_what_cannot_be_used_is_kept_aside_with_its_reason(class_folders, tmp_path: Path):
    root = class_folders()
    bad = {"class_00/0001.jpg": b"", "class_01/0002.jpg": b"hello", "class_02/0000.jpg": b""}
    cut = (root / "class_02" / "0000.jpg").read_bytes()
    bad["class_02/0000.jpg"] = cut[: len(cut) // 2]
    for name, data in bad.items():
        (root / name).write_bytes(data)
    source = ImageFolder(root=root)
    shard_set = write(source, tmp_path / "out", samples_per_shard=5, max_missing=0.25)
    account = shard_set.manifest.account
    assert (account.found, account.written, account.quarantined) == (12, 9, 3)
    assert len(read(shard_set)) == 9
    reasons = (tmp_path / "out" / "quarantine" / "reasons.jsonl").read_text().splitlines()
    told = {line["origin"]: line for line in map(json.loads, reasons)}
    assert told.keys() == bad.keys()
    assert told["class_00/0001.jpg"]["reason"] == "empty"
    assert told["class_01/0002.jpg"]["reason"] == "not an image"
    assert told["class_02/0000.jpg"]["reason"] == "truncated or corrupt"
    for name, data in bad.items():
        assert (tmp_path / "out" / told[name]["file"]).read_bytes() == data
        assert told[name]["label"] == int(name[6:8])


def test_a_file_that_cannot_be_read_is_counted_and_named(class_folders, tmp_path: Path):
    root = class_folders()
    source = ImageFolder(root=root)
    (root / "class_01" / "0002.jpg").unlink()  # between listing and writing
    shard_set = write(source, tmp_path / "out")
    assert shard_set.manifest.account.quarantined == 1
    (line,) = (tmp_path / "out" / "quarantine" / "reasons.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "unreadable"
    assert json.loads(line)["origin"].endswith("class_01/0002.jpg")


def test_a_set_without_a_usable_image_is_refused(tmp_path: Path):
    source = ListedSource([Sample("a", b"?", -1, 0, {}), Sample("b", b"", -1, 1, {})], [])
    with pytest.raises(ValueError, match=r"none of 2 images can be used; \w is (empty|not an)"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_link_is_written_where_it_leads(class_folders, tmp_path: Path):
    there, link = tmp_path / "disk" / "there", tmp_path / "link"
    there.mkdir(parents=True)
    source = ImageFolder(root=class_folders())
    for target in (there, tmp_path / "disk" / "dangling"):
        link.symlink_to(target)
        assert len(write(source, link)) == 12
        assert link.is_symlink() and (target / "manifest.json").exists()
        assert not list(tmp_path.glob("*.partial"))
        link.unlink()


def test_an_output_with_a_hidden_file_is_refused_before_any_work(class_folders, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gitkeep").touch()
    with pytest.raises(FileExistsError, match=r"is not empty: it holds \.gitkeep"):
        write(ImageFolder(root=class_folders()), tmp_path / "out")
    assert not list(tmp_path.glob("*.partial"))


def test_a_mount_point_is_refused_before_any_work(class_folders, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(tmp_path / "disk"))
    with pytest.raises(FileExistsError, match=r"disk is where a disk is mounted.*disk/set"):
        write(ImageFolder(root=class_folders()), tmp_path / "disk")
    assert not list(tmp_path.glob("*.partial"))


def test_the_folder_that_a_command_runs_in_is_refused_before_any_work(
    class_folders, tmp_path: Path, monkeypatch
):
    source, mine, link = ImageFolder(root=class_folders()), tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    link.symlink_to(mine)
    monkeypatch.chdir(mine)
    for out in (".", "../mine", mine, link):
        with pytest.raises(FileExistsError, match="is the folder that the command runs in") as no:
            write(source, out)
        assert str(no.value).endswith(f"such as set; or cd .. and give --out {mine}.")
        assert mine.samefile(os.curdir) and not list(tmp_path.glob("*.partial"))
    assert len(write(source, "set")) == 12  # both remedies help
    shutil.rmtree(mine / "set")
    monkeypatch.chdir("..")
    assert len(write(source, mine)) == 12


def test_copies_are_counted_and_dropped_on_demand(class_folders, tmp_path: Path):
    root = class_folders(classes=3, per_class=8)
    copied = (root / "class_00" / "0003.jpg").read_bytes()
    for name in ("class_01/0000.jpg", "class_02/0007.jpg"):
        (root / name).write_bytes(copied)
    counted = write(ImageFolder(root=root), tmp_path / "counted", samples_per_shard=5)
    assert counted.manifest.account.duplicates == 2
    assert counted.manifest.account.written == 24
    dropped = write(
        ImageFolder(root=root), tmp_path / "dropped", samples_per_shard=5, drop_duplicates=True
    )
    account = dropped.manifest.account
    assert (account.found, account.written, account.dropped, account.duplicates) == (24, 22, 2, 0)
    left = read(dropped)
    assert "class_00/0003" in left  # the first in the source's order
    assert not {"class_01/0000", "class_02/0007"} & left.keys()


def test_two_samples_of_one_key_are_refused(tmp_path: Path):
    source = ListedSource([pixel(key) for key in ("a", "b", "c", "b")], [])
    with pytest.raises(ValueError) as refused:
        write(source, tmp_path / "out", samples_per_shard=1)
    assert "have the same key 'b'" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard=0; expected 1 or more"),
        ({"limit": 0}, "limit=0; expected 1 or more"),
        ({"skip": -1}, "skip=-1; expected 0 or more"),
        ({"skip": 1}, "skip=1; expected 0 or more, and fewer than the 1 samples"),
        ({"seed": -1}, "seed=-1; expected a number from 0 to 4294967295"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: Any, says: str):
    with pytest.raises(ValueError, match=says):
        write(ListedSource([pixel("a")], []), tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_written_to(tmp_path: Path):
    source = ListedSource([pixel("a")], [])
    (tmp_path / "empty").mkdir()
    write(source, tmp_path / "empty")
    with pytest.raises(FileExistsError, match=r"already holds a shard set.*another --out"):
        write(source, tmp_path / "empty")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").touch()
    with pytest.raises(FileExistsError, match=r"not empty: it holds to_mother\.txt"):
        write(source, tmp_path / "letters")
    with pytest.raises(FileExistsError, match="is a file"):
        write(source, tmp_path / "letters" / "to_mother.txt")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"it holds thesis.tex, which no writing left"):
        write(source, tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["00000.tar", "manifest.json", "quarantine"])
def test_a_folder_that_no_plan_began_is_somebody_else_s_whatever_its_names(
    tmp_path: Path, name: str
):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / name).write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match=f"it holds {name}, which no writing left"):
        write(ListedSource([pixel("a")], []), tmp_path / "out")
    assert (partial / name).read_bytes() == b"theirs" and [*partial.iterdir()] == [partial / name]


def test_a_writing_that_was_killed_before_its_plan_is_begun_again(tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    for name in (".lock", ".plan.json.123-0123abcd"):
        (tmp_path / "out.partial" / name).touch()
    assert len(write(ListedSource([pixel("a")], []), tmp_path / "out")) == 1


def test_an_interrupted_writing_goes_on_and_rewrites_nothing(class_folders, tmp_path: Path):
    def interrupt(progress: Progress) -> None:
        if progress.samples == 7:
            raise KeyboardInterrupt

    source, out, partial = (
        ImageFolder(root=class_folders()),
        tmp_path / "out",
        tmp_path / "out.partial",
    )
    with pytest.raises(KeyboardInterrupt):
        write(source, out, samples_per_shard=2, progress=interrupt)
    assert not out.exists()
    with pytest.raises(FileNotFoundError, match=r"3 shards but no manifest.*it goes on there"):
        open_shards(partial)
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.tar")}
    assert sorted(before) == ["00000.tar", "00001.tar", "00002.tar"]
    shard_set = write(source, out, samples_per_shard=2)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}.items()
    assert not partial.exists()
    assert contents(shard_set) == contents(write(source, tmp_path / "at-once", samples_per_shard=2))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"samples_per_shard": 3},
        {"limit": 5},
        {"skip": 5},
        {"drop_duplicates": True},
        {"preparation": Preparation(encoding="raw")},
    ],
)
def test_a_writing_with_other_settings_does_not_go_on(class_folders, tmp_path: Path, other: Any):
    source = ImageFolder(root=class_folders())
    _break_off(source, tmp_path / "out")
    name = next(iter(other))
    with pytest.raises(ValueError, match=f"unfinished writing with another {name}.*Repeat the"):
        write(source, tmp_path / "out", **{"samples_per_shard": 2, **other})


def test_a_writing_that_skips_does_not_go_on_without_skipping(class_folders, tmp_path: Path):
    source = ImageFolder(root=class_folders())
    _break_off(source, tmp_path / "out", skip=5)
    with pytest.raises(ValueError, match=r"another skip: 5 there, 0 here"):
        write(source, tmp_path / "out", samples_per_shard=2)


def test_a_writing_of_another_list_of_files_does_not_go_on(class_folders, tmp_path: Path):
    root = class_folders()
    _break_off(ImageFolder(root=root), tmp_path / "out")
    (root / "class_00" / "0000.jpg").rename(root / "class_00" / "other.jpg")
    with pytest.raises(ValueError, match="unfinished writing with another fingerprint"):
        write(ImageFolder(root=root), tmp_path / "out", samples_per_shard=2)


def test_another_source_of_the_same_names_does_not_go_on(class_folders, tmp_path: Path):
    one, other = class_folders(name="one"), class_folders(name="other")
    _break_off(ImageFolder(root=one), tmp_path / "out")
    with pytest.raises(ValueError, match="unfinished writing with another fingerprint"):
        write(ImageFolder(root=other), tmp_path / "out", samples_per_shard=2)


def test_a_kill_just_before_the_end_is_taken_up(class_folders, tmp_path: Path, monkeypatch):
    source, out = ImageFolder(root=class_folders()), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            shards.writing.output.os, "rename", lambda *_: os.kill(os.getpid(), signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt):
            write(source, out, samples_per_shard=2)
    assert (tmp_path / "out.partial" / "manifest.json").exists()
    assert len(write(source, out, samples_per_shard=2)) == 12


def test_a_file_whose_name_is_not_unicode_is_written_and_quarantined_by_name(tmp_path: Path):
    folder = tmp_path / "in" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "good.png")
    (folder / os.fsdecode(b"b\xe4d.jpg")).write_bytes(b"?")
    shard_set = write(ImageFolder(root=tmp_path / "in"), tmp_path / "out")
    assert shard_set.manifest.classes == ["caf\\udce9"]
    assert shard_set.manifest.account.quarantined == 1
    assert open_shards(tmp_path / "out") == shard_set


def _break_off(source: Source, out: Path, *, skip: int = 0) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.samples == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, out, samples_per_shard=2, skip=skip, progress=interrupt)


def test_a_full_disk_is_said_and_the_writing_goes_on_later(
    class_folders, tmp_path: Path, monkeypatch
):
    source, out = ImageFolder(root=class_folders()), tmp_path / "out"
    synced = []

    def full(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return
        synced.append(descriptor)
        if len(synced) == 9:  # the plan twice, two shards of three files, and the third tar
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.storage.os, "fsync", full)
        with pytest.raises(OSError) as refused:
            write(source, out, samples_per_shard=2)
    assert refused.value.errno == errno.ENOSPC
    assert f"no space left for {out}; 2 complete shards stay in {out}.partial" in str(refused.value)
    assert "repeat the command: it goes on there" in str(refused.value)
    assert len(write(source, out, samples_per_shard=2)) == 12


def test_a_killed_writer_leaves_nothing_that_opens_and_does_not_stand_in_the_way(
    class_folders, tmp_path: Path
):
    root, out = class_folders(), tmp_path / "out"
    program = f"""
import pathlib, time
from shards.source import ImageFolder
from shards.writing.write import write
def progress(progress):
    if progress.samples == 11:
        print("eleven of twelve", flush=True)
        time.sleep(60)
write(ImageFolder(root={str(root)!r}), pathlib.Path({str(out)!r}), samples_per_shard=3,
      progress=progress)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert writer.stdout is not None and writer.stdout.readline() == b"eleven of twelve\n"
    with pytest.raises(FileExistsError, match="is being written by another process"):
        write(ImageFolder(root=root), out, samples_per_shard=3)
    writer.send_signal(signal.SIGKILL)
    writer.wait()

    partial = tmp_path / "out.partial"
    assert len(list(partial.glob("*.jsonl"))) == 3
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_shards(out)
    with pytest.raises(FileNotFoundError, match=r"3 shards but no manifest.*did not finish"):
        open_shards(partial)
    assert len(write(ImageFolder(root=root), out, samples_per_shard=3)) == 12
    assert not partial.exists()


def test_progress_counts_every_sample_once(class_folders, tmp_path: Path):
    calls: list[Progress] = []
    write(
        ImageFolder(root=class_folders()),
        tmp_path / "out",
        samples_per_shard=5,
        progress=calls.append,
    )
    counts = [call.samples for call in calls]
    assert counts == sorted(counts) and set(counts) == set(range(13))
    assert {call.total for call in calls} == {12}
    assert calls[-1].bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))


def test_a_shard_can_be_written_in_another_process(class_folders):
    source = ImageFolder(root=class_folders())
    copy = pickle.loads(pickle.dumps(source))
    assert copy[5] == source[5]


def test_shards_needs_no_torch():
    program = (
        "import sys, shards.writing.write, shards.layout, shards.source\n"
        "assert not {'torch', 'torchvision', 'nvidia'} & set(sys.modules), 'imported'"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env={**os.environ})
