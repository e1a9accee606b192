"""The plan of a writing, plan.json: an unfinished writing goes on only with an equal plan."""

from dataclasses import dataclass

from shards.layout import Count
from shards.sealed_json import seal, unseal
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
