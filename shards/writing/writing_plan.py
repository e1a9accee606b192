"""The plan of a writing, plan.json: an unfinished writing goes on only with an equal plan."""

import hashlib
import os
from dataclasses import dataclass

from shards.layout import PLAN, Count, ShardSet
from shards.sealed_json import seal, unseal
from shards.shard_table import plain
from shards.source.source import Source
from shards.storage import is_remote
from shards.typed_json import from_values, to_values
from shards.writing.prepare import Preparation


@dataclass(frozen=True, kw_only=True)
class WritingPlan:
    """What a writing was asked for. The manifest is made from it and the tables."""

    format: int
    source: str
    split: str
    samples: Count
    """Of the source."""
    fingerprint: str
    """SHA-256 of the source's location and list of samples."""
    classes: list[str]
    seed: Count
    samples_per_shard: Count
    limit: Count | None
    drop_duplicates: bool
    preparation: Preparation
    partners: bool = False
    indexed: bool = False
    """Whether others wrote the tars, which are linked to."""
    categories: tuple[str, ...] = ()
    skip: Count = 0
    """Number of samples left out at the beginning of the shuffle."""
    command: str
    """The command that began the writing."""
    kept: Count | None = None
    """Number of samples to write, without dropped copies; None until it is known."""

    def to_json(self) -> str:
        """Return the text of plan.json."""
        return seal(to_values(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "WritingPlan":
        """Read the text of plan.json.

        Raises:
            ValueError: what is wrong with it, without the name of the file.
        """
        return from_values(unseal(text), cls)


def digest_of(source: Source) -> str:
    """Return the SHA-256 of where a source is, and of its list of samples."""
    place = source.origin
    if place and not is_remote(place):
        place = os.path.abspath(place)
    return hashlib.sha256(f"{plain(place)}\n".encode() + source.fingerprint()).hexdigest()


def is_of(shard_set: ShardSet, source: Source) -> bool:
    """Whether a shard set was written from a source, and from the samples that it lists now.

    Where the set does not say what it was written from, the numbers of samples are compared.
    """
    try:
        written = WritingPlan.from_json(shard_set.folder.read(PLAN).decode()).fingerprint
    except (FileNotFoundError, ValueError):
        written = ""
    if not written:  # of a set that was repaired, or came without its plan
        return shard_set.manifest.account.found == len(source)
    return written == digest_of(source)
