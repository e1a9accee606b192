"""The features of a shard set in parts, each a file of its own: what a killed command goes on from.

    shard set ─▶ parts: whole tars, or pieces of a large one ─▶ OUT.partial/000003.npy

How a set is cut depends on the set alone, and a part on its samples alone. So it does not matter
how many processes make the parts, or how often they are stopped.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards import durable
from shards.health.leave_out import find_bad, leave_out
from shards.layout import Shard, ShardSet
from shards.survey import rows_of

if TYPE_CHECKING:
    from pipeline.tuning import Tuning
    from shards.shard_table import SampleRow
    from training.trained import Trained

LEFT_OUT = ".left_out.json"  # ends the name of a list of what cannot be read in a part
Told = Callable[[int], object]
"""Is told how many images have been embedded since it was told before."""


@dataclass(frozen=True)
class Part:
    """Samples that follow each other in a shard set."""

    number: int
    shards: tuple[Shard, ...]
    first: int
    """Of the first shard's samples, which one the part begins with."""
    samples: int

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"{self.number:06d}"


def cut(shard_set: ShardSet, largest: int) -> list[Part]:
    """Return the parts of a shard set, in its order, of `largest` samples at most."""
    found: list[Part] = []
    together: list[Shard] = []

    def add(shards: list[Shard], first: int, samples: int) -> None:
        if samples:
            found.append(Part(len(found), tuple(shards), first, samples))

    for shard in shard_set.manifest.shards:
        if sum(each.samples for each in together) + shard.samples > largest:
            add(together, 0, sum(each.samples for each in together))
            together = []
        if shard.samples <= largest:
            together.append(shard)
            continue
        for first in range(0, shard.samples, largest):
            add([shard], first, min(largest, shard.samples - first))
    add(together, 0, sum(each.samples for each in together))
    return found


def missing(parts: list[Part], folder: Path) -> list[Part]:
    """Return the parts that have no file yet."""
    there = {path.name for path in folder.glob("*.npy")}
    return [part for part in parts if f"{part.name}.npy" not in there]


@dataclass(frozen=True)
class Maker:
    """Makes the parts' files.

    Args:
        trained: the encoder.
        shard_set: of the images.
        folder: of the parts.
        dtype: of the features.
        batch_size: images that go through the encoder at once.
        tuning: how the pipeline runs on this machine.
        told: how far it is.
    """

    trained: Trained
    shard_set: ShardSet
    folder: Path
    dtype: np.dtype[np.floating]
    batch_size: int
    tuning: Tuning
    told: Told

    def make(self, part: Part) -> None:
        """Write a part's file, whole, and before it the list of what cannot be read.

        Raises:
            ValueError: a feature is not finite, or the set changed while it was read.
        """
        from pipeline.unreadable import Unreadable

        rows = [row for shard in part.shards for row in rows_of(self.shard_set, shard)]
        rows = rows[part.first : part.first + part.samples]
        manifest = self.shard_set.manifest
        samples = sum(shard.samples for shard in part.shards)
        whole = replace(manifest, shards=list(part.shards), samples=samples)
        shard_set = replace(self.shard_set, manifest=whole)
        aside = self.folder / f"index-{part.name}"
        try:
            if samples > part.samples:  # a piece: its shard without all others
                kept = {row.key for row in rows}
                (shard,) = part.shards
                others = {r.key: "" for r in rows_of(shard_set, shard) if r.key not in kept}
                shard_set = leave_out(shard_set, {shard.name: others}, aside / "piece")
            try:
                features = self._embed(shard_set)
            except Unreadable:
                bad, features = dict[str, dict[str, str]](), None
                while features is None:  # a shard that has changed is searched before all others
                    new = find_bad(shard_set, known=bad)
                    if not new:
                        raise
                    for name, found in new.items():
                        bad.setdefault(name, {}).update(found)
                    keys = {key for found in bad.values() for key in found}
                    rows = [row for row in rows if row.key not in keys]
                    if not rows:  # such as those of a tar that was overwritten
                        F = self.trained.encoder.feature_size
                        features = np.empty((0, F), np.float32), np.empty(0, np.int64)
                        break
                    with suppress(Unreadable):
                        sound = aside / f"sound-{len(keys)}"
                        features = self._embed(leave_out(shard_set, bad, sound))
                self._note(part, bad)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._write(part, rows, *features)

    def _embed(self, shard_set: ShardSet) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the features h [N, F] and ids [N] of a shard set."""
        from evaluation.features import ImageBatch, embed
        from pipeline.images import Images

        def counted() -> Iterator[ImageBatch]:
            for batch in images:
                yield batch
                self.told(len(batch.id_B))

        images = Images(
            shard_set,
            size=self.trained.size,
            batch_size=self.batch_size,
            device=self.trained.device,
            tuning=self.tuning,
            normalisation=self.trained.normalisation,
        )
        found = embed(self.trained.encoder, counted(), autocast=self.trained.autocast)
        return found.h_NF.cpu().numpy(), found.id_N.cpu().numpy()

    def _note(self, part: Part, bad: dict[str, dict[str, str]]) -> None:
        lines = [
            f"{shard}.tar, sample {key} {why}"
            for shard, found in bad.items()
            for key, why in found.items()
        ]
        path = self.folder / f"{part.name}{LEFT_OUT}"
        durable.replace_json(path, lines)

    def _write(
        self,
        part: Part,
        rows: list[SampleRow],
        h_NF: NDArray[np.float32],
        id_N: NDArray[np.int64],
    ) -> None:
        if [row.id for row in rows] != id_N.tolist():
            raise ValueError(f"{self.shard_set.root} changed while it was read; begin again.")
        stored_NF = h_NF.astype(self.dtype)
        if broken := int((~np.isfinite(stored_NF).all(axis=1)).sum()):
            raise ValueError(
                f"{broken} of {len(rows)} images have features that are not finite: the encoder's "
                "training has diverged, or they overflow float16 (leave --float16 out, or set "
                "--mixed_precision no)."
            )
        keys = [row.key.encode() for row in rows]
        longest = max(map(len, keys), default=1)
        table = np.empty(
            len(rows),
            dtype=[
                ("key", f"S{longest}"),
                ("id", np.int64),
                ("label", np.int64),
                ("feature", self.dtype, (h_NF.shape[1],)),
            ],
        )
        table["key"], table["id"] = keys, id_N
        table["label"], table["feature"] = [row.label for row in rows], stored_NF
        file = io.BytesIO()
        np.save(file, table)
        durable.replace(self.folder / f"{part.name}.npy", [file.getbuffer()])


def left_out(parts: list[Part], folder: Path) -> list[str]:
    """Return what could not be read, of all parts, each in a line."""
    lists = (folder / f"{part.name}{LEFT_OUT}" for part in parts)
    return [line for path in lists if path.exists() for line in json.loads(durable.read(path))]
