"""The columns and the rows of a Parquet file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shards.source.location import open_table

_ROWS = 65536  # read at a time


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    holds: str = "values"
    """values; images (a struct of bytes and path, as the Hub writes); binary values; or what does
    not fit: lists, lists of images, structs."""
    has_paths: bool = False
    """Whether each image comes with a path."""
    classes: tuple[str, ...] = ()
    """Names of the numbers in it, from the Hub's metadata."""


def open_parquet(path: str) -> Any:
    """Return a pyarrow.parquet.ParquetFile, which reads its columns in parts.

    Raises:
        ValueError: It is not Parquet, or pyarrow is absent.
        OSError: It cannot be opened.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path} is Parquet, which needs pyarrow. Install it (uv pip install pyarrow), or "
            "give the table as .csv."
        ) from None
    file = open_table(path)
    try:
        # With a buffer, memory is bounded even where a row group is the whole file.
        return pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        file.close()
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from None


@contextmanager
def opened_parquet(path: str) -> Iterator[Any]:
    """Give the file that `open_parquet` opens, and close it."""
    parquet = open_parquet(path)
    try:
        yield parquet
    finally:
        parquet.close(force=True)


def _damaged(path: str, error: Exception) -> ValueError:
    said = " ".join(str(error).split())[:200]
    return ValueError(f"{path} is not Parquet ({said}). Write it again.")


def columns_of_parquet(path: str) -> dict[str, Column]:
    """Return what the columns hold, by name."""
    with opened_parquet(path) as parquet:
        schema = parquet.schema_arrow
        classes = _classes_of_hub(schema.metadata or {})
        found: dict[str, Column] = {}
        for field in schema:
            if field.name in found:
                found[field.name] = Column("two columns")
            else:
                found[field.name] = _column(field.type, classes.get(field.name, ()))
    return found


def _column(kind: Any, classes: tuple[str, ...]) -> Column:
    from pyarrow import types

    def is_binary(kind: Any) -> bool:
        view = getattr(types, "is_binary_view", lambda _: False)
        tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, view)
        return any(test(kind) for test in tests)

    def is_image(kind: Any) -> bool:
        if not types.is_struct(kind):
            return False
        at = kind.get_field_index("bytes")
        return at >= 0 and is_binary(kind.field(at).type)

    if is_image(kind):
        at = kind.get_field_index("path")
        return Column("images", at >= 0 and types.is_string(kind.field(at).type))
    if is_binary(kind):
        return Column("binary values")
    if not types.is_nested(kind):
        return Column("values", classes=classes if types.is_integer(kind) else ())
    if types.is_struct(kind) or types.is_map(kind):
        return Column("structs")
    inner = getattr(kind, "value_type", None)
    several = inner is not None and (is_image(inner) or is_binary(inner))
    return Column("lists of images" if several else "lists")


def _classes_of_hub(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that `datasets` writes into Parquet, by column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: feature.get("names") for column, feature in features.items()}
    except (ValueError, LookupError, AttributeError, TypeError):
        return {}
    return {
        column: tuple(names)
        for column, names in found.items()
        if isinstance(names, list)
        and all(isinstance(name, str) and name for name in names)
        and len(set(names)) == len(names)
    }


def rows_of_parquet(path: str, names: list[str], columns: dict[str, Column]) -> Iterator[list[Any]]:
    """Yield the values of these columns, row by row; of a column of images their paths."""
    import pyarrow

    paths = [name for name in names if columns[name].has_paths]
    none = [name for name in names if columns[name].holds != "values" and name not in paths]
    leaves = [f"{name}.path" if name in paths else name for name in names if name not in none]
    with opened_parquet(path) as parquet:
        if not leaves:
            yield from ([None] * len(names) for _ in range(parquet.metadata.num_rows))
            return
        try:
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=leaves):
                read: list[list[Any]] = []
                for name in names:
                    if name in none:
                        read.append([None] * batch.num_rows)
                        continue
                    column = batch.column(name)
                    read.append((column.field("path") if name in paths else column).to_pylist())
                yield from map(list, zip(*read, strict=True))
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise _damaged(path, error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(path, error) from None
