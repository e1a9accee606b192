"""Image data sets of the Hugging Face library `datasets`, saved to disk."""

import errno
import os
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np

from shards.source.labels import Labels
from shards.source.location import split_location
from shards.source.source import NoImage, Sample, Source
from shards.storage import is_remote


class HuggingFace(Source):
    """A Hugging Face data set of images, as `Dataset.save_to_disk` writes it.

    Files are taken as they are stored, without decoding. Other columns with single values go into
    the metadata.
    """

    name = "huggingface"

    def __init__(
        self,
        *,
        root: str | Path,
        split: str = "",
        image: str | None = None,
        label: str | None = None,
    ) -> None:
        """Open the data set and find its columns.

        Args:
            root: Local folder that save_to_disk wrote; for a data set of the hub, first
                datasets.load_dataset(NAME).save_to_disk(FOLDER).
            split: Split to take, such as train, if there are several.
            image: Column of images, of files or of paths; default: the only one of images.
            label: Column of labels, names or numbers; default: the only ClassLabel, if any.
        """
        if is_remote(root):
            raise ValueError(
                f"{root} is not on this machine, where data sets of Hugging Face are read. Copy it "
                "into a local folder and give that as --root."
            )
        self._root, self.split = os.fspath(root), split
        self.origin = self._root
        stored = self._open()
        features = stored.features
        for column in filter(None, (image, label)):
            if column not in features:
                raise ValueError(
                    f"{self._root} has no column {column!r}; it has {', '.join(features)}. "
                    "Choose one of them."
                )
        self._image = image or self._only(features, "Image", "image")
        self._label = label or self._only(features, "ClassLabel", "label")
        self._length, self._fingerprint = len(stored), str(stored._fingerprint)
        if not self._length:
            raise ValueError(f"{self._root} {split} holds no samples. Give another as --root.")
        self._others = [
            column
            for column, feature in features.items()
            if column not in (self._image, self._label)
            and type(feature).__name__ in ("Value", "ClassLabel")
            and "binary" not in str(feature.dtype)
        ]
        self.classes: list[str] = []
        self._numbers: np.ndarray | None = None  # of labels that no ClassLabel describes
        if self._label and hasattr(features[self._label], "names"):
            self.classes = list(features[self._label].names)
        elif self._label:
            labels = Labels(f"column {self._label} of {self._root}")
            for rows in stored.select_columns([self._label]).iter(4096):
                for value in rows[self._label]:
                    labels.append(value)
            numbers, self.classes = labels.finish()
            self._numbers = numbers if self.classes else None
        self._opened: Any = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self._opened is None:
            self._opened = self._undecoded(self._open())
        row = self._opened[index]
        features = self._opened.features
        metadata = {name: _plain(row[name], features[name]) for name in self._others}
        stored = row[self._image] or {}
        if stored.get("path"):
            metadata["file"] = stored["path"]
        label = -1
        if self._numbers is not None:
            label = int(self._numbers[index])
        elif self.classes and row[self._label] is not None:
            label = int(row[self._label])
        return Sample(
            key=f"{index:09d}",
            image=self._bytes(stored, index),
            label=label,
            id=index,
            metadata=metadata,
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        return f"{self._fingerprint} {self._length} {self._image} {self._label}".encode()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # each process maps the files itself

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise ValueError(
                "source huggingface needs the package datasets. Install it: uv pip install datasets"
            ) from None
        try:
            stored: Any = datasets.load_from_disk(self._root)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self._root} is no data set that save_to_disk wrote. Give the folder with its "
                "state.json or dataset_dict.json as --root."
            ) from None
        if isinstance(stored, datasets.DatasetDict):
            if not self.split and len(stored) == 1:
                return next(iter(stored.values())).with_format(None)
            if self.split not in stored:
                splits = ", ".join(map(str, stored))
                raise ValueError(
                    f"{self._root} has no split {self.split!r}; it has {splits}. Give one as "
                    "--split."
                )
            stored = stored[self.split]
        elif self.split and self.split != str(stored.split):
            raise ValueError(
                f"{self._root} has no splits, so no {self.split!r}. Leave --split out, or give the "
                "folder that has them as --root."
            )
        return stored.with_format(None)

    def _undecoded(self, stored: Any) -> Any:
        import datasets

        columns = [name for name in (self._image, self._label, *self._others) if name]
        stored = stored.select_columns(columns)
        return stored.cast_column(self._image, datasets.Image(decode=False))

    def _only(self, features: Any, kind: str, flag: str) -> str:
        """Return the only column of a kind; "" if there is no label."""
        found = [name for name, feature in features.items() if type(feature).__name__ == kind]
        if len(found) == 1 or (not found and flag == "label"):
            return found[0] if found else ""
        raise ValueError(
            f"{self._root} has {len(found) or 'no'} columns of type {kind}"
            + (f": {', '.join(found)}" if found else f"; it has {', '.join(features)}")
            + f". Choose one: --{flag} COLUMN"
        )

    def _bytes(self, stored: dict[str, Any], index: int) -> bytes:
        if stored.get("bytes") is not None:
            return stored["bytes"]
        if not stored.get("path"):
            raise NoImage(errno.ENODATA, f"row {index} of {self._root} has no image")
        folder, name = split_location(stored["path"])
        return folder.read(name)


def _plain(value: Any, feature: Any) -> Any:
    """Return what JSON can hold; the name of a class, not its number."""
    if hasattr(feature, "names"):
        return None if value is None or value < 0 else feature.int2str(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
