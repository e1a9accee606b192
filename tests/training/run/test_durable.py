"""A file is what was written, whatever the file system thinks of writes past its cache."""

import errno
import fcntl
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.run import durable

BLOCK = 8192
SIZES = [0, 1, 4095, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 513]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_BLOCK", BLOCK)


def pieces(size: int) -> list[bytes]:
    """Cut `size` random bytes at random places."""
    random = np.random.default_rng(size)
    content = random.bytes(size)
    cuts = sorted({0, size, *random.integers(0, size + 1, 7).tolist()})
    return [content[a:b] for a, b in pairwise(cuts)]


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_a_file_that_has_that_content_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.replace(path, [b"as ", b"before"])
    before = path.stat()
    durable.replace(path, [b"as be", b"fore"])
    assert path.stat() == before
    durable.replace(path, [b"as ", b"beforE"])
    assert path.read_bytes() == b"as beforE" and path.stat().st_ino != before.st_ino


@pytest.mark.parametrize("size", SIZES)
def test_the_file_is_its_pieces(tmp_path: Path, size: int) -> None:
    durable.write(tmp_path / "file", pieces(size))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(size))


def test_whole_blocks_go_past_the_cache_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = os.write, []

    def write(descriptor: int, block: Any) -> int:
        found.append((len(block), is_direct(descriptor)))
        return real(descriptor, block)

    with (tmp_path / "try").open("w") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
        except OSError:
            pytest.skip("this file system has no O_DIRECT")
    monkeypatch.setattr(os, "write", write)
    durable.write(tmp_path / "file", pieces(2 * BLOCK + 5))
    assert found == [(BLOCK, True), (BLOCK, True), (5, False)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [None, 1000])
def test_a_file_system_that_takes_no_such_write_gets_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, most: int | None
) -> None:
    real = os.write

    def write(descriptor: int, block: Any) -> int:
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, block[:most])  # and perhaps less than it was given

    monkeypatch.setattr(os, "write", write)
    durable.write(tmp_path / "file", pieces(size))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(size))


def test_nor_does_one_that_has_no_such_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, *flags: int) -> int:
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    durable.write(tmp_path / "file", pieces(3 * BLOCK + 1))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces(3 * BLOCK + 1))


def test_a_write_that_is_invalid_either_way_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "write", never)
    with pytest.raises(OSError, match="Invalid argument"):
        durable.write(tmp_path / "file", pieces(3 * BLOCK))
