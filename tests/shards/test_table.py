"""Tables: written by pandas, pyarrow and the standard library; beside torchvision's ImageFolder."""

import csv
import datetime
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from shards.outage import Unreachable
from shards.source import ImageFolder, Sample, Table
from shards.source.csv_rows import MISSING
from shards.source.labels import Labels
from shards.storage import folder_at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve files of known content, a.jpg to l.jpg."""
    for letter in "abcdefghijkl":
        (tmp_path / f"{letter}.jpg").write_bytes(f"image {letter}".encode())
    return tmp_path


def everything(source: Table) -> list[Sample]:
    samples = [source[index] for index in range(len(source))]
    assert len({sample.key for sample in samples}) == len(samples)
    for sample in samples:
        json.dumps(sample.metadata, allow_nan=False)
    return samples


def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path: Path):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    table = tmp_path / "t.tsv"
    rows = ["path\tlabel\tcaption", 'a.jpg\t0\t"Vintage poster', "b.jpg\t1\tA dog", ""]
    table.write_text("\n".join(rows))
    with pytest.raises(ValueError, match="cannot be read after line"):
        Table(root=tmp_path, table=table)
    rows[1] = 'a.jpg\t0\t"A ""vintage""\nposter"'
    table.write_text("\n".join(rows))
    assert Table(root=tmp_path, table=table)[0].metadata["caption"] == 'A "vintage"\nposter'


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "parquet"])
def test_samples_are_the_rows_that_pandas_wrote(root: Path, kind: str):
    frame = pandas.DataFrame(
        {
            "caption": ["one, two", 'quo"te', "line\nbreak", "ä"],
            "path": ["b.jpg", "./a.jpg", str(root / "d.jpg"), "c.jpg"],
            "label": ["dog", "cat2", "cat10", "dog"],
            "width": [1, 2, 3, 4],
        }
    )
    path = root / f"table.{'csv' if kind == 'semicolon' else kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        separator = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
        frame.to_csv(path, index=False, sep=separator)
    source = Table(root=root, table=path)
    samples = everything(source)
    assert [sample.image for sample in samples] == [f"image {letter}".encode() for letter in "badc"]
    assert source.classes == ["cat2", "cat10", "dog"]
    assert [sample.label for sample in samples] == [2, 0, 1, 2]
    assert [sample.id for sample in samples] == [0, 1, 2, 3]
    assert samples[0].key == "b" and samples[1].metadata["file"] == "a.jpg"
    assert [sample.metadata["caption"] for sample in samples] == frame["caption"].tolist()
    widths = [sample.metadata["width"] for sample in samples]
    assert widths == ([1, 2, 3, 4] if kind == "parquet" else ["1", "2", "3", "4"])
    assert list(source.notes) == []


def test_labels_are_those_of_the_same_files_in_folders(class_folders):
    folder = ImageFolder(root=class_folders(classes=12, per_class=2))
    rows = [folder[index] for index in range(len(folder))]
    table = class_folders(classes=0, name="other").parent / "table.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([row.metadata["file"], row.metadata["file"].split("/")[0]] for row in rows)
    source = Table(root=table.parent / "images", table=table)
    assert source.classes == folder.classes
    assert everything(source) == rows


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (["0", "2", "1", "2"], [0, 2, 1, 2], ["0", "1", "2"]),
        (["1.0", "", "0.0", "-1"], [1, -1, 0, -1], ["0", "1"]),
        (["", "", "", ""], [-1, -1, -1, -1], []),
        (["1", "x", "10", "2"], [0, 3, 2, 1], ["1", "2", "10", "x"]),
        (["007", "7", "", "8"], [0, 1, -1, 2], ["007", "7", "8"]),
        (["5000000", "1", "5000000", "-1"], [1, 0, 1, -1], ["1", "5000000"]),
        (["True", "False", "True", " False "], [1, 0, 1, 0], ["False", "True"]),
        (["2.0", "x", "2", "-1"], [0, 1, 0, -1], ["2", "x"]),
        (["-5", "x", "-1", "x"], [0, 1, -1, 1], ["-5", "x"]),
        (["cat", "NaN", "nan", "None"], [0, -1, -1, -1], ["cat"]),
        (["N/A", "cat", " null ", "NA"], [-1, 0, -1, -1], ["cat"]),
        (["1", "NULL", "nan", "0"], [1, -1, -1, 0], ["0", "1"]),
        (["none", "Nan", "na", "n/a"], [2, 0, 1, -1], ["Nan", "na", "none"]),
    ],
)
def test_numbers_stay_and_names_are_sorted(root: Path, values, labels, classes):
    rows = "".join(f"{letter}.jpg,{value}\n" for letter, value in zip("abcd", values, strict=True))
    (root / "t.csv").write_text("path,label\n" + rows)
    source = Table(root=root, table=root / "t.csv")
    assert ([sample.label for sample in everything(source)], source.classes) == (labels, classes)
    missing = labels.count(-1)
    expected = [f"{missing} rows have no label"] if classes and missing else []
    assert list(source.notes) == expected


def test_texts_for_missing_values_are_those_of_pandas(root: Path):
    texts = [*MISSING, *("none", "Null", "NAN", "-", "0", "missing", "na", "-1.#inf", "  x")]
    frame = pandas.read_csv(
        io.StringIO("\n".join(["label", *(f'"{text}"' for text in texts)])), skip_blank_lines=False
    )
    assert {text for text, is_na in zip(texts, frame["label"].isna(), strict=True) if is_na} == {
        *MISSING
    }
    rows = "".join(f'a.jpg,"{text}"\n' for text in texts)
    (root / "t.csv").write_text("path,label\n" + rows)
    source = Table(root=root, table=root / "t.csv")
    assert [source.label(i) < 0 for i in range(len(texts))] == frame["label"].isna().tolist()
    frame.assign(path="a.jpg").to_parquet(root / "t.parquet")
    assert Table(root=root, table=root / "t.parquet").classes == source.classes


def test_what_pandas_calls_missing_is_no_path(root: Path):
    (root / "t.csv").write_text("path,text\na.jpg,NaN\nNaN,x\nNone,x\n,x\n")
    source = Table(root=root, table=root / "t.csv")
    assert [sample.metadata["text"] for sample in everything(source)] == ["NaN"]
    assert source.notes[0] == "3 rows passed over: they have no path"


def test_columns_of_parquet_of_all_kinds(root: Path):
    table = pyarrow.table(
        {
            "file": ["a.jpg", "b.jpg", None],
            "class": pyarrow.array(["x", None, "y"]).dictionary_encode(),
            "when": [datetime.datetime(2020, 1, 2), None, None],
            "score": [float("nan"), 0.5, None],
            "boxes": [[1, 2], [3], None],
            "raw": [b"1", b"2", None],
            "fine": [True, False, None],
        }
    )
    pyarrow.parquet.write_table(table, root / "t.parquet")
    source = Table(root=root, table=root / "t.parquet", path="file", label="class")
    samples = everything(source)
    assert samples[0].metadata == {
        "when": "2020-01-02T00:00:00",
        "score": None,
        "fine": True,
        "file": "a.jpg",
    }
    assert samples[1].metadata["score"] == 0.5
    assert [sample.label for sample in samples] == [0, -1]
    assert source.notes == ["1 rows passed over: they have no file", "1 rows have no label"]
    few = Table(root=root, table=root / "t.parquet", path="file", label=None, columns=["fine"])
    assert few[0].metadata == {"fine": True, "file": "a.jpg"} and few.classes == []


def test_a_file_in_several_rows_has_a_key_for_each(root: Path):
    (root / "a.png").write_bytes(b"png")
    (root / "in").mkdir()
    (root / "in" / "a.jpg").touch()
    paths = ["a.jpg", "a.png", "b.jpg", "a.jpg", "in/a.jpg", "a.jpg", f"file://{root}/b.jpg"]
    (root / "t.csv").write_text("path\n" + "\n".join(paths) + "\n\n")
    source = Table(root=root, table=root / "t.csv")
    samples = everything(source)
    assert samples[2].key == "b" and samples[4].key == "in/a"
    assert [samples[i].image for i in (1, 5, 6)] == [b"png", b"image a", b"image b"]
    assert source.notes == [
        "no labels: " + f"{root / 't.csv'} has no column label",
        "3 rows name a file that another row names too",
    ]


@pytest.mark.parametrize(
    ("file", "extension"),
    [
        ("a.JPG", "JPG"),
        ("a.jpg?width=600", "jpg"),
        ("a.png#top", "png"),
        ("a.jpg?of=b.png", "jpg"),
        ("image.php?id=7", ""),
        ("image.php", ""),
        ("a?file=x.jpg", ""),
        ("a", ""),
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_the_extension_of_a_url_is_that_of_an_image_before_its_query(
    root: Path, file: str, extension: str, relative: bool
):
    folder_at("memory://urls").write(file, b"image")
    (root / "t.csv").write_text("path\n" + ("" if relative else "memory://urls/") + file)
    source = Table(root="memory://urls", table=root / "t.csv")
    assert (source[0].image, source[0].extension) == (b"image", extension)


def test_the_extension_of_a_file_is_what_follows_its_last_dot(root: Path):
    for name in ("a.txt", "b.jpg?x"):
        (root / name).write_bytes(b"image")
    (root / "t.csv").write_text("path\na.txt\nb.jpg?x")
    source = Table(root=root, table=root / "t.csv")
    assert [sample.extension for sample in everything(source)] == ["txt", "jpg?x"]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            PermissionError("Access Denied"),
            PermissionError,
            r"opened: memory://no/a.jpg: Access Denied\. Get",
        ),
        (FileNotFoundError("x"), FileNotFoundError, "memory://no/a.jpg. Give the folder"),
        (ConnectionError("it is away"), Unreachable, "memory://no/a.jpg: it is away"),
    ],
)
def test_why_none_of_the_first_files_can_be_opened_is_said(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    kind: type[OSError],
    says: str,
):
    def refuse(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    (root / "t.csv").write_text("path\na.jpg\nb.jpg")
    with pytest.raises(kind, match=says):
        Table(root="memory://no", table=root / "t.csv")


def test_it_pickles_in_few_bytes_and_its_fingerprint_changes_with_the_list(root: Path):
    rows = ["path,label", *(f"{i:08d}.jpg,{i % 7}" for i in range(9999)), "a.jpg,3"]
    (root / "00000000.jpg").write_bytes(b"x")
    (root / "t.csv").write_text("\n".join(rows))
    source = Table(root=root, table=root / "t.csv")
    pickled = pickle.dumps(source)
    assert len(pickled) < 26 * len(source)  # 12 of them are the path
    again = pickle.loads(pickled)
    assert again[9999] == source[9999] and again[9999].image == b"image a"
    with pytest.raises(OSError, match=r"00000001\.jpg"):
        again[1]
    fingerprint = source.fingerprint()
    assert again.fingerprint() == fingerprint
    (root / "t.csv").write_text("\n".join([*rows[:-1], "a.jpg,4"]))
    assert Table(root=root, table=root / "t.csv").fingerprint() != fingerprint


def test_what_cannot_be_is_refused(root: Path):
    (root / "t.csv").write_text("file,class\na.jpg,1\n")
    (root / "wide.csv").write_text("path,label\na.jpg,1\na,b.jpg,1\n")
    (root / "latin.csv").write_bytes(b"path,label\n\xe4.jpg,1\n")
    (root / "empty.csv").write_text("path,label\n")
    (root / "nothing.csv").touch()
    (root / "away.csv").write_text("path\nimages/a.jpg\nimages/b.jpg\n")
    (root / "negative.csv").write_text("path,label\na.jpg,-2\n")
    (root / "t.parquet").write_bytes(b"no parquet")
    (root / "t.xlsx").touch()
    (root / "twice.csv").write_text("path,label,path\na.jpg,1,x\n")
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("t.csv", {}, "no column 'path'; it has file, class. .*--path"),
        ("t.csv", {"path": "file", "label": "klass"}, "no column 'klass'; it has .*--label"),
        ("t.csv", {"path": "file", "columns": ["x"]}, "no column 'x'"),
        ("wide.csv", {}, "line 3, has 3 values, but the header has 2"),
        ("latin.csv", {}, "UTF-8"),
        ("empty.csv", {}, "has no rows with a path"),
        ("nothing.csv", {}, "no column 'path'"),
        ("negative.csv", {}, "holds -2; expected numbers of classes from 0 up"),
        ("t.parquet", {}, "is not Parquet"),
        ("t.xlsx", {}, r"ends with .xlsx; expected .csv, .tsv or .parquet"),
        ("twice.csv", {}, "has two columns called 'path'; it has path, label"),
        (
            "t.csv",
            {"path": "file", "image": "class"},
            "--path file and --image class; expected one",
        ),
        ("t.csv", {"image": "file"}, "column 'file' of .* holds values, not an image a row"),
        ("t.csv", {"path": "file", "split": "train"}, "--split train chooses from a folder"),
        ("t*.csv", {"path": "x"}, "are not one table"),
        ("t.[cp]*", {}, r"means .csv and .parquet; expected one of them"),
    ]
    for name, flags, says in refused:
        with pytest.raises(ValueError, match=says):
            Table(root=root, table=root / name, **flags)
    with pytest.raises(FileNotFoundError, match=r"none of the first 2 files .*images/a.jpg"):
        Table(root=root, table=root / "away.csv")
    with pytest.raises(FileNotFoundError, match=r"no.csv is missing. Give the table"):
        Table(root=root, table=root / "no.csv")


def test_parquet_without_pyarrow_names_the_remedy(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "t.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow.*uv pip install pyarrow"):
        Table(root=root, table=root / "t.parquet")


def test_labels_that_are_no_names_are_refused():
    with pytest.raises(ValueError, match=r"column x holds '\[1, 2\]' \(a list\); expected"):
        Labels("column x").append([1, 2])
