"""What every data set offers to the writer: samples by position, without state."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_KEY_LENGTH = 90  # with ".id.i64" it still fits the 100 bytes of a plain tar header


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored image with its key, perhaps a label."""

    key: str
    """Unique in the data set; letters, digits, "_", "-" and "/" only (see `key_from`)."""
    image: bytes
    """Encoded: the original bytes where there is a file, lossless where there is an array."""
    extension: str
    """"jpg" or "png", by content."""
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
    and pickled to other processes.
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
        """Return the sample at a position, from 0 up to the length."""


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
    return f"{plain}-{digest}"
