"""Files that appear only when they are whole and on the disk.

Every system call of a checkpoint is one of this file's, or a mkdir, a rename or a removal in
`training.run.checkpoint`: tests make each of them fail.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_UNFINISHED = re.compile(r"\..+\.\d+-[0-9a-f]{8}")  # names that `created` gives


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
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Where a full disk does not say which file it had no room for, say that it was this one."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(path)
        raise


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


def replace(path: Path, pieces: Sequence[bytes | memoryview], *, suffix: str = "partial") -> None:
    """Write a file that after a crash has either the old content or the new one.

    A file that has the content already is not written again, so that a full disk matters less.

    Args:
        path: the file.
        pieces: its content.
        suffix: see `replaced`.

    Raises:
        OSError: the disk refused; the old content is untouched.
    """
    if _holds(path, pieces):
        return
    with replaced(path, suffix=suffix) as partial:
        write(partial, pieces)
    sync(path.parent)


def replace_json(path: Path, value: Any, *, suffix: str = "partial") -> None:
    """Write a value as JSON for people to read, as `replace` does.

    In ASCII: a file's name need not be text, and what is not could not be written otherwise.
    """
    replace(path, [json.dumps(value, indent=1).encode(), b"\n"], suffix=suffix)


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
        with named(path):
            yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def created(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which replaces `path` durably if no error is raised inside.

    Other processes may write the same one at once, even on another machine: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, file = _open_locked(path)
    try:
        with file:
            with named(path):
                yield file
                file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)  # while it is locked
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _open_locked(path: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside `path` that is locked as long as this process lives."""
    while True:
        partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        file = partial.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # `clean` was faster, and removes it
            file.close()
            continue
        except OSError:  # no locks here: `clean` gets none either, and leaves it alone
            return partial, file
        if os.fstat(file.fileno()).st_nlink:
            return partial, file
        file.close()


def clean(folder: Path) -> None:
    """Remove, in a folder and below, what killed processes have begun to write with `created`.

    Whether a process lives is not asked by its number, which another one may have by now, and which
    says nothing of another machine: what it writes is locked as long as it lives.
    """
    for above, _, names in os.walk(folder):
        for name in names:
            if _UNFINISHED.fullmatch(name):
                with suppress(OSError):
                    _remove_unlocked(Path(above, name))


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)  # NFS wants it writable
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def shared(lock: Path, *, clean: Callable[[], object]) -> Iterator[None]:
    """Be inside, together with others. Whoever enters and finds nobody inside cleans up first.

    However a process ends, on whatever machine, it is not inside any more. Where a file system has
    no locks nothing is cleaned up.

    Args:
        lock: a file for this alone; the last to leave removes it.
        clean: removes what those have left who were killed inside.
    """
    descriptor = _enter(lock, clean)
    try:
        yield
    finally:
        if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def alone(lock: Path, taken: str) -> Iterator[None]:
    """Be inside alone. However a process ends, on whatever machine, it is not inside any more.

    Where a file system has no locks, nothing keeps others out.

    Args:
        lock: a file for this alone; it is removed when this process leaves.
        taken: what to say if another process is inside.

    Raises:
        ValueError: another process is inside.
    """
    while True:
        # Opened for writing: NFS locks no other files across hosts.
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(taken) from None
        except OSError:  # there are no locks
            break
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # whoever left meanwhile has removed it
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _enter(lock: Path, clean: Callable[[], object]) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and os.fstat(descriptor).st_nlink:
            clean()
        _locked(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # whoever left meanwhile has removed it


def _locked(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except OSError:  # somebody is inside, or there are no locks
        return False
    return True


def _holds(path: Path, pieces: Sequence[bytes | memoryview]) -> bool:
    try:
        if path.stat().st_size != sum(len(piece) for piece in pieces):
            return False
        return read(path) == b"".join(pieces)
    except (OSError, ValueError):
        return False


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can say so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
