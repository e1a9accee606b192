"""Edited copies of the images of a shard set, and the references they are to be found among."""

import hashlib
from array import array
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.image import decode, read_header
from shards.layout import open_shards
from shards.shard_index import lines_of
from shards.source.edit import edit
from shards.source.source import Names, Sample, Source
from shards.survey import rows_of
from shards.tar import components

_VERSION = 1  # of the edits: one more whenever the same seed edits otherwise


class Copies(Source):
    """Edited copies of the images of a shard set, for copy detection; and the references.

    The images of the set are divided, by the draw's seed and their ids alone, into three parts
    that share no image, not even one with the same bytes:

        distractors    made into queries that have no original among the references
        backgrounds    what copies are pasted onto, so that no query shows a second reference
        references     the rest; a copy of some of them is a query each

    Split queries holds the copies: the label is the id of the original in the references, -1 for a
    distractor. Split references holds the references as they are, under the ids that they had,
    without labels. Neither set has classes, so that nothing takes these labels for some, nor has
    it categories.
    """

    name = "copies"

    def __init__(
        self,
        *,
        root: str,
        split: Literal["queries", "references"] = "queries",
        queries: int = 1000,
        distractors: int = 1000,
        backgrounds: int = 200,
        least_edits: int = 1,
        most_edits: int = 3,
        draw_seed: int = 0,
    ) -> None:
        """Read the tables of the shard set.

        Args:
            root: Shard set, held out from training; local, or such as s3://….
            split: Which set to write. Give both commands the same root, distractors, backgrounds
                and draw_seed.
            queries: How many references are copied, each once.
            distractors: Images set apart to be queries without an original.
            backgrounds: Images set apart to paste copies onto.
            least_edits: Fewest edits of a query, of 13 kinds.
            most_edits: Most edits of a query; their number is uniform.
            draw_seed: 0 or more; of the division and of every edit.
        """
        self.split, self.origin = split, root
        self._shard_set = open_shards(root)
        self._least, self._most, self._seed = least_edits, most_edits, draw_seed
        if min(queries, distractors, draw_seed) < 0 or backgrounds < 1:
            raise ValueError(
                f"queries={queries}, distractors={distractors}, backgrounds={backgrounds}, "
                f"draw_seed={draw_seed}; expected 1 or more backgrounds and nothing below 0."
            )
        if not 1 <= least_edits <= most_edits <= 13:
            raise ValueError(
                f"least_edits={least_edits} and most_edits={most_edits}; expected 1 or more, up to "
                "13, the least no more than the most."
            )
        self.classes: list[str] = []
        ids = self._list()
        order = self._distinct(ids)
        # RandomState, not default_rng: its stream is promised never to change (NEP 19).
        np.random.RandomState([draw_seed, _VERSION]).shuffle(order)
        ends = np.cumsum([distractors, backgrounds])
        apart, self._backgrounds, references = np.split(order, ends)
        if queries > len(references) or not len(references):
            raise ValueError(
                f"{root} has {len(order):,} different images: {distractors:,} distractors and "
                f"{backgrounds:,} backgrounds leave {len(references):,} references, too few for "
                f"{queries:,} queries. Lower one of the numbers, or give a larger set."
            )
        self._ids = ids
        self._copied = queries
        # What is written, in this order: copies before distractors.
        self._taken = (
            np.concatenate([references[:queries], apart])
            if split == "queries"
            else np.sort(references)
        )
        if not len(self._taken):
            raise ValueError("queries=0 and distractors=0; there is nothing to write.")
        self.notes = [
            f"{len(ids):,} images = {len(apart):,} distractors + {len(self._backgrounds):,} "
            f"backgrounds + {len(references):,} references + {len(ids) - len(order):,} left out "
            "because another has the same bytes",
        ]
        self._settings = (_VERSION, root, split, queries, distractors, backgrounds)
        self._settings += (least_edits, most_edits, draw_seed)

    def _list(self) -> NDArray[np.int64]:
        """Note where each image is; return the ids."""
        self._keys, self._contents = Names(), bytearray()
        self._shard, self._place = array("i"), array("q")  # of each: offset, bytes, of the shape
        ids = array("q")
        for number, shard in enumerate(self._shard_set.manifest.shards):
            rows, lines = rows_of(self._shard_set, shard), lines_of(self._shard_set, shard)
            for row, line in zip(rows, lines, strict=True):
                found = {extension: (at, size) for extension, at, size, _ in components(line)}
                self._place.extend(found[row.image])
                self._place.append(found["shape.i64"][0] if row.image == "rgb" else -1)
                self._shard.append(number)
                self._keys.append(row.key)
                self._contents += bytes.fromhex(row.content)
                ids.append(row.id)
        return np.asarray(ids, dtype=np.int64)

    def _distinct(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in the order of their ids, of equal images the first alone."""
        order = np.argsort(ids, kind="stable")
        if len(np.unique(ids)) < len(ids):
            raise ValueError(
                f"{self.origin} has samples with the same id; a query could not say of which it is "
                "a copy. Shard it again: python -m tools.shard webdataset."
            )
        contents = np.frombuffer(bytes(self._contents), dtype="V16")[order]
        halves = contents.view(np.uint64).reshape(-1, 2)
        _, first = np.unique(halves, axis=0, return_index=True)
        return order[np.sort(first)]

    def __len__(self) -> int:
        return len(self._taken)

    def __getitem__(self, index: int) -> Sample:
        position = int(self._taken[index])
        if self.split == "references":
            return Sample(
                key=self._keys[position],
                image=self._read(position),
                label=-1,
                id=int(self._ids[position]),
                metadata={"shards": self.origin},
            )
        copied = index < self._copied
        # Of the original's id, not of its place: more queries leave the others as they are.
        rng = np.random.default_rng([self._seed, _VERSION, int(self._ids[position])])
        background = int(self._backgrounds[rng.integers(len(self._backgrounds))])
        edited = edit(
            self._picture(position), self._picture(background), rng, self._least, self._most
        )
        metadata = {"original": self._keys[position], "edits": list(edited.edits)}
        if "onto" in edited.edits:
            metadata["background"] = self._keys[background]
        return Sample(
            key=f"{'copy' if copied else 'distractor'}-{index:07d}",
            image=np.ascontiguousarray(edited.image),
            label=int(self._ids[position]) if copied else -1,
            id=index,
            metadata=metadata,
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        digest = hashlib.blake2b(repr(self._settings).encode(), digest_size=16)
        digest.update(self._contents)
        digest.update(self._ids.tobytes())
        return digest.digest()

    def _read(self, position: int) -> bytes | NDArray[np.uint8]:
        """Return an image as the set has it: a file's bytes, or pixels where they are bare."""
        offset, size, shape_at = self._place[3 * position : 3 * position + 3]
        shard = self._shard_set.manifest.shards[self._shard[position]]
        with self._shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
            tar.seek(offset)
            data = tar.read(size)
            if shape_at < 0:
                return data
            tar.seek(shape_at)
            shape = np.frombuffer(tar.read(24), dtype="<i8")
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)

    def _picture(self, position: int) -> Image.Image:
        image = self._read(position)
        if isinstance(image, bytes):
            header = read_header(image)
            pixels = decode(header) if header is not None else None
            if pixels is None:
                raise ValueError(
                    f"image {self._keys[position]} of {self.origin} does not decode. Repair the "
                    f"set: python -m tools.verify {self.origin} --repair true --deep true"
                )
            image = pixels
        return Image.fromarray(image)
