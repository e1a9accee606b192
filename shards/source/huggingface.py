"""Image data sets of the Hugging Face library `datasets`, saved to disk."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from shards.one_line import one_line
from shards.source.labels import Labels
from shards.source.reach import Outside, Reach
from shards.source.source import NoImage, Sample, Source, plain
from shards.storage import is_remote

_STATE = "state.json"
_BINARY = ("binary", "large_binary")
_NO_LABELS = ("Image", "Audio", "Video", "Array2D", "Array3D", "Array4D", "Array5D")
_TRIED = 10  # rows whose paths are looked at before anything is written


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
        allow_outside: str | list[str] | None = None,
    ) -> None:
        """Open the data set and find its columns.

        Args:
            root: Local folder that save_to_disk wrote; for a data set of the hub, first
                datasets.load_dataset(NAME).save_to_disk(FOLDER).
            split: Split to take, such as train, if there are several.
            image: Column of images, of files' bytes or of paths; default: the only one of images.
            label: Column of labels, names or numbers; default: the only ClassLabel, if any.
            allow_outside: Folder or URL, or a list of them, that paths may lead to besides root,
                such as /data, s3://bucket or https://. What they name may be read and published.
        """
        if is_remote(root):
            raise ValueError(
                f"{root} is not on this machine, where data sets of Hugging Face are read. Copy it "
                "into a local folder and give that as --root."
            )
        self._root, self.split = os.fspath(root), split
        self.origin = self._root
        self._reach = Reach(self._root, allow_outside)
        stored = self._open()
        features = stored.features
        for column in filter(None, (image, label)):
            if column not in features:
                raise ValueError(
                    f"{self._root} has no column {column!r}; it has {', '.join(features)}. "
                    "Choose one of them."
                )
        self._image = image or self._only(features, "Image", "image")
        if _kind(features[self._image]) not in ("Image", "string", "large_string", *_BINARY):
            raise ValueError(
                f"column {self._image!r} of {self._root} holds {_kind(features[self._image])}; "
                "expected one image a row: of type Image, files' bytes or paths. Choose another: "
                "--image COLUMN"
            )
        self._label = label or self._only(features, "ClassLabel", "label")
        if self._label and _kind(features[self._label]) in _BINARY + _NO_LABELS:
            raise ValueError(
                f"column {self._label!r} of {self._root} holds {_kind(features[self._label])}; "
                "expected names or numbers of classes. Choose another: --label COLUMN"
            )
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
        self._look_for_some(stored)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        row, features = self._rows()[index], self._rows().features
        metadata = {name: _named(row[name], features[name]) for name in self._others}
        stored = row[self._image] or {}
        if stored.get("path"):
            metadata["file"] = stored["path"]
        return Sample(
            key=f"{index:09d}",
            image=self._bytes(stored, index),
            label=self._labelled(index, row),
            id=index,
            metadata=metadata,
        )

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        if self._numbers is not None or not self.classes:
            return self._labelled(index, {})
        # The column alone: to read the image may be what has failed.
        return self._labelled(index, self._rows().select_columns([self._label])[index])

    def _labelled(self, index: int, row: dict[str, Any]) -> int:
        if self._numbers is not None:
            return int(self._numbers[index])
        if not self.classes or row.get(self._label) is None:
            return -1
        return int(row[self._label])

    def _rows(self) -> Any:
        if self._opened is None:
            self._opened = self._undecoded(self._open())
        return self._opened

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
            self._check_files()
            stored: Any = datasets.load_from_disk(self._root)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                f"{self._root} is no data set that save_to_disk wrote. Give the folder with its "
                "state.json or dataset_dict.json as --root.",
            ) from None
        except Outside as error:
            raise ValueError(
                f"{self._root} wants {one_line(str(error.filename))} read as a part of it, which "
                "is outside: it is damaged or hostile. Have it saved anew (save_to_disk), or copy "
                "its files there."
            ) from None
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise ValueError(
                f"{self._root} is damaged, or no data set that save_to_disk wrote: {said}. Save it "
                "again."
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

    def _check_files(self) -> None:
        """Refuse a data set that says that its tables are somewhere else.

        Raises:
            Outside: It does.
        """
        inside, folders, names = Reach(self._root, None), [""], [_STATE, "dataset_info.json"]
        with suppress(FileNotFoundError):
            folders += json.loads(inside.read("dataset_dict.json"))["splits"]
        for folder in folders:
            with suppress(FileNotFoundError):
                state = json.loads(inside.read(os.path.join(folder, _STATE)))
                for name in [*names, *(file["filename"] for file in state["_data_files"])]:
                    inside.find(os.path.join(folder, name))

    def _look_for_some(self, stored: Any) -> None:
        """Refuse paths that lead outside, if those of the first rows do."""
        for row in self._undecoded(stored.select(range(min(_TRIED, self._length)))):
            image = row[self._image] or {}
            if image.get("bytes") is None and image.get("path"):
                try:
                    self._reach.find(image["path"])
                except Outside as error:
                    raise ValueError(
                        f"column {self._image} of {self._root}: "
                        + one_line(f"{image['path']} {error.strerror}")
                    ) from None
                except OSError:  # counted when it is read
                    continue

    def _undecoded(self, stored: Any) -> Any:
        import datasets

        columns = [name for name in (self._image, self._label, *self._others) if name]
        stored = stored.select_columns(columns)
        return stored.cast_column(self._image, datasets.Image(decode=False))

    def _only(self, features: Any, kind: str, flag: str) -> str:
        """Return the only column of a kind; "" if there is no label."""
        found = [name for name, feature in features.items() if type(feature).__name__ == kind]
        all_of_them = [f"{name} ({_kind(feature)})" for name, feature in features.items()]
        if len(found) == 1 or (not found and flag == "label"):
            return found[0] if found else ""
        raise ValueError(
            f"{self._root} has {len(found) or 'no'} columns of type {kind}"
            + (f": {', '.join(found)}" if found else f"; it has {', '.join(all_of_them)}")
            + f". Choose one{'' if found else ' of bytes or paths, one a row'}: --{flag} COLUMN"
        )

    def _bytes(self, stored: dict[str, Any], index: int) -> bytes:
        if stored.get("bytes") is not None:
            return stored["bytes"]
        if not stored.get("path"):
            raise NoImage(errno.ENODATA, f"row {index} of {self._root} has no image")
        return self._reach.read(stored["path"])


def _kind(feature: Any) -> str:
    """Return in a few words what a column holds."""
    kind = type(feature).__name__
    inner = getattr(feature, "feature", None)
    if kind == "Value":
        return str(feature.dtype)
    return f"{kind} of {type(inner).__name__}" if inner is not None else kind


def _named(value: Any, feature: Any) -> Any:
    """Return what JSON can hold; the name of a class, not its number."""
    if hasattr(feature, "names"):
        return None if value is None or value < 0 else feature.int2str(value)
    return plain(value)
