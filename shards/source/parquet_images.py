"""Images in a column of Parquet files, which can be read by row group only.

To read an image means to read its row group up to it: a hundred images as `datasets` writes them,
all of the file as pandas does. A shuffled writing asks for images of all row groups in turn. So
those that it is about to ask for are read at once, in the order of the files, as many as fit into
memory: 0.8 ms an image of 50 kB in row groups of 1,000, where each by itself takes 170 ms.
"""

import errno
import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from shards.source.location import File
from shards.source.parquet_rows import open_parquet, opened_parquet
from shards.source.source import NoImage

_AHEAD = 2**27  # bytes of images that a process reads ahead
_PATIENCE = 30.0  # seconds of reading ahead, once the image that is asked for is there
_BATCH = 2**24  # bytes of images that are decoded at once
_OPEN = 4  # files that a process holds open

Embedded = tuple[bytes | None, str | None]
"""An image and its path; either may be absent."""


class ParquetImages:
    """A list of images, the rows of all files."""

    def __init__(self, files: Sequence[File], column: str) -> None:
        """Read where the row groups are.

        Args:
            files: The .parquet files, in the order of their rows.
            column: Of binary values, or of structs with bytes and perhaps path.
        """
        self._paths = [folder.path(name) for folder, name in files]
        self._column = column
        self._first = array("q")  # the first row of each row group of all files, and the end
        self._first_group = array("q")  # of each file
        rows = size = 0
        for path in self._paths:
            self._first_group.append(len(self._first))
            with opened_parquet(path) as parquet:
                metadata = parquet.metadata
            leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            leaf = next(i for i, leaf in enumerate(leaves) if leaf in (column, f"{column}.bytes"))
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                self._first.append(rows)
                rows += group.num_rows
                size += group.column(leaf).total_uncompressed_size
        self._first.append(rows)
        self._mean = max(1, size // max(1, rows))  # bytes of an image
        self._forget()

    def _forget(self) -> None:
        self._expected: list[int] = []
        self._place: dict[int, int] = {}  # of a row, in _expected
        self._ahead: dict[int, Embedded] = {}
        self._opened: tuple[int, dict[int, Any]] = (0, {})  # process, and files by number

    def __getstate__(self) -> dict[str, Any]:
        forgotten = {"_expected": [], "_place": {}, "_ahead": {}, "_opened": (0, {})}
        return {**self.__dict__, **forgotten}

    def __len__(self) -> int:
        return self._first[-1]

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the files or their rows differ; images are not read."""
        return repr((self._paths, self._first, self._column)).encode("utf-8", "surrogateescape")

    def expect(self, rows: Sequence[int]) -> None:
        """Take note which rows will be asked for, in this order."""
        self._expected, self._ahead = list(rows), {}
        self._place = {row: place for place, row in enumerate(self._expected)}

    def read(self, row: int) -> Embedded:
        """Return an image.

        Raises:
            NoImage: Its row group is damaged.
            OSError: The file cannot be read.
        """
        if row not in self._ahead:
            self._read_ahead(row)
        return self._ahead.pop(row)

    def _read_ahead(self, row: int) -> None:
        """Read a row, and those that are expected after it as far as they fit into memory."""
        place = self._place.get(row)
        window = [row]
        if place is not None:
            window = self._expected[place : place + max(1, _AHEAD // self._mean)]
        wanted = sorted({each for each in window if each not in self._ahead})
        own = self._group(row)
        groups = [(group, list(rows)) for group, rows in groupby(wanted, key=self._group)]
        size, begin = 0, time.monotonic()
        for group, rows in sorted(groups, key=lambda each: each[0] != own):
            if row in self._ahead and time.monotonic() - begin > _PATIENCE:
                return  # who asks for one image does not wait for many groups of a slow disk
            try:
                for each, image in self._from_group(group, rows):
                    self._ahead[each] = image
                    size += len(image[0] or b"")
                    if size > 2 * _AHEAD and row in self._ahead:  # larger than the mean
                        return
            except OSError:
                if group == own:
                    raise  # another row's error is raised when that one is asked for

    def _group(self, row: int) -> int:
        return bisect_right(self._first, row) - 1

    def _from_group(self, group: int, rows: list[int]) -> Iterator[tuple[int, Embedded]]:
        """Yield images of a row group, whose rows are sorted."""
        import pyarrow

        number = bisect_right(self._first_group, group) - 1
        at, left = self._first[group], iter(rows)
        row = next(left, None)
        try:
            for batch in self._file(number).iter_batches(
                batch_size=min(1024, max(1, _BATCH // self._mean)),
                row_groups=[group - self._first_group[number]],
                columns=[self._column],
                use_threads=False,
            ):
                while row is not None and row < at + batch.num_rows:
                    yield row, _parts(batch.column(0)[row - at].as_py())
                    row = next(left, None)
                if row is None:
                    return
                at += batch.num_rows
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = " ".join(str(error).split())[:200]
            raise NoImage(errno.EBADMSG, f"cannot be read: {said}", self._paths[number]) from None

    def _file(self, number: int) -> Any:
        process, files = self._opened
        if process != os.getpid():  # a forked process must not share the place in a file
            files = {}
            self._opened = os.getpid(), files
        if number not in files:
            if len(files) == _OPEN:
                files.pop(next(iter(files))).close(force=True)
            files[number] = open_parquet(self._paths[number])
        return files[number]


def _parts(value: Any) -> Embedded:
    if isinstance(value, dict):
        return value["bytes"], value.get("path")
    return value, None
