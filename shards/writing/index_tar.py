"""The job of indexing: make the index and the table of a tar that others wrote, in one pass."""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from shards.engine import Report
from shards.layout import File
from shards.named_numbers import numbered
from shards.shard_table import Seen
from shards.source.source import Sample
from shards.storage import Folder, LocalFolder
from shards.writing.missing import Outcome
from shards.writing.prepare import Stored, Unusable
from shards.writing.tasks import ShardJob, ShardTask

FOREIGN = "not to be trained as it is"
"""The reason to leave out an image that `tools.shard` would store anew."""
_BLOCK = 2**20


@dataclass(frozen=True)
class IndexTar(ShardJob):
    """Checks the images of a tar, and writes its index and table beside a link to it."""

    tars: Mapping[str, tuple[Folder, str]]
    """{shard: folder and name of its tar}."""
    targets: Mapping[str, str]
    """{shard: what the link to its tar holds}."""

    def __call__(self, task: ShardTask, report: Report) -> Outcome:
        """Index a tar."""
        assert isinstance(self.folder, LocalFolder)
        folder, name = self.tars[task.name]
        seen, lines = Seen(), []
        with folder.open(name) as file:
            read = _ReadSoFar(file)

            def add(sample: Sample, stored: Stored) -> tuple[int, int, int]:
                if stored.data is not sample.image:
                    kind = ", ".join(stored.remarks).removeprefix("stored anew from ")
                    raise Unusable(FOREIGN, f"{kind}: tools.shard webdataset stores it anew")
                offset, size = sample.places["image"]
                read.up_to(offset + size)  # now: its bytes are in memory
                name = f"{sample.key}.{stored.extension}"
                entry = f"{stored.extension} {offset} {size} "
                entry += numbered(name, sample.id, sample.label)
                if "json" in sample.places:
                    at, length = sample.places["json"]
                    entry += f" json {at} {length} {sample.key}.json"
                lines.append(entry)
                return offset, size, zlib.crc32(stored.data)

            rows = self.rows(task, seen, report, lambda: read.length, add)
            read.up_to(None)
        self.folder.link(f"{task.name}.tar", self.targets[task.name])
        outcome = self.complete(task, read.file, lines, rows, seen)
        report(len(task.positions), read.length)
        return outcome


class _ReadSoFar:
    """Size and hash of a file up to where it was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self.length = file, hashlib.sha256(), 0

    def up_to(self, end: int | None) -> None:
        """Read on to a position at least; to the end without one."""
        while end is None or self.length < end:
            block = self._file.read(_BLOCK)
            if not block:
                return
            self._sha256.update(block)
            self.length += len(block)

    @property
    def file(self) -> File:
        """Return what was read as a file."""
        return File(self.length, self._sha256.hexdigest())
