"""Images inside Parquet files, as `datasets`, pandas and pyarrow write them."""

import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import shards.source.parquet_images
from shards.engine import LocalWorkers
from shards.source import Table
from shards.source.source import NoImage
from shards.writing.reading import Reader
from shards.writing.write import write


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (16, 18, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [encoded(number) for number in range(40)]
ROWS = [{"bytes": data, "path": f"n/{i}.png"} for i, data in enumerate(FILES)]


def hub(folder: Path) -> Path:
    """What Dataset.push_to_hub uploads, by the library itself: splits, shards, names of classes."""
    folder.mkdir(parents=True)
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog", "eel"]),
            "caption": datasets.Value("string"),
            "boxes": datasets.Sequence(datasets.Value("int64")),
        }
    )
    whole = datasets.Dataset.from_dict(
        {
            "picture": ROWS,
            "kind": [i % 2 if i != 5 else -1 for i in range(40)],
            "caption": [f"text {i}" for i in range(40)],
            "boxes": [[i] for i in range(40)],
        },
        features=features,
    )
    for part in range(3):
        name = f"train-{part:05d}-of-00003.parquet"
        whole.shard(3, part, contiguous=True).to_parquet(folder / name, batch_size=4)
    whole.select(range(3)).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_the_hub_s_own_files_are_read_as_datasets_reads_them(tmp_path: Path):
    folder = hub(tmp_path / "data")
    with pytest.raises(ValueError, match=r"test, train, which look like splits.*--split t"):
        Table(table=folder)
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        Table(table=folder, split="val")
    files: list[Any] = [str(path) for path in sorted(folder.glob("train-*"))]
    oracle = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    oracle = oracle.cast_column("picture", datasets.Image(decode=False))
    for source in (
        Table(table=folder, split="train"),
        Table(table=folder / "train-*.parquet"),
        Table(table=f"{folder}/train-{{00000..00002}}-of-00003.parquet", image="picture"),
    ):
        assert len(source) == len(oracle) == 40 and source.classes == ["cat", "dog", "eel"]
        assert list(source.notes) == ["1 rows have no label"]
        for index in np.random.default_rng(0).permutation(40).tolist():
            sample, row = source[index], oracle[index]
            assert sample.image == row["picture"]["bytes"] == FILES[index]
            assert (sample.label, source.label(index)) == (row["kind"], row["kind"])
            assert sample.metadata == {"caption": row["caption"], "file": f"n/{index}.png"}
            assert (sample.key, sample.id) == (f"n/{index}", index)
    assert len(Table(table=folder, split="test", label=None)) == 3


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "no path", "pandas"])
def test_bytes_in_columns_of_all_kinds(tmp_path: Path, kind: str):
    table = tmp_path / "t.parquet"
    labels = ["a", "b"] * 20
    if kind == "pandas":
        pandas.DataFrame({"image": FILES, "label": labels}).to_parquet(table)
    else:
        values = {
            "binary": pa.array(FILES, pa.binary()),
            "large_binary": pa.array(FILES, pa.large_binary()),
            "struct": pa.array(ROWS),
            "no path": pa.array([{"bytes": data} for data in FILES]),
        }
        pq.write_table(pa.table({"image": values[kind], "label": labels}), table, row_group_size=7)
    source = Table(table=table)
    assert [source[i].image for i in range(40)] == FILES
    assert [source[i].label for i in range(40)] == [0, 1] * 20
    assert len({source[i].key for i in range(40)}) == 40
    assert source.fingerprint() == pickle.loads(pickle.dumps(source)).fingerprint()


