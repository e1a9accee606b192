"""A file is what was written, or the file from before."""

import errno
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from shards import durable

SIZES = [0, 1, 4095, 8192, 41473]


def pieces(size: int) -> list[bytes]:
    """Cut `size` random bytes at random places."""
    random = np.random.default_rng(size)
    content = random.bytes(size)
    cuts = sorted({0, size, *random.integers(0, size + 1, 7).tolist()})
    return [content[a:b] for a, b in pairwise(cuts)]


def test_a_file_that_has_that_content_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace(path, [b"as ", b"before"])
    before = path.stat()
    durable.replace(path, [b"as be", b"fore"])
    assert path.stat() == before
    durable.replace(path, [b"as ", b"beforE"])
    assert path.read_bytes() == b"as beforE" and path.stat().st_ino != before.st_ino


def test_json_holds_names_that_are_not_text(tmp_path: Path) -> None:
    value = {"image": os.fsdecode(b"caf\xe9.png"), "größe": [1, None, 0.5]}
    durable.replace_json(tmp_path / "file", value)
    assert json.loads((tmp_path / "file").read_bytes()) == value


@pytest.mark.parametrize("size", SIZES)
def test_the_file_is_its_pieces(tmp_path: Path, size: int) -> None:
    durable.write(tmp_path / "file", pieces(size))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_write_that_takes_less_than_it_was_given_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, block: real(descriptor, block[:1000]))
    durable.write(tmp_path / "file", pieces(size))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(size))


@pytest.mark.parametrize(
    ("written", "message"), [(None, "Invalid argument"), (0, "the disk takes nothing more")]
)
def test_a_write_that_cannot_be_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None, message: str
) -> None:
    def never(*_: Any) -> int:
        if written is None:
            raise OSError(errno.EINVAL, "Invalid argument")
        return written

    monkeypatch.setattr(os, "write", never)
    with pytest.raises(OSError, match=message):
        durable.write(tmp_path / "file", pieces(8192))


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chart.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), durable.replaced(path) as partial:
        partial.write_bytes(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_who_replace_a_file_at_once_leave_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, together = durable.write, Barrier(2, timeout=20)

    def write(path: Path, pieces: Sequence[bytes]) -> None:
        together.wait()  # nobody has begun
        real(path, pieces)
        together.wait()  # nobody has ended

    monkeypatch.setattr(durable, "write", write)
    path, contents = tmp_path / "file", [b"one" * 1000, b"another" * 2000]
    with ThreadPoolExecutor(2) as threads:
        replacing = [
            threads.submit(durable.replace, path, [content], suffix=f"{number}.partial")
            for number, content in enumerate(contents)
        ]
        for each in replacing:
            each.result()
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path, (tmp_path / "file").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with durable.created(tmp_path / "file") as file:
        file.write(b"whole")
    (first, named_before), (second, named_then) = synced
    assert first.name.startswith(".file.") and not named_before
    assert second.samefile(tmp_path) and named_then
