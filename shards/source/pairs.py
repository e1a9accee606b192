"""A shard set once more, each sample with another of its images as partner: a pair set.

No source of `tools.shard`: who the partners are has to be found out first (`tools.mine_pairs`).
"""

import hashlib
import io
import json
import os
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.layout import CATEGORIES, ShardSet
from shards.shard_index import lines_of
from shards.source.source import Names, Sample, Source, key_from
from shards.source.tar_members import entries
from shards.storage import is_remote
from shards.survey import rows_of
from shards.tar import components, key_of

_KEY_LENGTH = 82  # with ".partner.shape.i64" it still fits the 100 bytes of a plain tar header
_END = bytes(1024)


class Pairs(Source):
    """Samples of a shard set in the order of its tars, with their ids, labels and metadata.

    Images are the stored bytes, which their CRC vouches for; categories stay. The metadata gain
    "partner": its id, its key, and the score that it was chosen for. A sample may be its own
    partner. 44 bytes a sample are held.

    With `added`, every sample is its own partner, and the pairs are further samples behind them,
    with ids of their own above all others: the training set of the paper, {(i, i)} ∪ pairs, whose
    own views are not fewer than without pairs.
    """

    name = "pairs"
    partners = True

    def __init__(
        self,
        *,
        shard_set: ShardSet,
        partners: NDArray[np.integer],
        scores: NDArray[np.floating],
        added: bool = False,
    ) -> None:
        """Read where the samples are.

        Args:
            shard_set: Where all images come from; subsets and pair sets will do.
            partners: Position of each sample's partner, in the order of the tars.
            scores: How similar the two are.
            added: Whether pairs are further samples.

        Raises:
            ValueError: There are not as many partners and scores as samples, or a partner is none
                of them.
        """
        samples = len(shard_set)
        if partners.shape != (samples,) or scores.shape != (samples,):
            raise ValueError(
                f"{list(partners.shape)} partners and {list(scores.shape)} scores for the "
                f"{samples:,} samples of {shard_set.root}; expected one each."
            )
        if partners.min() < 0 or partners.max() >= samples:
            raise ValueError(
                f"partners lie from {partners.min()} to {partners.max()}; expected positions from "
                f"0 to {samples - 1}."
            )
        self.split, self.classes = shard_set.manifest.split, shard_set.manifest.classes
        self.categories = shard_set.manifest.categories
        root = shard_set.root
        self.origin = root if is_remote(root) else os.path.abspath(root)
        self._root, self._place = shard_set.root, shard_set.tar_folder
        self._digest = hashlib.sha256(shard_set.manifest.to_json().encode()).digest()
        self._partners, self._scores = partners.astype(np.int64), scores.round(4)
        self._lines = Names()  # of an indexed set: its tars name samples otherwise
        shards = shard_set.manifest.shards
        self._tars = [f"{shard.name}.tar" for shard in shards]
        self._first = np.cumsum([0, *(shard.samples for shard in shards)])
        self.ids, self._starts, self._spans = (np.empty(samples, np.int64) for _ in range(3))
        self._paired = np.flatnonzero(partners != np.arange(samples)) if added else np.arange(0)
        self._added = added
        self._labels, self._crcs = np.empty(samples, np.int64), np.empty(samples, np.uint32)
        for shard, first in zip(shards, self._first, strict=False):
            part, rows = slice(first, first + shard.samples), rows_of(shard_set, shard)
            self.ids[part] = [row.id for row in rows]
            self._starts[part] = [row.offset for row in rows]
            self._spans[part] = [row.bytes for row in rows]
            self._labels[part] = [row.label for row in rows]
            self._crcs[part] = [row.crc32 for row in rows]
            if shard_set.manifest.indexed:
                for line in lines_of(shard_set, shard):
                    self._lines.append(line)

    def __len__(self) -> int:
        return len(self.ids) + len(self._paired)

    def __getitem__(self, index: int) -> Sample:
        further = index - len(self.ids)
        if further >= 0:
            index = int(self._paired[further])
        alone = self._added and further < 0
        at = index if alone else int(self._partners[index])
        key, files = self._files(index)
        partner_key, partner = (key, files) if at == index else self._files(at)
        extension, image = _image(files)
        score = 1.0 if alone else round(float(self._scores[index]), 4)
        sample_id = int(self.ids[index])
        if further >= 0:
            sample_id = int(self.ids.max()) + 1 + further
            key = f"{key}-pair{sample_id}"
        metadata: dict[str, Any] = json.loads(files.get("json", b"{}"))
        metadata["partner"] = {"id": int(self.ids[at]), "key": partner_key, "score": score}
        return Sample(
            key=key_from(key, longest=_KEY_LENGTH),
            image=image,
            label=int(self._labels[index]),
            id=sample_id,
            metadata=metadata,
            extension="" if extension == "rgb" else extension,
            partner=_image(partner)[1],
            categories=files.get(CATEGORIES, b""),
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the set or its pairs differ."""
        pairs = self._partners.tobytes() + self._scores.tobytes()
        return self._digest + pairs + (b"added" if self._added else b"")

    def _files(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Return a sample's key and components as they are in the tar."""
        tar = self._tars[int(np.searchsorted(self._first, index, side="right")) - 1]
        data = self._place.read(tar, int(self._starts[index]), int(self._spans[index]))
        if zlib.crc32(data) != self._crcs[index]:
            raise ValueError(
                f"{self._place.path(tar)} has other bytes than were written (sample id "
                f"{self.ids[index]}). Copy it again, or repair the set: python -m tools.verify "
                f"{self._root} --repair true"
            )
        if self._lines:
            return self._by_index(tar, self._lines[index])
        key, files = "", {}
        for entry in entries(io.BytesIO(data + _END), len(data)):
            folder, slash, base = entry.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = folder + slash + stem
            files[extension] = data[entry.offset : entry.offset + entry.size]
        return key, files

    def _by_index(self, tar: str, line: str) -> tuple[str, dict[str, bytes]]:
        files = {
            extension: self._place.read(tar, offset, size)
            for extension, offset, size, _ in components(line)
        }
        return key_of(line), files


def _image(files: dict[str, bytes]) -> tuple[str, bytes | NDArray[np.uint8]]:
    """Return the extension and the bytes of a stored image, or its bare pixels."""
    extension = next(name for name in files if name in ("jpg", "png", "rgb"))
    if extension != "rgb":
        return extension, files[extension]
    shape = np.frombuffer(files["shape.i64"], dtype="<i8")
    return extension, np.frombuffer(files["rgb"], dtype=np.uint8).reshape(shape)
