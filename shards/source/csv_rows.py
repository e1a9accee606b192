"""The rows of a CSV file in UTF-8, whatever separates its values."""

import csv
import io
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from shards.source.location import open_table

# What pandas takes for a missing value in text, https://pandas.pydata.org/docs/user_guide/io.html
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}


def _open_text(path: str) -> tuple[io.TextIOWrapper, Any, str, list[str]]:
    """Return the file, its lines as lists, what separates values, and the names of columns."""
    text = io.TextIOWrapper(open_table(path), encoding="utf-8-sig", newline="")
    try:
        header = text.readline()
        text.seek(0)
        # Spreadsheets write ";" where the comma is the decimal sign.
        separator = "\t" if path.lower().endswith(".tsv") else max(",;\t", key=header.count)
        lines = csv.reader(text, delimiter=separator, strict=True)
        return text, lines, separator, [name.strip() for name in next(lines, [])]
    except (UnicodeDecodeError, csv.Error):
        text.close()
        raise ValueError(f"{path} is not CSV in UTF-8. Save it as that.") from None


def columns_of_csv(path: str) -> list[str]:
    """Return the names of the columns."""
    text, _, _, names = _open_text(path)
    text.close()
    return names


def rows_of_csv(path: str, names: list[str]) -> Iterator[list[Any]]:
    """Yield the texts in these columns, row by row; None where there is none."""
    text, lines, separator, header = _open_text(path)
    places = [header.index(name) for name in names]
    with closing(text):
        try:
            for line in lines:
                if len(line) == len(header):
                    yield [line[place] or None for place in places]
                elif line:  # an empty line is none
                    raise ValueError(
                        f"{path}, line {lines.line_num}, has {len(line)} values, but the header "
                        f"has {len(header)}. Put text that contains {separator!r} between quotes."
                    )
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{path} cannot be read after line {lines.line_num} ({error}). Save it as CSV in "
                "UTF-8."
            ) from None
