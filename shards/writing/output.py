"""The folder that a shard set is written into, by one process at a time."""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from shards import durable
from shards.layout import MANIFEST, PLAN, QUARANTINE
from shards.storage import Folder, Location, folder_at, is_remote
from shards.writing.writing_plan import WritingPlan

LOCK = ".lock"
OURS = re.compile(rf"\d{{5,}}\.(tar|idx|jsonl)|{PLAN}|{MANIFEST}|{QUARANTINE}|\..*")
"""Names of the files and folders that a writing makes."""


def refuse_occupied(out: Location) -> None:
    """Refuse an output folder that holds anything. `write` calls it; a command may do so earlier.

    Raises:
        FileExistsError: something is in the way; the message says what to do.
    """
    if not is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise FileExistsError(f"{out} is a file; expected a folder to write. Give another --out.")
    if not is_remote(out) and os.path.ismount(out):
        raise FileExistsError(
            f"{out} is where a disk is mounted, and cannot be made anew. Give a folder in it as "
            f"--out, such as {os.path.join(out, 'set')}."
        )
    folder = folder_at(out)
    if not folder.exists():
        return
    if is_remote(out):
        _, folders, files = next(folder.walk())
        names = sorted((*folders, *files))
    else:
        names = sorted(os.listdir(out))  # hidden ones too: it has to be empty to be replaced
    if MANIFEST in names:
        raise FileExistsError(
            f"{out} already holds a shard set ({MANIFEST}). Give another --out, or remove it."
        )
    if names and not (is_remote(out) and PLAN in names):
        raise FileExistsError(
            f"{out} is not empty: it holds {names[0]}. Give another --out, or remove it."
        )
    if not is_remote(out) and os.path.samefile(out, os.curdir):
        raise FileExistsError(
            f"{out} is the folder that the command runs in, and cannot be made anew. Give a folder "
            f"in it as --out, such as set; or cd .. and give --out {os.path.realpath(out)}."
        )


@contextlib.contextmanager
def output_folder(out: Location, plan: WritingPlan) -> Iterator[tuple[Folder, WritingPlan]]:
    """Give the folder to write into; it becomes OUT if no error is raised inside.

    It comes with the plan that began the writing, which may be an earlier attempt's.
    """
    refuse_occupied(out)
    with contextlib.ExitStack() as stack:
        if is_remote(out):
            folder = folder_at(out)
        else:
            folder = folder_at(stack.enter_context(_aside(Path(os.path.realpath(out)))))
        try:
            yield folder, _agree(folder, plan)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                complete = sum(name.endswith(".jsonl") for name in folder.sizes())
                raise OSError(
                    error.errno,
                    f"no space left for {error.filename or out}; {complete} complete shards stay "
                    f"in {folder}. Free space and repeat the command: it goes on there. To give "
                    "up, remove that folder.",
                ) from None
            raise


def _agree(folder: Folder, plan: WritingPlan) -> WritingPlan:
    """Begin a writing, or refuse if another one was begun there; return the plan that began it."""
    try:
        text = folder.read(PLAN).decode()
    except FileNotFoundError:
        folder.write(PLAN, plan.to_json().encode())
        return plan
    remedy = "Repeat the command that began it, or remove that folder."
    try:
        earlier = WritingPlan.from_json(text)
    except ValueError as error:
        raise ValueError(f"{folder.path(PLAN)} {error}. Remove {folder} and begin again.") from None
    free = ("command", "kept")  # may differ
    for name in (field.name for field in fields(plan) if field.name not in free):
        here, there = getattr(plan, name), getattr(earlier, name)
        if here != there:
            raise ValueError(
                f"{folder} holds an unfinished writing with another {name}: {str(there)[:80]} "
                f"there, {str(here)[:80]} here. {remedy}"
            )
    return earlier


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a folder OUT.partial to write into; it becomes OUT if no error is raised inside.

    The writing process holds a lock in it. The system frees the lock however the process ends.
    """
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    names = sorted(os.listdir(partial))
    for name in names:
        # Tars of somebody else's may have such names: a writing of ours begins with its plan.
        begun = PLAN in names or name.startswith(".")
        if not (begun and OURS.fullmatch(name)):
            raise FileExistsError(
                f"{partial} is needed for writing, but it holds {name}, which no writing left "
                "there. Give another --out, or remove it."
            )
    # A POSIX lock: workers do not inherit it, as they would flock's. They may outlive a killed
    # parent for a moment.
    with open(partial / LOCK, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise FileExistsError(
                f"{partial} is being written by another process. Wait for it, or give another "
                "--out."
            ) from None
        except OSError:
            pass  # a file system without locks: avoiding two writers at once is then up to the user
        try:
            yield partial
        finally:
            for ghost in partial.glob(".[0-9]*"):  # unfinished files of killed workers
                with contextlib.suppress(OSError):
                    ghost.unlink()
        os.unlink(partial / LOCK)
        os.rename(partial, out)  # also over an existing folder, if that is empty
        durable.sync(out.parent)
