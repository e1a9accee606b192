"""Where the content of a tar's links is, and of members that a later one of their name replaces.

As when tar unpacks them: a hard link has the content that its name had before the link, a symbolic
one what its name has in the end, and of a name that occurs several times the last one counts.
"""

from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from shards.source.tar_members import Damaged, Entry, entries, plain_name

_LONGEST = 40  # links one after the other, as Linux follows them
Place = tuple[int, int]  # offset and size


@dataclass
class Contents:
    """What a tar's headers do not say one by one; members by the offset of their header."""

    elsewhere: dict[int, Place] = field(default_factory=dict)
    """Members whose content is not behind their header."""
    replaced: set[int] = field(default_factory=set)
    """Members that are passed over, because the first one of their name has their content."""
    nowhere: set[int] = field(default_factory=set)
    """Links that lead to no file of the tar, and files that such a link replaces."""

    def place_of(self, entry: Entry, start: int = 0) -> Place | None:
        """Return where the content of a member is, None if it has none or is passed over.

        Args:
            entry: the member.
            start: byte of the tar that its offsets are counted from.
        """
        header = start + entry.header
        if header in self.elsewhere:
            return self.elsewhere[header]
        if entry.kind != "file" or header in self.replaced or header in self.nowhere:
            return None
        return start + entry.offset, entry.size

    def leads_nowhere(self, entry: Entry) -> bool:
        """Whether it is a link to no file of the tar, or another entry without content."""
        return entry.kind == "other" or entry.header in self.nowhere


class Members:
    """The members that were seen: 8 bytes each, and all of a link."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._links: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Take note of a member."""
        if entry.kind in ("file", "link"):
            self._hashes.append(hash(plain_name(entry.name)))
        if entry.kind == "link":
            self._links.append(entry)

    def contents(self, file: IO[bytes], size: int) -> Contents:
        """Return where contents are; reads the headers again if there are links or repetitions."""
        hashes, counts = np.unique(np.array(self._hashes), return_counts=True)
        repeated = set(hashes[counts > 1].tolist())
        if not (self._links or repeated):
            return Contents()
        wanted = {hash(link.target) for link in self._links} | repeated
        wanted |= {hash(plain_name(link.name)) for link in self._links}
        named: dict[str, list[Entry]] = {}
        with suppress(Damaged):
            for entry in entries(file, size):
                name = plain_name(entry.name)
                if entry.kind in ("file", "link") and hash(name) in wanted:
                    named.setdefault(name, []).append(entry)
        return _settle(named)


def _settle(named: dict[str, list[Entry]]) -> Contents:
    contents = Contents()
    for name, members in named.items():
        first, *others = members
        contents.replaced.update(member.header for member in others)
        if others or first.kind == "link":
            place = _place(named, name, None)
            if place is None:
                contents.nowhere.add(first.header)
            else:
                contents.elsewhere[first.header] = place
    return contents


def _place(named: dict[str, list[Entry]], name: str, before: int | None) -> Place | None:
    """Return where the content of a name is, once the tar was unpacked up to a header."""
    for _ in range(_LONGEST):
        there = [e for e in named.get(name, []) if before is None or e.header < before]
        if not there:
            return None
        if there[-1].kind == "file":
            return there[-1].offset, there[-1].size
        name = there[-1].target
        before = there[-1].header if there[-1].hard else before
    return None
