"""No number of an index reaches DALI that does not fit its tar."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from shards import as_webdataset
from shards.health.leave_out import leave_out
from shards.health.repair import repair
from shards.health.verification import verify
from shards.layout import MANIFEST, Manifest, Shard, ShardSet, open_shards
from shards.shard_index import check_index, lines_of
from shards.storage import LocalFolder
from shards.subset.selection import select
from shards.survey import survey
from shards.tar import components, file_of, index_lines, key_of
from tests import program
from tests.conftest import MakeShardSet

SAMPLES = 64


class Held(LocalFolder):
    """A folder in which every file has the same content."""

    content = b""

    def read(self, *_: Any, **__: Any) -> bytes:
        return self.content


def one_digit_changed(text: bytes) -> Iterator[bytes]:
    """Yield the text with each of its digits replaced by each other one."""
    for at in range(len(text)):
        if text[at : at + 1].isdigit():
            for digit in b"0123456789".replace(text[at : at + 1], b""):
                yield text[:at] + bytes([digit]) + text[at + 1 :]


def fits(text: bytes, shard: Shard) -> bool:
    """Whether each number of an index is right, line by line."""
    lines = text.decode().splitlines()
    if lines[0] != f"v1.2 {shard.samples}" or len(lines) != shard.samples + 1:
        return False
    parts = [part for line in lines[1:] for part in components(line)]
    numbers = all(size == 8 for extension, _, size, _ in parts if extension in ("id.i64", "y.i64"))
    inside = all(at % 512 == 0 and at + size <= shard.tar.bytes for _, at, size, _ in parts)
    return numbers and inside


@pytest.fixture
def whole(make_shard_set: MakeShardSet) -> tuple[Shard, bytes]:
    shard_set = make_shard_set(SAMPLES, samples_per_shard=SAMPLES)
    (shard,) = shard_set.manifest.shards
    return shard, shard_set.folder.read(f"{shard.name}.idx")


def test_every_change_of_a_digit_is_refused_by_its_hash(
    make_shard_set: MakeShardSet, whole: tuple[Shard, bytes]
) -> None:
    shard, text = whole
    shard_set = make_shard_set(SAMPLES, samples_per_shard=SAMPLES)
    folder = Held(shard_set.root)
    shard_set = replace(shard_set, folder=folder)
    folder.content = text
    assert len(lines_of(shard_set, shard)) == SAMPLES
    changes = 0
    for folder.content in one_digit_changed(text):
        with pytest.raises(ValueError, match=r"00000\.idx is not the file that was written"):
            lines_of(shard_set, shard)
        changes += 1
    assert changes > 30_000


def test_sealed_anew_a_changed_digit_is_accepted_only_where_all_lies_in_the_tar(
    whole: tuple[Shard, bytes],
) -> None:
    shard, text = whole
    # All but so many blocks at the end: then a larger size leads beyond it.
    close = replace(shard, tar=replace(shard.tar, bytes=len_of(text)))
    accepted = refused = 0
    for changed in islice(one_digit_changed(text), 0, None, 11):  # of all, 11 seconds
        try:
            check_index(changed, close)
        except ValueError:
            assert not fits(changed, close), changed
            refused += 1
        else:
            assert fits(changed, close), changed
            accepted += 1
    assert accepted > 500 and refused > 500


def len_of(text: bytes) -> int:
    """Return where the last file of an index ends."""
    lines = text.decode().splitlines()[1:]
    return max(at + size for line in lines for _, at, size, _ in components(line))


LINE = "id.i64 512 8 a.id.i64 png 1536 100 a.png y.i64 2048 8 a.y.i64"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is no index"),
        ("v1.2 1\n", "says that it has 1 samples and lists 0"),
        ("v1.2 2\n" + LINE + "\n", "says that it has 2 samples and lists 1"),
        ("v1.1 1\n" + LINE + "\n", "is no index"),
        ("v1.2 1\n" + LINE, "is no index"),
        ("v1.2 1\n" + LINE.replace(" 100 ", " -100 ") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" 1536 ", " -512 ") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" 100 ", " 100000000000 ") + "\n", "points to 100,000,000,000"),
        ("v1.2 1\n" + LINE.replace(" 100 ", f" {2**64 + 100} ") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" 100 ", f" {'9' * 5000} ") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" 1536 ", " 1537 ") + "\n", "points to 100 bytes at 1,537"),
        ("v1.2 1\n" + LINE.replace(" 1536 ", " 10240 ") + "\n", "points to 100 bytes at 10,240"),
        ("v1.2 1\n" + LINE.replace(" a.png", "") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" png", "\tpng") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace(" png", "  png") + "\n", "is no index"),
        ("v1.2 1\n" + LINE.replace("2048 8 ", "2048 16 ") + "\n", "labels of 8 bytes"),
        ("v1.2 1\n" + LINE.replace(" 512 8 ", " 512 0 ") + "\n", "ids and labels of 8 bytes"),
        ("v1.2 1\n" + LINE.replace("id.i64 512 8", "shape.i64 512 8") + "\n", "shapes of 24"),
        ("v1.2 1\n\n", "is no index"),
        ("v1.2 1\n" + LINE + "\n\n", "is no index"),
    ],
)
def test_an_index_that_does_not_fit_is_refused_with_the_cause(
    whole: tuple[Shard, bytes], text: str, what: str
) -> None:
    shard = replace(whole[0], samples=1, tar=replace(whole[0].tar, bytes=10240))
    check_index(f"v1.2 1\n{LINE}\n".encode(), shard)
    with pytest.raises(ValueError, match=what):
        check_index(text.encode(), shard)


# ── whoever reads an index ────────────────────────────────────────────────────────────────────────


def train(root: Path) -> None:
    group = ViewGroup(count=2, size=16, policy=SimCLRViews(blur=0.0))
    with Loader(open_shards(root), [group], batch_size_per_rank=4, shuffle_buffer=4) as loader:
        next(iter(loader))


READERS: dict[str, Callable[[Path], Any]] = {
    "training": train,
    "evaluation": lambda root: next(iter(Images(open_shards(root), size=16))),
    "a subset as a stream": lambda root: next(iter(as_webdataset(root / "subsets" / "half"))),
    "tools.inspect": lambda root: survey(open_shards(root)),
    "samples left out": lambda root: leave_out(
        open_shards(root), {"00000": {"000001": "x"}}, root / "out"
    ),
}


def seal_anew(root: Path, index: bytes) -> None:
    """Write an index of the first shard, and a manifest that vouches for it."""
    (root / "00000.idx").write_bytes(index)
    manifest = Manifest.from_json((root / MANIFEST).read_text())
    shards = [replace(manifest.shards[0], index=file_of(index)), *manifest.shards[1:]]
    (root / MANIFEST).write_text(replace(manifest, shards=shards).to_json())


@pytest.fixture
def root(make_shard_set: MakeShardSet, tmp_path: Path) -> Path:
    shutil.copytree(make_shard_set(42).root, tmp_path / "set")
    select(open_shards(tmp_path / "set"), "half", fraction=0.5)
    return tmp_path / "set"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("sealed", [False, True])
def test_whoever_reads_an_index_refuses_a_wrong_number(
    root: Path, reader: str, sealed: bool
) -> None:
    place = root / "subsets" / "half" if reader.startswith("a subset") else root
    text = (place / "00000.idx").read_bytes()
    size = next(n for e, _, n, _ in components(index_lines(text)[-1]) if e == "png")
    digits = len(str(size))
    wrong = text.replace(f" {size} ".encode(), f" {'9' * digits} ".encode())
    if sealed:
        wrong = text.replace(f" {size} ".encode(), b" 999999999999 ")
        seal_anew(place, wrong)
    else:
        (place / "00000.idx").write_bytes(wrong)
    what = "points to 999,999,999,999 bytes" if sealed else "is not the file that was written"
    remedy = "select it again" if place != root else "--repair true"
    with pytest.raises(ValueError, match=rf"00000\.idx {what}.*{remedy}"):
        READERS[reader](root)


@pytest.mark.parametrize("size", [-8, 10**12, 10**30])
def test_verify_names_it_and_repair_makes_it_again(root: Path, size: int) -> None:
    text = (root / "00000.idx").read_bytes()
    at = next(n for e, _, n, _ in components(index_lines(text)[0]) if e == "png")
    seal_anew(root, text.replace(f" {at} ".encode(), f" {size} ".encode()))
    (problem,) = verify(root).problems
    assert problem.file == "00000.idx"
    repair(root, deep=True)
    assert (root / "00000.idx").read_bytes() == text
    assert verify(root, deep=True).problems == []


def test_of_a_set_with_samples_left_out_the_indexes_in_their_place_are_checked(
    root: Path, tmp_path: Path
) -> None:
    whole = open_shards(root)
    first = whole.manifest.shards[0]
    key = key_of(lines_of(whole, first)[0])
    left = leave_out(whole, {"00000": {key: "x"}}, tmp_path / "out")
    (path,) = left.replaced.values()
    text = Path(path).read_bytes()
    shard = left.manifest.shards[0]
    assert len(lines_of(left, shard)) == shard.samples == first.samples - 1
    Path(path).write_bytes(text.replace(b" 2 ", b" 999999999999 "))  # of KEY.json
    with pytest.raises(ValueError, match="points to"):
        lines_of(left, shard)


def test_a_start_with_another_digit_in_an_index_ends_in_a_line(
    make_shard_set: MakeShardSet, tmp_path: Path
) -> None:
    """DALI would read beyond the mapping of the tar, and the kernel end the process."""
    large = make_shard_set(SAMPLES, samples_per_shard=SAMPLES, height=160, width=160)
    copy = tmp_path / "copy"
    shutil.copytree(large.root, copy)
    text = (copy / "00000.idx").read_bytes()
    last = re.search(rb".* png \d+ ", text, flags=re.DOTALL)
    assert last is not None
    (copy / "00000.idx").write_bytes(text[: last.end()] + b"9" + text[last.end() + 1 :])
    more = ["--steps", "20", "--max_bad_samples", "3"]  # of which an index is none
    code, _, err = program.train(open_shards(copy), tmp_path / "run", *more)
    assert code == 2 and "Traceback" not in err
    assert "00000.idx is not the file that was written" in err and "--repair true" in err


def test_the_stores_that_dali_does_not_read_are_named(root: Path) -> None:
    folder = Held(root)
    folder.location = "memory://set"
    remote: ShardSet = replace(open_shards(root), folder=folder)
    with pytest.raises(ValueError, match="in a store that DALI does not read"):
        next(iter(Images(remote, size=16)))
