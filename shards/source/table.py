"""A table of files or of images, and labels: CSV or Parquet, as other programs write it."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from shards.one_line import one_line
from shards.outage import Unreachable
from shards.source.csv_rows import MISSING
from shards.source.folder import is_image
from shards.source.keys import how_much_to_say
from shards.source.labels import Labels
from shards.source.location import is_there
from shards.source.parquet_images import ParquetImages
from shards.source.reach import Outside, Reach
from shards.source.source import Names, NoImage, Sample, Source, key_from, plain
from shards.source.table_files import TableFiles
from shards.storage import is_remote

_TRIED = 10  # files that are looked for, to find a wrong root before anything is written


class Table(Source):
    """A CSV or Parquet table with a path, or an image, and perhaps a label in each row.

    Labels that are whole numbers from 0 stay what they are, and the classes are "0" up to the
    largest, or what the Hub's metadata call them; names become their places in alphabetical order,
    2 before 10. In CSV, NaN, NA, None, null and what else pandas takes for a missing value is no
    label. Other columns go into the metadata, unless they are lists or the like.
    """

    name = "table"

    def __init__(
        self,
        *,
        table: str | Path,
        root: str | Path | None = None,
        split: str = "",
        path: str | None = None,
        image: str | None = None,
        label: str | None = "label",
        columns: list[str] | None = None,
        allow_outside: str | list[str] | None = None,
    ) -> None:
        """Read the table.

        Args:
            table: The .csv, .tsv or .parquet file, a pattern such as data/*.parquet, or a folder of
                .parquet files, as the Hub has them; paths or URLs.
            root: Folder that paths in the table start from; local, or such as s3://…. Default: the
                table's.
            split: Split to take from a folder of .parquet files, such as train, which is the
                beginning of their names.
            path: Column of paths, which are relative to root, or lead there. Default: path.
            image: Column of images in a Parquet table: files' bytes, or structs of bytes and path.
                Default: the only one, unless --path is given.
            label: Column of labels, names or numbers; null for none. The default may be absent.
            columns: Other columns to carry over as metadata, which are held in memory. Default:
                all; [] for none.
            allow_outside: Folder or URL, or a list of them, that paths may lead to besides root,
                such as /data, s3://bucket or https://. What they name may be read and published.
        """
        self.split = split
        files = TableFiles(os.fspath(table), split)
        self._table = files.name
        above = files.files[0][0].location
        self._root = above if root is None else os.fspath(root)
        self._reach = Reach(self._root, allow_outside)
        self._choose(files, path, image)
        self.origin = self._root if self._image is None else files.name
        self._places = {self._root} if self._image is None else {f.location for f, _ in files.files}
        labelled = self._label_column(files, label)
        if labelled is not None:
            files.refuse_other_classes(labelled)
        self._columns = self._other_columns(files, columns, labelled)
        self.notes = self._read(files, labelled)
        self._images = None
        if self._image is not None:
            self._images = ParquetImages(files.files, self._image)
        self._levels = how_much_to_say(len(self), self._name, 3)
        if self._images is None:
            self._look_for_some()
        if label is not None and labelled is None:
            self.notes.append(f"no labels: {self._table} has no column {label}")
        elif self._labels is not None and (count := int((self._labels < 0).sum())):
            self.notes.append(f"{count:,} rows have no label")
        if self._levels is not None and (count := int((self._levels == 2).sum())):
            self.notes.append(f"{count:,} rows name a file that another row names too")

    def _choose(self, files: TableFiles, path: str | None, image: str | None) -> None:
        """Choose the column of paths, or that of images."""
        self._path, self._image = "path" if path is None else path, image
        if image is not None:
            if path is not None:
                raise ValueError(f"--path {path} and --image {image}; expected one of them.")
            self._require(files, image, ("images", "binary values"), "an image a row", "--image")
            return
        for kind in ("images", "binary values") if path is None else ():
            found = [name for name, column in files.columns.items() if column.holds == kind]
            if kind != "images" and self._holds(files, self._path) == "values":
                return
            if len(found) == 1:
                self._image = found[0]
                return
            if found and self._holds(files, self._path) != "values":
                raise ValueError(
                    f"{files.name} has {len(found)} columns of {kind}: {', '.join(found[:9])}. "
                    "Choose one: --image COLUMN"
                )
        self._require(files, self._path, ("values",), "the files' paths", "--path")

    @staticmethod
    def _holds(files: TableFiles, name: str) -> str:
        return files.columns[name].holds if name in files.columns else ""

    def _require(
        self, files: TableFiles, name: str, kinds: tuple[str, ...], what: str, flag: str
    ) -> None:
        """Refuse a column that is absent, or holds something else."""
        found = self._holds(files, name)
        if found in kinds:
            return
        if not found:
            wrong = f"{files.name} has no column {name!r}"
        elif found == "two columns":
            wrong = f"{files.name} has two columns called {name!r}"
        else:
            wrong = f"column {name!r} of {files.name} holds {found}, not {what}"
        more = {"--path": ", or a column of images as --image", "--label": ", or --label null"}
        raise ValueError(
            f"{wrong}; {files.described}. Give one with {what} as {flag}{more.get(flag, '')}."
        )

    def _label_column(self, files: TableFiles, label: str | None) -> str | None:
        """Return the column of labels, if there is one."""
        if label == "label" and label not in files.columns:
            named = [name for name, column in files.columns.items() if column.classes]
            return named[0] if len(named) == 1 else None
        if label is not None:
            self._require(files, label, ("values",), "the labels", "--label")
        return label

    def _other_columns(
        self, files: TableFiles, columns: list[str] | None, labelled: str | None
    ) -> list[str]:
        for name in columns or []:
            self._require(files, name, ("values",), "single values", "--columns")
        used = (self._path if self._image is None else self._image, labelled)
        return [
            name
            for name, column in files.columns.items()
            if name not in used
            and column.holds == "values"
            and (not columns or name in columns)
            and columns != []
        ]

    def _read(self, files: TableFiles, labelled: str | None) -> list[str]:
        """Read all rows but for the images; return what the user should know."""
        notes: list[str] = []
        self._paths = Names()
        self._values = Names()  # of the other columns, as a JSON list
        labels = Labels(f"column {labelled} of {files.name}")
        missing = MISSING if files.is_text else set[str]()
        source = self._path if self._image is None else self._image
        without = 0
        wanted = [source, *([labelled] if labelled is not None else []), *self._columns]
        for row, (file, *values) in enumerate(files.rows(wanted), start=1):
            file = "" if file is None or file in missing else _plain(str(file))
            if not file and self._image is None:
                without += 1
                continue
            if self._image is None:
                self._check(file, row)
            self._paths.append(file)
            if labelled is not None:
                value = values.pop(0)
                unlabelled = isinstance(value, str) and value.strip() in missing
                labels.append(None if unlabelled else value)
            if self._columns:
                self._values.append(json.dumps([*map(plain, values)], separators=(",", ":")))
        if not len(self._paths):
            what = "a path" if self._image is None else "an image"
            raise ValueError(
                f"{files.name} has no rows with {what}. Give a table of images as --table."
            )
        if without:
            notes.append(f"{without:,} rows passed over: they have no {self._path}")
        numbers, classes = labels.finish()
        self._labels = numbers if classes else None
        names = files.columns[labelled].classes if labelled is not None and classes else ()
        if names and int(numbers.max()) < len(names):
            classes = list(names)
        elif names:
            notes.append(
                f"classes are called by their numbers: column {labelled} has {numbers.max()}, but "
                f"the metadata name {len(names)} classes"
            )
        self.classes = classes
        return notes

    def _check(self, path: str, row: int) -> None:
        try:
            self._reach.check(path)
        except Outside as error:
            said = one_line(f"{path} {error.strerror}")
            raise ValueError(f"{self._table}, row {row}: {said}") from None
        except NoImage:
            pass  # counted when it is read

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        level = 0 if self._levels is None else int(self._levels[index])
        others = json.loads(self._values[index]) if self._columns else []
        return Sample(
            key=key_from(self._name(index, level)),
            image=self._bytes(index, path),
            label=self.label(index),
            id=index,
            metadata={
                **dict(zip(self._columns, others, strict=True)),
                **({"file": path} if path else {}),
            },
            extension="" if self._images is not None else self._extension(path),
        )

    def _extension(self, path: str) -> str:
        """Return the extension of a file; of a URL, which may name a script, that of an image."""
        if not (is_remote(path) or is_remote(self._root)):
            return os.path.splitext(path)[1][1:]
        name = re.split("[?#]", path, maxsplit=1)[0]
        return os.path.splitext(name)[1][1:] if is_image(name) else ""

    def _bytes(self, index: int, path: str) -> bytes:
        if self._images is None:
            return self._reach.read(path)
        image, named = self._images.read(index)
        if image is not None:
            return image
        if not named:
            raise NoImage(errno.ENODATA, "has no image", f"row {index + 1} of {self._table}")
        return self._reach.read(named)

    def url(self, index: int) -> str:
        """Return the path of an image that is not in the table, if it is a whole URL."""
        path = self._paths[index]
        return path if self._images is None and is_remote(path) else ""

    def label(self, index: int) -> int:
        """Return the label of a sample, without its image."""
        return -1 if self._labels is None else int(self._labels[index])

    def expect(self, indices: Sequence[int]) -> None:
        """Take note which samples will be asked for next; see `ParquetImages`."""
        if self._images is not None:
            self._images.expect(indices)

    def reachable(self) -> bool:
        """Whether the root, or the folders of the images' table, are there."""
        return all(map(is_there, self._places))

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        digest = hashlib.blake2b(self._paths.digest() + self._values.digest(), digest_size=16)
        digest.update(b"" if self._labels is None else self._labels.tobytes())
        digest.update(b"" if self._images is None else self._images.fingerprint())
        return digest.digest()

    def _name(self, index: int, level: int) -> str:
        """Return the path without its ending; at level 1 with it, at level 2 with its row too."""
        path = self._paths[index].rpartition("://")[2].lstrip("/")
        if not path:
            return f"{index:09d}"
        if level == 0:
            return os.path.splitext(path)[0]
        return path if level == 1 else f"{path}/{index}"

    def _look_for_some(self) -> None:
        """Refuse a root under which none of the first files is there."""
        tried = [self._paths[i] for i in range(min(_TRIED, len(self)))]
        errors: list[OSError] = []
        for path in tried:
            try:
                with self._reach.open(path):
                    return
            except OSError as error:
                errors.append(error)
        if outside := next((error for error in errors if isinstance(error, Outside)), None):
            raise ValueError(one_line(f"{self._table}: {outside.filename} {outside.strerror}"))
        if all(isinstance(error, Unreachable) for error in errors):
            raise errors[0]
        none = f"none of the first {len(tried)} files of {self._table} can be opened"
        if refused := next((error for error in errors if isinstance(error, PermissionError)), None):
            said = f"{refused.filename or ''}: {refused.strerror}".removeprefix(": ")
            remedy = "Get access to them, or give another folder as --root."
            raise PermissionError(errno.EACCES, one_line(f"{none}: {said}. {remedy}"))
        first = tried[0]
        if not (first.startswith("/") or is_remote(first)):
            first = f"{self._root}/{first}"
        raise FileNotFoundError(
            f"{none}, such as {one_line(first)}. Give the folder that its paths start from as "
            "--root."
        )


def _plain(path: str) -> str:
    while path.startswith("./"):
        path = path[2:]
    return path
