"""Files that nobody finds before they are whole and on the disk.

Every system call of a checkpoint is one of this file's, or a mkdir, a rename or a removal in
`training.run.checkpoint`: tests make each of them fail.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.place import open_regular

# Written at a time: the interpreter is free for the training loop in between.
_BLOCK = 1 << 22


def write(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a new file, piece after piece, and wait until it is on the disk.

    All but its end goes past the system's cache, where it can (`O_DIRECT`): a tenth of the
    processor's time, and the data set stays in the cache.

    Raises:
        OSError: the disk refused, or there is such a file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # Of whole pages, as the way past the cache demands; of a small file no larger than it is.
        size = min(_BLOCK, 1 + sum(len(piece) for piece in pieces))
        block, filled = np.frombuffer(mmap.mmap(-1, size), np.uint8), 0
        for piece in pieces:
            rest = np.frombuffer(piece, np.uint8)
            while rest.size:
                taken = min(rest.size, block.size - filled)
                block[filled : filled + taken] = rest[:taken]  # without holding the interpreter
                filled, rest = filled + taken, rest[taken:]
                if filled == block.size:
                    _past_cache(descriptor, True)
                    _write(descriptor, block)
                    filled = 0
        _past_cache(descriptor, False)
        _write(descriptor, block[:filled])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, block: NDArray[np.uint8]) -> None:
    while block.size:
        try:
            written = os.write(descriptor, block.data)
        except OSError as error:
            # Some file systems take the flag and then no write of such a size or place.
            if error.errno != errno.EINVAL or not _past_cache(descriptor, False):
                raise
            continue
        if not written:
            raise OSError(errno.EIO, "the disk takes nothing more")
        block = block[written:]


def _past_cache(descriptor: int, wanted: bool) -> bool:
    """Turn a file's writes past the cache on or off, if it can be; return whether it changed."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if bool(flags & direct) == wanted:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags ^ direct)
    except OSError:
        return False
    return True


def read(path: Path) -> bytes:
    """Return a file's content; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def replace(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a file of which, after a crash, either the old or the new content is there.

    One that has that content already is left alone, so that a full disk matters less.

    Raises:
        OSError: the disk refused; the old content is untouched.
    """
    if _holds(path, pieces):
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    write(partial, pieces)
    os.replace(partial, path)
    sync(path.parent)


def _holds(path: Path, pieces: Sequence[bytes | memoryview]) -> bool:
    try:
        if path.stat().st_size != sum(len(piece) for piece in pieces):
            return False
        return read(path) == b"".join(pieces)
    except (OSError, ValueError):
        return False


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
