"""A table of files and labels: CSV or Parquet, as other programs write it."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any

from shards.source.keys import how_much_to_say
from shards.source.labels import Labels
from shards.source.location import split_location
from shards.source.source import Names, Sample, Source, key_from
from shards.storage import Folder, folder_at, is_remote

_ROWS = 65536  # of Parquet, read at a time
_TRIED = 10  # files that are looked for, to find a wrong root before anything is written


class Table(Source):
    """A CSV or Parquet table with a path, and perhaps a label, in each row.

    Labels that are whole numbers from 0 stay what they are, and the classes are "0" up to the
    largest; names become their places in alphabetical order, 2 before 10. Other columns go into the
    metadata, unless they are lists or the like.
    """

    name = "table"
    split = ""

    def __init__(
        self,
        *,
        root: str | Path,
        table: str | Path,
        path: str = "path",
        label: str | None = "label",
        columns: list[str] | None = None,
    ) -> None:
        """Read the table.

        Args:
            root: Folder that paths in the table start from; local, or such as s3://….
            table: The .csv, .tsv or .parquet file; a path or a URL.
            path: Column of paths: relative to root, absolute, or such as s3://….
            label: Column of labels, names or numbers; null for none. The default may be absent.
            columns: Other columns to carry over as metadata, which are held in memory. Default:
                all; [] for none.
        """
        self._root = folder_at(os.fspath(root))
        self.origin = str(self._root)
        table = os.fspath(table)
        names, rows = _read_table(table)
        if path not in names:
            raise ValueError(
                f"{table} has no column {path!r}; it has {', '.join(names)}. Give the one with "
                "the files' paths as --path."
            )
        labelled = label in names
        if label is not None and not labelled and label != "label":
            raise ValueError(
                f"{table} has no column {label!r}; it has {', '.join(names)}. Give the one with "
                "the labels as --label, or --label null."
            )
        absent = sorted(set(columns or []) - set(names))
        if absent:
            raise ValueError(
                f"{table} has no column {absent[0]!r}; it has {', '.join(names)}. Correct "
                "--columns."
            )
        kept = [n for n in names if n not in (path, label) and (columns is None or n in columns)]
        self._columns = kept
        self._paths = Names()
        self._values = Names()  # of the other columns, as a JSON list
        labels = Labels(f"column {label} of {table}")
        at, without = {name: place for place, name in enumerate(names)}, 0
        for row in rows:
            file = row[at[path]]
            if file is None or file == "":
                without += 1
                continue
            self._paths.append(_plain(str(file)))
            if labelled:
                labels.append(row[at[str(label)]])
            if kept:
                values = [_for_json(row[at[name]]) for name in kept]
                self._values.append(json.dumps(values, separators=(",", ":")))
        if not len(self._paths):
            raise ValueError(f"{table} has no rows with a path. Give a table of images as --table.")
        numbers, self.classes = labels.finish()
        self._labels = numbers if self.classes else None
        self._levels = how_much_to_say(len(self), self._name, 3)
        self._look_for_some(table)
        self.notes = []
        if without:
            self.notes.append(f"{without:,} rows passed over: they have no {path}")
        if label is not None and not labelled:
            self.notes.append(f"no labels: {table} has no column {label}")
        elif self._labels is not None and (count := int((self._labels < 0).sum())):
            self.notes.append(f"{count:,} rows have no label")
        if self._levels is not None and (count := int((self._levels == 2).sum())):
            self.notes.append(f"{count:,} rows name a file that another row names too")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        folder, name = self._file(path)
        level = 0 if self._levels is None else int(self._levels[index])
        others = json.loads(self._values[index]) if self._columns else []
        return Sample(
            key=key_from(self._name(index, level)),
            image=folder.read(name),
            label=-1 if self._labels is None else int(self._labels[index]),
            id=index,
            metadata={**dict(zip(self._columns, others, strict=True)), "file": path},
            extension=name.rpartition(".")[2],
        )

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the list of samples differs."""
        digest = hashlib.blake2b(self._paths.digest() + self._values.digest(), digest_size=16)
        digest.update(b"" if self._labels is None else self._labels.tobytes())
        return digest.digest()

    def _file(self, path: str) -> tuple[Folder, str]:
        outside = path.startswith("/") or is_remote(path)
        return split_location(path) if outside else (self._root, path)

    def _name(self, index: int, level: int) -> str:
        """Return the path without its ending; at level 1 with it, at level 2 with its row too."""
        path = self._paths[index].rpartition("://")[2].lstrip("/")
        if level == 0:
            return os.path.splitext(path)[0]
        return path if level == 1 else f"{path}/{index}"

    def _look_for_some(self, table: str) -> None:
        """Refuse a root under which none of the first files is there."""
        tried = [self._file(self._paths[i]) for i in range(min(_TRIED, len(self)))]
        for folder, name in tried:
            try:
                with folder.open(name):
                    return
            except OSError:
                continue
        raise FileNotFoundError(
            f"none of the first {len(tried)} files of {table} can be opened, such as "
            f"{tried[0][0].path(tried[0][1])}. Give the folder that its paths start from as --root."
        )


def _plain(path: str) -> str:
    while path.startswith("./"):
        path = path[2:]
    return path


def _for_json(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _read_table(table: str) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the columns that hold single values, and the rows of those."""
    folder, name = split_location(table)
    ending = os.path.splitext(name)[1].lower()
    if ending not in (".csv", ".tsv", ".parquet"):
        raise ValueError(
            f"{table} ends with {ending or 'no known ending'}; expected .csv, .tsv or .parquet. "
            "Convert or rename the table."
        )
    try:
        file = folder.open(name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{table} is missing. Give the table as --table.") from None
    return _read_parquet(file, table) if ending == ".parquet" else _read_csv(file, table, ending)


def _read_csv(
    file: IO[bytes], table: str, ending: str
) -> tuple[list[str], Iterator[list[str | None]]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        header = text.readline()
        text.seek(0)
        # Spreadsheets write ";" where the comma is the decimal sign.
        separator = "\t" if ending == ".tsv" else max(",;\t", key=header.count)
        lines = csv.reader(text, delimiter=separator)
        names = next(lines, [])
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{table} is not CSV in UTF-8. Save it as that.") from None

    def rows(width: int) -> Iterator[list[str | None]]:
        try:
            for line in lines:
                if len(line) == width:
                    yield [value or None for value in line]
                elif line:  # an empty line is none
                    raise ValueError(
                        f"{table}, line {lines.line_num}, has {len(line)} values, but the header "
                        f"has {width}. Put text that contains {separator!r} between quotes."
                    )
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{table} cannot be read after line {lines.line_num} ({error}). Save it as CSV in "
                "UTF-8."
            ) from None
        finally:
            text.close()

    return names, rows(len(names))


def _read_parquet(file: IO[bytes], table: str) -> tuple[list[str], Iterator[list[Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{table} is Parquet, which needs pyarrow. Install it (uv pip install pyarrow), or "
            "give the table as .csv."
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{table} is not Parquet ({error}). Write it again.") from None
    schema = parquet.schema_arrow
    unfit = (pyarrow.types.is_nested, pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    names = [column.name for column in schema if not any(test(column.type) for test in unfit)]

    def rows() -> Iterator[list[Any]]:
        with file:
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=names):
                columns = [batch.column(name).to_pylist() for name in names]
                yield from map(list, zip(*columns, strict=True))

    return names, rows()
