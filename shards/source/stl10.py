"""STL-10 in its official binary layout (Coates, Ng, Lee 2011, https://cs.stanford.edu/~acoates/stl10)."""

import contextlib
import errno
import hashlib
import urllib.error
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.source.source import Sample, Source
from shards.storage import is_remote

SHAPE = (3, 96, 96)  # channel, column, row: images are stored column by column
_BYTES = 3 * 96 * 96
_FOLDER = "stl10_binary"


class STL10(Source):
    """STL-10 in its official binary layout: pixels, labels and folds.

    Layout: {train,test,unlabeled}_X.bin, {train,test}_y.bin, class_names.txt, fold_indices.txt.
    The folds that a training sample belongs to go into its metadata.
    """

    name = "stl10"

    def __init__(
        self,
        *,
        root: str | Path,
        split: Literal["train", "test", "unlabeled", "train+unlabeled"] = "train+unlabeled",
        download: bool = False,
    ) -> None:
        """Find the binaries and check their sizes.

        Args:
            root: Folder that holds the .bin files, or stl10_binary/ with them.
            split: Images to take: 5,000, 8,000, 100,000 or 105,000 in the official set.
            download: True fetches the official binaries (2.6 GB) into ROOT/stl10_binary first.
        """
        self.split = split
        if is_remote(root):
            raise ValueError(
                f"{root} is not on this machine, where the STL-10 binaries must be. Copy the .bin "
                "and .txt files into a local folder and give that as --root."
            )
        root = Path(root)
        if download:
            _download(root, split)
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} is not a folder. Give the one with the .bin files as --root, or "
                "--download true to fetch them into it."
            )
        self.folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
        self._parts: list[tuple[str, int]] = []  # split and number of images
        self._labels: dict[str, NDArray[np.int8]] = {}
        for part in split.split("+"):
            images = self._count(part)
            self._parts.append((part, images))
            if part != "unlabeled":
                self._labels[part] = self._read_labels(part, images)
        self.classes = self._read_classes() if self._labels else []
        self._folds = self._read_folds() if "train" in self._labels else {}

    def __len__(self) -> int:
        return sum(images for _, images in self._parts)

    def __getitem__(self, index: int) -> Sample:
        part, position = self._locate(index)
        # Read, not mapped: a mapping would be copied when the source is pickled to other processes.
        stored = np.fromfile(
            self.folder / f"{part}_X.bin", dtype=np.uint8, count=_BYTES, offset=position * _BYTES
        )
        if stored.size != _BYTES:
            raise OSError(errno.EIO, f"{self.folder}/{part}_X.bin has become shorter")
        pixels = stored.reshape(SHAPE).transpose(2, 1, 0)  # [H, W, C]
        metadata: dict[str, object] = {"split": part, "index": position}
        if part == "train" and self._folds:
            metadata["folds"] = self._folds.get(position, [])
        return Sample(
            key=f"{part}-{position:06d}",
            image=np.ascontiguousarray(pixels),
            label=self.label(index),
            id=index,
            metadata=metadata,
        )

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        part, position = self._locate(index)
        return int(self._labels[part][position]) if part in self._labels else -1

    def reachable(self) -> bool:
        """Whether the binaries are there, each of which holds thousands of images."""
        return all((self.folder / f"{part}_X.bin").exists() for part, _ in self._parts)

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        digest = hashlib.blake2b(repr(self._parts).encode(), digest_size=16)
        for labels in self._labels.values():
            digest.update(labels.tobytes())
        return digest.digest()

    def _locate(self, index: int) -> tuple[str, int]:
        """Return the part of the split that holds a sample, and the sample's place in it."""
        for part, images in self._parts:
            if index < images:
                return part, index
            index -= images
        raise IndexError(f"only {len(self):,} samples in split {self.split}")

    def _require(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, which split {self.split} needs. Unpack stl10_binary.tar.gz "
                "into --root, or give --download true to fetch it."
            )
        return path

    def _count(self, part: str) -> int:
        path = self._require(f"{part}_X.bin")
        size = path.stat().st_size
        if size % _BYTES or not size:
            raise ValueError(
                f"{path} has {size:,} bytes; expected a multiple of {_BYTES:,} (3 x 96 x 96): "
                "it is truncated or no STL-10 file. Unpack stl10_binary.tar.gz again."
            )
        return size // _BYTES

    def _read_labels(self, part: str, images: int) -> NDArray[np.int8]:
        path = self._require(f"{part}_y.bin")
        stored = np.fromfile(path, dtype=np.uint8)
        if len(stored) != images:
            raise ValueError(
                f"{path} has {len(stored):,} labels, but {part}_X.bin has {images:,} images. "
                "Unpack stl10_binary.tar.gz again."
            )
        if stored.min() < 1 or stored.max() > 10:
            raise ValueError(
                f"{path} holds labels {stored.min()} to {stored.max()}; expected 1 to 10. "
                "Unpack stl10_binary.tar.gz again."
            )
        return (stored - 1).astype(np.int8)

    def _read_classes(self) -> list[str]:
        path = self._require("class_names.txt")
        classes = path.read_text().split()
        if len(classes) != 10:
            raise ValueError(
                f"{path} holds {len(classes)} names; expected 10. Unpack stl10_binary.tar.gz again."
            )
        return classes

    def _read_folds(self) -> dict[int, list[int]]:
        """Return the folds, 0 to 9, of each training image that is in any; {} without the file."""
        folds: dict[int, list[int]] = {}
        path = self.folder / "fold_indices.txt"
        if not path.is_file():
            self.notes = [f"no folds: {path} is absent"]
            return folds
        for fold, line in enumerate(path.read_text().splitlines()):
            try:
                positions = [int(position) for position in line.split()]
            except ValueError:
                raise ValueError(
                    f"{path}, line {fold + 1}, holds more than numbers. "
                    "Unpack stl10_binary.tar.gz again."
                ) from None
            for position in positions:
                folds.setdefault(position, []).append(fold)
        return folds


def _download(root: Path, split: str) -> None:
    from torchvision import datasets  # imports torch, which nothing else in shards/ needs

    existed = root.exists()
    try:
        # One archive holds all splits; torchvision checks it, and keeps what is already there.
        datasets.STL10(str(root), split=split, download=True)
    except (urllib.error.URLError, RuntimeError) as error:
        if not existed:
            with contextlib.suppress(OSError):  # torchvision made it; what it holds may be of use
                root.rmdir()
        raise ValueError(
            f"STL-10 could not be downloaded into {root} ({error}). Fetch stl10_binary.tar.gz from "
            "https://cs.stanford.edu/~acoates/stl10, unpack it, and leave --download out."
        ) from None