def test_a_column_of_paths_and_one_of_images_ask_for_a_choice_only_if_it_is_unclear(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"file")
    columns: dict[str, Any] = {
        "path": ["a.png"] * 2,
        "image": pa.array(ROWS[:2]),
        "mask": pa.array(ROWS[2:4]),
        "blob": pa.array([b"1", b"2"]),
    }

    def table(*names: str) -> Path:
        pq.write_table(pa.table({name: columns[name] for name in names}), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    assert Table(table=table("path", "image"))[1].image == FILES[1]
    assert Table(table=table("path", "image"), path="path")[1].image == b"file"
    assert Table(table=table("path", "blob"))[1].image == b"file"
    assert Table(table=table("path", "blob"), image="blob")[1].image == b"2"
    assert Table(table=table("image", "blob"))[1].image == FILES[1]
    with pytest.raises(ValueError, match=r"2 columns of images: image, mask\. Choose one: --image"):
        Table(table=table("image", "mask"))
    assert Table(table=table("image", "mask"), image="mask")[0].image == FILES[2]
    with pytest.raises(ValueError, match=r"column 'image' of .* holds images, not the files'"):
        Table(table=table("image"), path="image")


def test_columns_that_do_not_fit_are_named_with_what_they_hold(tmp_path: Path):
    table = tmp_path / "t.parquet"
    columns = {
        "images": pa.array([[{"bytes": data, "path": None}] for data in FILES[:2]]),
        "blobs": pa.array([[data] for data in FILES[:2]]),
        "label": pa.array([[1], [2]]),
        "box": pa.array([{"x": 1}, {"x": 2}]),
    }
    pq.write_table(pa.table(columns), table)
    has = (
        r"it has images \(lists of images\), blobs \(lists of images\), label \(lists\), box \(str"
    )
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, rf"has no column 'path'; {has}.*or a column of images as --image"),
        (
            {"image": "images"},
            rf"column 'images' of .* holds lists of images, not an.*{has}",
        ),
        ({"image": "blobs"}, "holds lists of images, not an image a row"),
        ({"path": "label"}, "column 'label' of .* holds lists, not the files' paths"),
    ]
    for flags, says in refused:
        with pytest.raises(ValueError, match=says) as error:
            Table(table=table, **flags)
        assert "\n" not in str(error.value)
    pq.write_table(pa.table({**columns, "image": pa.array(ROWS[:2])}), table)
    with pytest.raises(ValueError, match=r"'label' of .* holds lists, not the labels.*--label"):
        Table(table=table)
    with pytest.raises(ValueError, match=r"'box' of .* holds structs, not single.*--columns"):
        Table(table=table, label=None, columns=["box"])
    assert Table(table=table, label=None)[0].metadata == {"file": "n/0.png"}


def test_rows_without_bytes_are_read_by_their_path_below_the_root_or_are_no_image(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").write_bytes(b"file")
    (tmp_path / "secret").write_bytes(b"secret")
    paths = ["a.png", "../secret", "/proc/self/environ", None]
    rows = [ROWS[0], *({"bytes": None, "path": path} for path in paths), None]
    pq.write_table(pa.table({"image": pa.array(rows)}), tmp_path / "t.parquet")
    read = Reader(Table(table=tmp_path / "t.parquet", root=tmp_path / "root"))
    assert [read(0).image, read(1).image] == [FILES[0], b"file"]
    for index, says in ((2, "is not below"), (3, "the system"), (4, "no image"), (5, "no image")):
        with pytest.raises(NoImage, match=says):
            read(index)


def test_classes_that_the_metadata_do_not_name_keep_their_numbers(tmp_path: Path):
    names = b'{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
    cases: list[tuple[bytes, list[Any], list[str]]] = [
        (names, [0, 1, -1], ["a", "b"]),
        (names, [0, 2, 1], ["0", "1", "2"]),
        (names, ["b", "x", "a"], ["a", "b", "x"]),
        (names, [-1, -1, None], []),
        (names.replace(b'"b"', b"7"), [0, 1, 0], ["0", "1"]),
        (names.replace(b'"b"', b'"a"'), [0, 1, 0], ["0", "1"]),
        (b"[1, 2", [0, 1, 0], ["0", "1"]),
        (b'{"info": 7}', [0, 1, 0], ["0", "1"]),
    ]
    for metadata, labels, classes in cases:
        table = pa.table({"image": pa.array(ROWS[:3]), "label": labels})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "t.parquet"
        )
        source = Table(table=tmp_path / "t.parquet")
        assert source.classes == classes
        assert any("called by their numbers" in note for note in source.notes) == (2 in labels)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["cat", "dog"], ""),
        (["cat", "eel"], "class 1 of column 'kind' is 'dog' in the first, 'eel' in the second"),
        (["dog", "cat"], "class 0 of column 'kind' is 'cat' in the first, 'dog' in the second"),
        (["cat", "dog", "eel"], "class 2 .* is not named in the first, 'eel' in the second"),
        (["cat"], "class 1 .* is 'dog' in the first, not named in the second"),
        (None, "class 0 .* is 'cat' in the first, not named in the second"),
    ],
)
def test_files_that_name_the_same_numbers_differently_are_not_one_table(
    tmp_path: Path, names: list[str] | None, says: str
):
    for set_name, of_set in (("one", ["cat", "dog"]), ("two", ["cat", "dog"]), ("two-b", names)):
        kind = datasets.ClassLabel(names=of_set) if of_set else datasets.Value("int64")
        features = datasets.Features({"image": datasets.Image(), "kind": kind})
        rows = {"image": ROWS[:1], "kind": [0]}
        there = tmp_path / f"{set_name}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(there)
    table = tmp_path / "*.parquet"
    if says:
        with pytest.raises(ValueError, match=rf"one\.parquet and .*two-b\.parquet .*{says}"):
            Table(table=table, label="kind")
    else:
        assert Table(table=table, label="kind").classes == ["cat", "dog"]
    assert len(Table(table=table, label=None)) == 3  # nothing is mixed up


