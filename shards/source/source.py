"""What every data set offers to the writer: samples by position, without state."""

import hashlib
import math
import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.source.location import is_there

_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_KEY_LENGTH = 90  # with ".shape.i64" it still fits the 100 bytes of a plain tar header


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as the data set has it, with its key, perhaps a label."""

    key: str
    """Unique in the data set; letters, digits, "_", "-" and "/" only (see `key_from`)."""
    image: bytes | NDArray[np.uint8]
    """The bytes of a file of any format, sound or not; or pixels [H, W, 3] where there is none."""
    label: int
    """Position in the source's `classes`; -1 if there is none."""
    id: int
    """Stable: the position in the source's own order, whatever is selected or shuffled."""
    metadata: dict[str, Any]
    """What else the source knows; must survive JSON. "file": where it came from, if a file."""
    extension: str = ""
    """Of the file's name, to compare with its content; empty where there is no such name."""
    partner: bytes | NDArray[np.uint8] | None = None
    """A second image that goes with it, in the form of `image`; see `Source.partners`."""
    categories: bytes = b""
    """A byte for each of the source's categories: absent, present or not counted, as in
    `shards.layout`."""
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of a sample in a tar: offset and size there of its "image", and of its "json", if that is an
    object."""


class NoImage(OSError):
    """A sample has no image that may be read, wherever its place is; to wait would not help."""


class Source(ABC):
    """A data set: a length and samples by position.

    The constructor is keyword-only and typed, because the flags of `tools.shard` are made from
    it and its docstring; it looks at names and sizes, so that wrong input is refused before
    anything is written. Access is random and without state, so that a source can be shuffled,
    and pickled to other processes and machines. What it holds for each sample is held in memory by
    every process: keep it to a few bytes (`Names` for names, arrays for labels).
    """

    name: ClassVar[str]
    """Sub-command of `tools.shard`, and `source` in the manifest."""
    split: str
    classes: list[str]
    """Class names by label; empty if nothing is labelled."""
    categories: Sequence[str] = ()
    """What an image may show, of a multi-label source, which has no classes."""
    origin: str = ""
    """Where the data are; an unfinished writing goes on only with the same."""
    notes: Sequence[str] = ()
    """What the user should know about the input (files passed over, …), a sentence each."""
    partners: ClassVar[bool] = False
    """Whether every sample has a partner."""
    absent: int = 0
    """Samples that the data set lists, but that are not there and have no position."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position, from 0 up to the length.

        Raises:
            OSError: The file cannot be read. The writer asks whether the source is reachable, and
                then counts and names the file, and goes on. `NoImage`: it need not ask.
        """

    def url(self, index: int) -> str:  # noqa: ARG002
        """Return where a sample's image is, if samples may be of several servers; else ""."""
        return ""

    def label(self, index: int) -> int:  # noqa: ARG002
        """Return the label of a sample whose image cannot be read; -1 if there is none."""
        return -1

    def expect(self, indices: Sequence[int]) -> None:  # noqa: B027
        """Take note which samples will be asked for next, in this order.

        A source that reads better in another order may read ahead. Others may be asked for, too.
        """

    def reachable(self) -> bool:
        """Whether the place of the data is there. Asked only when a file cannot be read.

        By default, whether there is anything in `origin`, which is then a folder or empty.

        Raises:
            OSError: It does not answer.
        """
        return not self.origin or is_there(self.origin)

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs.

        A writing that was broken off continues only where this is the same. Contents need not be
        in it: it is asked for at every start.
        """
        return b""


class Names:
    """A list of strings of which only the newest are in memory; the rest are in a temporary file.

    Processes that are forked share the file; one that it is pickled to gets a copy.
    """

    _BLOCK = 65536  # names that are kept until they are written

    def __init__(self) -> None:
        self._written = 0  # names in the files
        # Opened when they are needed: there is a list for each of many tars.
        self._text_file: IO[bytes] | None = None
        self._end_file: IO[bytes] | None = None
        self._text, self._ends = bytearray(), array("q")  # the newest
        self._start = 0  # where the newest begin

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(self._start + len(self._text))
        if len(self._ends) == self._BLOCK:
            if self._text_file is None or self._end_file is None:
                self._text_file, self._end_file = _spool(), _spool()
            for file, data in ((self._text_file, self._text), (self._end_file, self._ends)):
                with durable.named(tempfile.gettempdir()):
                    file.write(data)
                    file.flush()
            self._written += len(self._ends)
            self._start += len(self._text)
            self._text, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return self._written + len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._end(index - 1) if index else 0, self._end(index)
        if self._text_file is not None and index < self._written:
            text = os.pread(self._text_file.fileno(), end - start, start)
        else:
            text = bytes(self._text[start - self._start : end - self._start])
        return text.decode("utf-8", "surrogateescape")

    def _end(self, index: int) -> int:
        if self._end_file is None or index >= self._written:
            return self._ends[index - self._written]
        return int.from_bytes(os.pread(self._end_file.fileno(), 8, 8 * index), sys.byteorder)

    def digest(self) -> bytes:
        """Return a hash of all names in their order."""
        hashed = hashlib.blake2b(digest_size=16)
        for file, newest in ((self._text_file, self._text), (self._end_file, self._ends)):
            for block in self._blocks(file):
                hashed.update(block)
            hashed.update(newest)
        return hashed.digest()

    @staticmethod
    def _blocks(file: IO[bytes] | None) -> Iterator[bytes]:
        at = 0
        while file is not None and (block := os.pread(file.fileno(), 2**20, at)):
            yield block
            at += len(block)

    def __getstate__(self) -> dict[str, Any]:
        files = [b"".join(self._blocks(file)) for file in (self._text_file, self._end_file)]
        return {**self.__dict__, "_text_file": files[0], "_end_file": files[1]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        for name in ("_text_file", "_end_file"):
            file = _spool() if self._written else None
            if file is not None:
                file.write(state[name])
                file.flush()
            setattr(self, name, file)


def _spool() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="viewrank-")


def plain(value: Any) -> Any:
    """Return what JSON can hold: numbers and text as they are, None for NaN and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def key_from(name: str, *, longest: int = _KEY_LENGTH) -> str:
    """Turn a file's name, without its extension, into a sample key.

    DALI takes all after the first dot of the base name for the extension, its index separates
    by spaces, and tar lists other characters escaped. So a name that holds anything but letters,
    digits, "_", "-" and "/" has the rest replaced by "-", and a digest keeps it unique. So it is
    with one that has more than the `longest` number of characters.
    """
    if _KEY.fullmatch(name) and len(name) <= longest:
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    plain = re.sub("[^A-Za-z0-9_/-]+", "-", name)[: longest - len(digest) - 1]
    return f"{plain.strip('/')}-{digest}"
