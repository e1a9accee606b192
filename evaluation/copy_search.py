"""Which query is a copy of which reference, by the names of a benchmark's images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation import challenge_files
from evaluation.features import Features
from shards.layout import ShardSet
from shards.survey import rows_of


@dataclass(frozen=True)
class NamedImages:
    """The images of a set by their names, sorted; a submission has them in this order."""

    names: list[str]
    row: dict[int, int]
    """Place of a sample among them, by its id."""
    contents: list[str]
    """Hashes of the images."""

    @classmethod
    def of(cls, shard_set: ShardSet) -> NamedImages:
        """Read the tables of a set."""
        found = [
            (row.key.rpartition("/")[2], row.id, row.content)
            for shard in shard_set.manifest.shards
            for row in rows_of(shard_set, shard)
        ]
        found.sort()
        names = [name for name, _, _ in found]
        row = {id: place for place, (_, id, _) in enumerate(found)}
        if len({*names}) < len(names) or len(row) < len(names):
            twice = next((n for n, count in Counter(names).items() if count > 1), "an id")
            raise ValueError(
                f"{shard_set.root}: {twice} occurs more than once, so names do not tell its images "
                "apart. Shard one folder of images named as in the challenge: python -m "
                "tools.shard folder"
            )
        return cls(names, row, [content for _, _, content in found])

    def ordered(self, features: Features) -> Tensor:
        """Return descriptors in the order of the names."""
        place_N = torch.tensor([self.row[id] for id in features.id_N.tolist()])
        place_N = place_N.to(features.h_NF.device)
        return torch.empty_like(features.h_NF).index_copy_(0, place_N, features.h_NF)


@dataclass(frozen=True)
class CopySearch:
    """What is searched for, in what."""

    queries: NamedImages
    references: NamedImages
    original_Q: Tensor
    """Row of each query's original among the references; -1 for a distractor."""
    remarks: list[str]

    @classmethod
    def of(
        cls, queries: ShardSet, references: ShardSet, training: ShardSet, ground_truth: Path
    ) -> CopySearch:
        """Read the ground truth, and refuse one that does not fit the sets.

        Raises:
            ValueError: it names images that are not there, or an image has no name of its own.
        """
        truth = challenge_files.read_ground_truth(ground_truth)
        asked, searched = NamedImages.of(queries), NamedImages.of(references)
        place = {name: row for row, name in enumerate(searched.names)}
        for what, names, known, shard_set in (
            ("queries", truth, {*asked.names}, queries),
            ("references", filter(None, truth.values()), place, references),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"{ground_truth} names {len(unknown):,} {what} that {shard_set.root} does not "
                    f"have ({unknown[0]} first). Give the set that it belongs to, whose images "
                    "are named as in it."
                )
        originals = [truth.get(name, "") for name in asked.names]
        original_Q = torch.tensor([place.get(name, -1) for name in originals])
        remarks = []
        if unnamed := len(asked.names) - len(truth):
            remarks.append(
                f"{unnamed:,} of the {len(asked.names):,} queries are not in {ground_truth}: they "
                "count as copies of nothing, as in the challenge's script"
            )
        seen = {*NamedImages.of(training).contents}
        if shared := sum(content in seen for content in searched.contents):
            remarks.append(
                f"{shared:,} of the {len(searched.names):,} images of {references.root} are in "
                f"{training.root} too: normalisation takes their own scores off"
            )
        return cls(asked, searched, original_Q, remarks)
