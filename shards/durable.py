"""Files that appear only when they are whole and on the disk.

Every system call of a checkpoint is one of this file's, or a mkdir, a rename or a removal in
`training.run.checkpoint`: tests make each of them fail.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; refuse a device, a pipe and a link to one, which have no end.

    Files of /proc and /sys, to which links may lead, are refused too: they tell of this machine.

    Raises:
        OSError: the file does not exist or is not a regular one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else a pipe without a writer waits
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_dev in _kernel_devices():
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return open(descriptor, "rb")


@cache
def _kernel_devices() -> frozenset[int]:
    """Return the numbers of the file systems that the kernel makes up."""
    found = {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.isdir(path)}
    return frozenset(found - {os.stat("/").st_dev})  # mere folders, where nothing is mounted


def write(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a new file, piece after piece, and wait until it is on the disk.

    Raises:
        OSError: the disk refused, or the file exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest.nbytes:
                written = os.write(descriptor, rest)
                if not written:
                    raise OSError(errno.EIO, "the disk takes nothing more")
                rest = rest[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """Return a file's content; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_writable(**files: Path | None) -> None:
    """Refuse files that cannot be written, before the work whose result they are to hold.

    Args:
        files: path by flag.

    Raises:
        ValueError: a file is a folder, or lies in none.
        OSError: its folder takes no files.
    """
    for name, path in files.items():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder; --{name} FILE is written into one.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; --{name} names a file.")
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.touch()
        partial.unlink()


def replace(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a file that after a crash has either the old content or the new one.

    A file that has the content already is not written again, so that a full disk matters less.

    Raises:
        OSError: the disk refused; the old content is untouched.
    """
    if _holds(path, pieces):
        return
    with replaced(path) as partial:
        write(partial, pieces)
    sync(path.parent)


@contextmanager
def replaced(path: Path, *, suffix: str = "partial") -> Iterator[Path]:
    """Give the path of a new file, which replaces `path` if no error is raised inside.

    This alone does not wait for the disk.

    Args:
        path: the file; it has its old content until then.
        suffix: of the new file's name; processes that may write at once need different ones.
    """
    partial = path.with_name(f".{path.name}.{suffix}")
    try:
        partial.unlink(missing_ok=True)
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


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
