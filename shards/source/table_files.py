"""Tables as other programs write them: a CSV or Parquet file, or several with the same columns."""

import os
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from shards.one_line import one_line
from shards.source.csv_rows import columns_of_csv, rows_of_csv
from shards.source.labels import natural
from shards.source.location import File, expand, glob, split_location
from shards.source.parquet_rows import Column, columns_of_parquet, rows_of_parquet
from shards.source.usual_names import is_split
from shards.storage import folder_at, is_remote


class TableFiles:
    """The columns and the rows of the files of a table."""

    def __init__(self, table: str, split: str = "") -> None:
        """Find the files, and read what columns they have.

        Args:
            table: A .csv, .tsv or .parquet file, a pattern such as data/*.parquet, or a folder of
                .parquet files.
            split: Of a folder: the beginning of the files' names.

        Raises:
            ValueError: What is there is no table, or not one.
            FileNotFoundError: Nothing is there.
        """
        self.name = table
        self.files = _find(table, split)
        self.is_text = not self.files[0][1].lower().endswith(".parquet")
        self.columns: dict[str, Column] = {}
        self._of_files: list[dict[str, Column]] = []
        for folder, name in self.files:
            path = folder.path(name)
            columns = self._columns_of(path)
            self._of_files.append(columns)
            self.columns = self.columns or columns
            for column, found in self.columns.items():
                if column not in columns or columns[column].holds != found.holds:
                    there = columns[column].holds if column in columns else "nothing"
                    raise ValueError(
                        f"{self._path(0)} and {path} are not one table: column {column!r} holds "
                        f"{found.holds} in the first, {there} in the second. Give one as --table."
                    )

    def refuse_other_classes(self, label: str) -> None:
        """Refuse files in which the same numbers of a column are of other classes.

        Raises:
            ValueError: Two files name them differently.
        """
        first = self.columns[label].classes
        for file, columns in enumerate(self._of_files):
            for number, names in enumerate(zip_longest(first, columns[label].classes)):
                if names[0] != names[1]:
                    one, other = ("not named" if name is None else repr(name) for name in names)
                    raise ValueError(
                        f"{self._path(0)} and {self._path(file)} are not one table: class {number} "
                        f"of column {label!r} is {one} in the first, {other} in the second. Write "
                        "them anew with the same class names, or give one as --table."
                    )

    def _columns_of(self, path: str) -> dict[str, Column]:
        if not self.is_text:
            return columns_of_parquet(path)
        names = columns_of_csv(path)
        several = {name for name in names if names.count(name) > 1}
        return {name: Column("two columns" if name in several else "values") for name in names}

    def _path(self, file: int) -> str:
        return self.files[file][0].path(self.files[file][1])

    @property
    def described(self) -> str:
        """The columns, and what those hold that do not hold values."""
        shown = [
            name if column.holds in ("values", "two columns") else f"{name} ({column.holds})"
            for name, column in self.columns.items()
        ]
        more = ", …" if shown[40:] else ""
        return one_line(f"it has {', '.join(shown[:40]) or 'no columns'}{more}")

    def rows(self, names: list[str]) -> Iterator[list[Any]]:
        """Yield the values of these columns, row by row; of a column of images their paths."""
        for folder, name in self.files:
            path = folder.path(name)
            if self.is_text:
                yield from rows_of_csv(path, names)
            else:
                yield from rows_of_parquet(path, names, self.columns)


def _find(table: str, split: str) -> list[File]:
    there = not is_remote(table) and os.path.isfile(table)
    if not there and re.search(r"[*?\[{]", table):
        files: list[File] = []
        for path in expand(table):
            files += glob(path) if re.search(r"[*?\[]", path) else [split_location(path)]
        if not files:
            raise FileNotFoundError(f"no file is called {table}. Give another --table.")
    elif not there and not _ending(table) and folder_at(table).exists():
        return _of_folder(table, split)
    else:
        files = [split_location(table)]
    if split:
        raise ValueError(
            f"--split {split} chooses from a folder of tables, but {table} is none. Leave it out."
        )
    endings = {_ending(name) or "no known ending" for _, name in files}
    if wrong := sorted(endings - {".csv", ".tsv", ".parquet"}):
        raise ValueError(
            f"{table} ends with {wrong[0]}; expected .csv, .tsv or .parquet, or a folder of "
            ".parquet files. Convert or rename the table."
        )
    if len(endings) > 1:
        raise ValueError(f"{table} means {' and '.join(sorted(endings))}; expected one of them.")
    return files


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _of_folder(table: str, split: str) -> list[File]:
    folder = folder_at(table)
    names = sorted((n for n in folder.sizes() if _ending(n) == ".parquet"), key=natural)
    if not names:
        below = ", ".join(sorted(next(folder.walk())[1], key=natural)[:6])
        raise FileNotFoundError(
            f"{table} holds no .parquet files{f'; it has the folders {below}' if below else ''}. "
            "Give a table, a folder of .parquet files or a pattern as --table."
        )
    splits: dict[str, list[str]] = {}
    for name in names:  # train-00000-of-00002.parquet is of train
        splits.setdefault(re.split(r"[-_.]*(?:\d|\.parquet$)", name)[0], []).append(name)
    if not split and len(splits) > 1 and any(map(is_split, splits)):
        raise ValueError(
            f"{table} holds {', '.join(sorted(splits)[:6])}, which look like splits, not like one "
            f"table. Choose one: --split {next(filter(is_split, splits))}"
        )
    if split and split not in splits:
        raise ValueError(
            f"{table} has no split {split!r}; it has {', '.join(sorted(splits)[:6])}. Give one of "
            "them as --split."
        )
    return [(folder, name) for name in (splits[split] if split else names)]