def test_what_is_ahead_is_read_once_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One row group of 100 MB in pages of 2 MB, a window of 2 MB: neither is held whole."""
    monkeypatch.setattr(shards.source.parquet_images, "_AHEAD", 2_000_000)
    monkeypatch.setattr(shards.source.parquet_images, "_BATCH", 500_000)
    size, count = 100_000, 1000
    schema = pa.schema([("image", pa.binary())])
    pages: dict[str, Any] = {"use_dictionary": False, "write_batch_size": 20}
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, **pages) as writer:
        data = [np.random.default_rng(i).bytes(size) for i in range(count)]
        writer.write_table(pa.table({"image": data}, schema=schema), row_group_size=count)
    source = Table(table=tmp_path / "t.parquet")
    assert source._images is not None
    read: list[int] = []
    from_group = source._images._from_group

    def counted(group: int, rows: list[int]) -> Any:
        read.append(len(rows))
        return from_group(group, rows)

    source._images._from_group = counted  # type: ignore[method-assign]
    order = np.random.default_rng(0).permutation(count)[:200].tolist()
    source.expect(order)
    held = pa.total_allocated_bytes()
    tracemalloc.start()
    largest = 0
    for index in order:
        assert source[index].image == data[index]
        largest = max(largest, pa.total_allocated_bytes() - held)
    assert sum(read) == 200 and len(read) <= 14
    assert tracemalloc.get_traced_memory()[1] < 8_000_000 and largest < 16_000_000
    tracemalloc.stop()


def test_the_same_set_is_written_by_any_number_of_workers(tmp_path: Path):
    folder = hub(tmp_path / "data")
    sets = [
        write(Table(table=folder, split="train"), tmp_path / str(n), samples_per_shard=9, engine=e)
        for n, e in enumerate([None, LocalWorkers(2)])
    ]
    found = [[shard.tar.sha256 for shard in each.manifest.shards] for each in sets]
    assert found[0] == found[1] and len(sets[0]) == 40


def test_a_forked_process_reads_by_itself(tmp_path: Path):
    """A file that two processes share has one place for both."""
    source = Table(table=hub(tmp_path / "data"), split="train")
    assert source[0].image == FILES[0]  # opened
    assert source._images is not None
    process, files = source._images._opened
    assert process == os.getpid() and len(files) == 1
    child = os.fork()
    if child == 0:
        fresh = source[1].image == FILES[1] and source._images._opened[1] is not files
        os._exit(0 if fresh else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_damaged_row_group_costs_its_own_rows_alone(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": FILES}), path, row_group_size=10, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size // 2)
        file.write(bytes(200))
    source = Table(table=path)
    order = np.random.default_rng(0).permutation(40).tolist()
    source.expect(order)
    read, lost = Reader(source), []
    for index in order:
        try:
            assert read(index).image == FILES[index]
        except NoImage as error:
            assert str(path) in str(error)
            lost.append(index)
    assert sorted(lost) == list(range(20, 30))


def test_what_is_no_table_of_images_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "above" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"image": pa.array(FILES[:0], pa.binary())}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"image": pa.array(FILES[:1])}), tmp_path / "cut.parquet")
    os.truncate(tmp_path / "cut.parquet", 100)
    for table, says in {
        "empty": "holds no .parquet files. Give a table",
        "above": "holds no .parquet files; it has the folders data",
        "none.parquet": "has no rows with an image",
        "cut.parquet": r"is not Parquet \(",
        "x-*.parquet": r"no file is called .*x-\*.parquet",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
            Table(table=tmp_path / table)
        assert "\n" not in str(error.value)
