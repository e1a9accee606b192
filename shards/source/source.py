"""What every data set offers to the writer: samples by position, without state."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

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
    notes: Sequence[str] = ()
    """What the user should know about the input (files passed over, …), a sentence each."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position, from 0 up to the length.

        Raises:
            OSError: The file cannot be read. The writer counts and names it, and goes on.
        """

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs.

        A writing that was broken off continues only where this is the same. Contents need not be
        in it: it is asked for at every start.
        """
        return b""


class Names:
    """A list of strings in few bytes: one buffer and an offset each, about 8 + length a name."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends: list[NDArray[np.int64]] = []
        self._open: list[int] = []  # the newest ends, not yet an array

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._text += name.encode("utf-8", "surrogateescape")
        self._open.append(len(self._text))
        if len(self._open) == 65536:
            self._ends, self._open = [*self._ends, np.array(self._open)], []

    def __len__(self) -> int:
        return len(self._ends) * 65536 + len(self._open)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._end(index - 1) if index else 0
        return self._text[start : self._end(index)].decode("utf-8", "surrogateescape")

    def _end(self, index: int) -> int:
        block, position = divmod(index, 65536)
        return int(self._ends[block][position] if block < len(self._ends) else self._open[position])

    def digest(self) -> bytes:
        """Return a hash of all names in their order."""
        ends = np.concatenate([*self._ends, np.array(self._open, dtype=np.int64)])
        return hashlib.blake2b(bytes(self._text) + ends.tobytes(), digest_size=16).digest()


def key_from(name: str) -> str:
    """Turn a file's name, without its extension, into a sample key.

    DALI takes all after the first dot of the base name for the extension, its index separates
    by spaces, and tar lists other characters escaped. So a name that holds anything but letters,
    digits, "_", "-" and "/" has the rest replaced by "-", and a digest keeps it unique.
    """
    if _KEY.fullmatch(name) and len(name) <= _KEY_LENGTH:
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    plain = re.sub("[^A-Za-z0-9_/-]+", "-", name)[: _KEY_LENGTH - len(digest) - 1]
    return f"{plain.strip('/')}-{digest}"
