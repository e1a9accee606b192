"""The folder that a shard set is written into: one writer at a time, complete or not there."""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from shards.layout import MANIFEST, PLAN, QUARANTINE
from shards.storage import Folder, Location, folder_at, is_remote
from shards.writing.writing_plan import WritingPlan

LOCK = ".lock"
OURS = re.compile(rf"\d{{5,}}\.(tar|idx|jsonl)|{PLAN}|{MANIFEST}|{QUARANTINE}|\..*")
"""Names that a writing leaves in its folder."""


def refuse_occupied(out: Location) -> None:
    """Refuse an output folder that holds anything; `write` does, a command may do so earlier.

    Raises:
        FileExistsError: What is in the way, and what to do.
    """
    if not is_remote(out) and Path(out).exists() and not Path(out).is_dir():
        raise FileExistsError(f"{out} is a file; expected a folder to write. Give another --out.")
    folder = folder_at(out)
    if not folder.exists():
        return
    _, folders, files = next(folder.walk())
    names = sorted((*folders, *files))
    if MANIFEST in names:
        raise FileExistsError(
            f"{out} already holds a shard set ({MANIFEST}). Give another --out, or remove it."
        )
    if names and not (is_remote(out) and PLAN in names):
        raise FileExistsError(
            f"{out} is not empty: it holds {names[0]}. Give another --out, or remove it."
        )


@contextlib.contextmanager
def begun(out: Location, plan: WritingPlan) -> Iterator[tuple[Folder, WritingPlan]]:
    """Give the folder to write into, which becomes OUT unless something goes wrong.

    With it comes the plan that began the writing: this one, or that of an earlier attempt.
    """
    refuse_occupied(out)
    with contextlib.ExitStack() as stack:
        if is_remote(out):
            folder = folder_at(out)
        else:
            folder = folder_at(stack.enter_context(_aside(Path(os.path.abspath(out)))))
        try:
            yield folder, _agree(folder, plan)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                complete = sum(name.endswith(".jsonl") for name in folder.sizes())
                raise OSError(
                    error.errno,
                    f"no space left for {out}; {complete} complete shards stay in {folder}. Free "
                    "space and repeat the command: it goes on there. To give up, remove that "
                    "folder.",
                ) from None
            raise


def _agree(folder: Folder, plan: WritingPlan) -> WritingPlan:
    """Begin a writing, or make sure that the one begun there is the same, and return its plan."""
    try:
        text = folder.read(PLAN).decode()
    except FileNotFoundError:
        folder.write(PLAN, plan.to_json().encode())
        return plan
    remedy = "Repeat the command that began it, or remove that folder."
    try:
        begun = WritingPlan.from_json(text)
    except ValueError as error:
        raise ValueError(f"{folder.path(PLAN)} {error}. Remove {folder} and begin again.") from None
    for name in (
        field.name for field in fields(WritingPlan) if field.name not in ("command", "kept")
    ):
        here, there = getattr(plan, name), getattr(begun, name)
        if here != there:
            raise ValueError(
                f"{folder} holds an unfinished writing with another {name}: {str(there)[:80]} "
                f"there, {str(here)[:80]} here. {remedy}"
            )
    return begun


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a folder OUT.partial to write into, which becomes OUT unless something goes wrong.

    A living writer holds a lock in it, which the system frees with the process, however that ends.
    """
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(partial)):
        if not OURS.fullmatch(name):
            raise FileExistsError(
                f"{partial} is needed for writing, but it holds {name}, which is no shard. "
                "Give another --out, or remove it."
            )
    # A POSIX lock: unlike flock's it is not inherited by workers, which may outlive a killed
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
            pass  # a file system without locks: two writers at once are then the user's own affair
        try:
            yield partial
        finally:
            for ghost in partial.glob(".[0-9]*"):  # files that killed workers had begun
                with contextlib.suppress(OSError):
                    ghost.unlink()
        os.unlink(partial / LOCK)
        os.rename(partial, out)  # also over an existing folder, if that is empty
