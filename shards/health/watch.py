"""Check a shard set while a run trains on it."""

import threading
import time
from collections.abc import Sequence
from typing import IO

from shards.health.verification import difference
from shards.layout import File, Shard, ShardSet
from shards.outage import Unreachable
from shards.storage import Folder
from shards.tar import hash_file

_GENTLE = 200e6  # bytes a second: a tenth of a core, and of most disks' speed
_AGAIN = 30.0  # seconds until a place that does not answer is asked again


class Watch:
    """Checks a shard set's hashes once, slowly, in a thread beside training.

    Damage after writing is rare and does not show in the loss. Opening a set cannot look for it,
    because that takes as long as reading the whole set. A thread that reads 200 MB/s can.

    Args:
        shard_set: the set that the run trains on.
        shards: those of them that this process checks; none is to check nothing.
    """

    def __init__(self, shard_set: ShardSet, shards: Sequence[Shard]) -> None:
        self._set, self._shards = shard_set, shards
        self._problems: list[str] = []
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="viewrank-watch", daemon=True)
        self.checked = 0
        """Shards that have been checked."""

    @property
    def total(self) -> int:
        """Shards that this process checks."""
        return len(self._shards)

    @property
    def found(self) -> int:
        """Files found damaged so far."""
        return len(self._problems)

    def news(self) -> list[str]:
        """Return the problems found since the last call, a sentence each."""
        new = self._problems[self._told :]
        self._told += len(new)
        return new

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        for shard in self._shards:
            for folder, name, written in (
                (self._set.folder, f"{shard.name}.idx", shard.index),
                (self._set.tar_folder, f"{shard.name}.tar", shard.tar),
            ):
                try:
                    found = self._hash(folder, name)
                except Exception as error:
                    self._problems.append(f"{folder.path(name)} cannot be read: {error}")
                    continue
                if self._stop.is_set():
                    return
                if found != written:
                    self._problems.append(f"{folder.path(name)} {difference(found, written)}")
            self.checked += 1

    def _hash(self, folder: Folder, name: str) -> File:
        while True:
            try:
                with folder.open(name) as file:
                    return hash_file(_Gentle(file, self._stop))  # pyright: ignore[reportArgumentType]
            except Unreachable:  # says nothing of the file; training waits or ends
                if self._stop.wait(_AGAIN):
                    raise


class _Gentle:
    """A file that is read at `_GENTLE` bytes a second at most, and ends early when told to."""

    def __init__(self, file: IO[bytes], stop: threading.Event) -> None:
        self._file, self._stop = file, stop

    def read(self, size: int) -> bytes:
        begin = time.monotonic()
        block = self._file.read(size)
        rest = len(block) / _GENTLE - (time.monotonic() - begin)
        if self._stop.wait(max(rest, 0)):
            return b""
        return block
