"""Files that nobody finds before they are whole and on the disk.

Every system call of a checkpoint is one of this file's, or a mkdir, a rename or a removal in
`training.run.checkpoint`: tests make each of them fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from shards.place import open_regular

# Written at a time: the interpreter is free for the training loop in between.
_CHUNK = 1 << 24


def write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a new file, piece after piece, and wait until it is on the disk.

    Raises:
        OSError: the disk refused, or there is such a file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """Return a file's content; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def replace(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of which, after a crash, either the old or the new content is there.

    Raises:
        OSError: the disk refused; the old content is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    write(partial, pieces)
    os.replace(partial, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
