"""How much may be missing from a shard set: of the whole, and of a class."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from shards.source import ImageFolder, Sample, Source
from shards.writing.missing import Missing
from shards.writing.prepare import BY_SETTING, Preparation
from shards.writing.write import write


class Partly(Source):
    """Samples of some classes, of which some cannot be read and some not be decoded."""

    name = "partly"
    split = ""

    def __init__(
        self,
        counts: list[int],
        *,
        gone: Iterable[int] = (),
        bad: Iterable[int] = (),
    ) -> None:
        self.labels = np.repeat(np.arange(len(counts)), counts).tolist()
        self.classes = [f"class {label}" for label in range(len(counts))]
        self.gone, self.bad = set(gone), set(bad)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return self.labels[index]

    def __getitem__(self, index: int) -> Sample:
        if index in self.gone:
            raise FileNotFoundError(2, "No such file or directory", f"{index}.jpg")
        pixels = np.full((16, 16, 3), index % 256, dtype=np.uint8)
        image = b"<html>" if index in self.bad else pixels
        return Sample(f"k{index}", image, self.label(index), index, {})


def refused(source: Source, out: Path, **settings) -> str:
    with pytest.raises(ValueError, match="--max_missing") as error:
        write(source, out, samples_per_shard=20, **settings)
    assert not out.exists()
    return str(error.value)


def test_a_class_that_is_gone_ends_the_writing_however_large_the_set_is(tmp_path: Path):
    source = Partly([400, 30, 60], gone=set(range(400, 430)))
    said = refused(source, tmp_path / "out")  # 6 % of the set
    assert "30 of 30 of class 'class 1' cannot be read or decoded: 30 unreadable in all" in said
    assert re.search(r"such as 4[0-2]\d.jpg \(No such file or directory\)", said)
    assert said.endswith("--max_missing 1") and "\n" not in said


@pytest.mark.parametrize("kind", ["gone", "bad"])
def test_a_share_of_the_set_that_is_missing_ends_the_writing_and_the_advice_helps(
    tmp_path: Path, kind: str
):
    lost = set(range(0, 200, 5))  # a fifth of each class
    source = Partly([100, 100], **{kind: lost})
    said = refused(source, tmp_path / "out", max_missing=0.19)
    share = re.search(r"--max_missing ([0-9.]+)$", said)
    assert share and "samples (" in said
    assert "40 of 200 samples (20.0%)" in refused(source, tmp_path / "out", max_missing=0.199)
    shard_set = write(source, tmp_path / "out", samples_per_shard=20, max_missing=0.2)
    assert len(shard_set) == 160
    lines = (tmp_path / "out/quarantine/reasons.jsonl").read_text().splitlines()
    assert {json.loads(line)["label"] for line in lines} == {0, 1} and len(lines) == 40


def test_it_ends_as_soon_as_too_much_is_missing(tmp_path: Path):
    read: list[int] = []

    class Counting(Partly):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            return super().__getitem__(index)

    refused(Counting([1000], bad=set(range(0, 1000, 2))), tmp_path / "out")
    # Half of what is read is missing; a tenth of the whole is exceeded after a fifth, and a shard.
    assert 200 <= len(read) <= 260


def test_what_is_brought_back_is_read_again_and_nothing_else(tmp_path: Path):
    lost = set(range(10, 20))
    source = Partly([100, 10], gone=set(range(100, 110)), bad=lost)
    refused(source, tmp_path / "out", max_missing=0.5)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").glob("*.tar")}
    missed = [
        path.stem
        for path in (tmp_path / "out.partial").glob("*.jsonl")
        if '"quarantined":[]' not in path.read_text().splitlines()[0].replace(" ", "")
    ]
    source.gone, source.bad = set(), set()
    shard_set = write(source, tmp_path / "out", samples_per_shard=20)
    assert len(shard_set) == 110 and shard_set.manifest.account.quarantined == 0
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    assert {name[:5] for name in after if after[name] != before[name]} == set(missed)
    plain = write(Partly([100, 10]), tmp_path / "plain", samples_per_shard=20)
    assert [each.tar.sha256 for each in plain.manifest.shards] == [
        each.tar.sha256 for each in shard_set.manifest.shards
    ]


def test_a_larger_share_finishes_without_reading_again(tmp_path: Path):
    source = Partly([40, 2, 2], gone={40, 41, 42})
    refused(source, tmp_path / "out")
    source.gone = set(range(44))  # nothing can be read any more
    assert len(write(source, tmp_path / "out", samples_per_shard=20, max_missing=1)) == 41


def test_a_single_one_may_be_missing_unless_none_may(tmp_path: Path):
    source = Partly([4, 1], gone={4})
    said = refused(source, tmp_path / "none", max_missing=0)
    assert "1 of 5 samples (20.0%)" in said and said.endswith("--max_missing 0.2")
    assert len(write(source, tmp_path / "one")) == 4


def test_what_a_setting_leaves_out_is_not_missing(tmp_path: Path):
    class Large(Partly):
        def __getitem__(self, index: int) -> Sample:
            side = 16 + 100 * (self.label(index) == 1)
            return Sample(f"k{index}", np.zeros((side, 16, 3), np.uint8), 0, index, {})

    how = Preparation(max_megapixels=0.001)
    shard_set = write(Large([10, 10]), tmp_path / "out", preparation=how)
    assert len(shard_set) == 10 and shard_set.manifest.account.quarantined == 10
    (reason,) = {
        json.loads(line)["reason"]
        for line in (tmp_path / "out/quarantine/reasons.jsonl").read_text().splitlines()
    }
    assert reason in BY_SETTING


def test_samples_that_a_source_knows_to_be_absent_count_before_any_work(tmp_path: Path):
    source = Partly([10])
    source.absent = 5
    said = refused(source, tmp_path / "out")
    assert "5 of 15 samples (33.3%) are absent" in said and said.endswith("--max_missing 0.34")
    assert not (tmp_path / "out.partial").exists()
    assert len(write(source, tmp_path / "out", max_missing=0.34)) == 10


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(share: float):
    with pytest.raises(ValueError, match=r"max_missing=.*; expected a share from 0 to 1"):
        Missing(share, 1, [])


def test_labels_without_images_are_those_of_the_samples(class_folders):
    source = ImageFolder(root=class_folders(classes=5, per_class=3))
    assert [source.label(i) for i in range(15)] == [source[i].label for i in range(15)]
