"""Data sets that the library `datasets` saved; it reads them back beside us."""

import datetime
import io
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from shards.source import HuggingFace
from shards.source.reach import Outside
from shards.source.source import NoImage


def encoded(number: int, kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


FILES = [encoded(number, ("JPEG", "PNG", "WEBP")[number % 3]) for number in range(7)]


def made(**columns: tuple[list, object]) -> datasets.Dataset:
    """A data set with images, and with columns given as (values, feature)."""
    images = [{"bytes": data, "path": f"{i}.x"} for i, data in enumerate(FILES)]
    features = datasets.Features(
        {"picture": datasets.Image(), **{n: feature for n, (_, feature) in columns.items()}}
    )
    values = {name: values for name, (values, _) in columns.items()}
    return datasets.Dataset.from_dict({"picture": images, **values}, features=features)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    days = [datetime.datetime(2020, 1, i + 1) for i in range(7)]
    whole = made(
        kind=([2, 0, 1, 2, 0, 1, -1], datasets.ClassLabel(names=["cat", "dog", "eel"])),
        caption=([f"text {i}" for i in range(7)], datasets.Value("string")),
        score=([0.5] * 6 + [None], datasets.Value("float32")),
        when=(days, datasets.Value("timestamp[s]")),
        boxes=([[1, 2]] * 7, datasets.Sequence(datasets.Value("int64"))),
        blob=([b"x"] * 7, datasets.Value("binary")),
    )
    split = datasets.DatasetDict({"train": whole, "test": whole.select(range(2))})
    split.save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_files_labels_and_columns_are_those_that_datasets_reads(root: Path):
    source = HuggingFace(root=root, split="train")
    oracle = datasets.load_from_disk(str(root))["train"]
    assert len(source) == len(oracle) == 7
    assert source.classes == ["cat", "dog", "eel"]
    for index in range(7):
        sample, row = source[index], oracle[index]
        assert sample.image == FILES[index]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(FILES[index]))), row["picture"])
        assert (sample.label, sample.id) == (row["kind"], index)
        assert sample.metadata == {
            "caption": f"text {index}",
            "score": row["score"],
            "when": row["when"].isoformat(),
            "file": f"{index}.x",
        }
        json.dumps(sample.metadata)
    assert len({source[i].key for i in range(7)}) == 7
    assert len(HuggingFace(root=root, split="test")) == 2


def test_it_pickles_in_few_bytes_and_opens_in_each_process(root: Path):
    source = HuggingFace(root=str(root), split="train")
    assert source[3].image == FILES[3]
    pickled = pickle.dumps(source)
    assert len(pickled) < 1500
    again = pickle.loads(pickled)
    assert again[6] == source[6]
    assert again.fingerprint() == HuggingFace(root=root, split="train").fingerprint()
    assert again.fingerprint() != HuggingFace(root=root, split="test").fingerprint()
    with pytest.raises(IndexError):
        source[7]


def test_paths_stand_in_for_bytes(tmp_path: Path):
    paths = []
    for index, data in enumerate(FILES):
        paths.append(str(tmp_path / f"{index}.img"))
        Path(paths[-1]).write_bytes(data)
    photos = [*paths[:5], None, paths[6]]
    datasets.Dataset.from_dict({"photo": photos}).save_to_disk(tmp_path / "set")
    source = HuggingFace(root=tmp_path / "set", image="photo", allow_outside=str(tmp_path))
    assert source[4].image == FILES[4] and source[4].metadata == {"file": paths[4]}
    assert source.classes == [] and source[4].label == -1
    Path(paths[2]).unlink()
    with pytest.raises(OSError, match=r"2\.img"):
        source[2]
    with pytest.raises(NoImage, match=r"row 5 of .* has no image"):
        source[5]


@pytest.mark.parametrize(
    ("values", "kind", "classes", "labels"),
    [
        (["b10", "b2", None, "a", "a", "a", "a"], "string", ["a", "b2", "b10"], [2, 1, -1, 0]),
        ([3, 0, -1, 1, 0, 0, 0], "int64", ["0", "1", "2", "3"], [3, 0, -1, 1]),
    ],
)
def test_labels_may_be_names_or_numbers(tmp_path: Path, values, kind, classes, labels):
    made(what=(values, datasets.Value(kind))).save_to_disk(tmp_path / "set")
    source = HuggingFace(root=tmp_path / "set", label="what")
    assert (source.classes, [source[i].label for i in range(4)]) == (classes, labels)
    assert source[0].metadata == {"file": "0.x"}
    unlabelled = HuggingFace(root=tmp_path / "set")
    assert unlabelled.classes == [] and unlabelled[0].metadata["what"] == values[0]


def test_several_columns_ask_for_a_choice(tmp_path: Path):
    coarse, fine = (datasets.ClassLabel(names=list(names)) for names in ("ab", "xyz"))
    masks = [{"bytes": data, "path": None} for data in FILES]
    dataset = made(
        coarse=([0, 1] * 3 + [0], coarse), fine=([2] * 7, fine), mask=(masks, datasets.Image())
    )
    dataset.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"2 columns of type Image: picture, mask.*--image COLUMN"):
        HuggingFace(root=tmp_path / "set")
    with pytest.raises(ValueError, match=r"2 columns of type ClassLabel: coarse, fine.*--label"):
        HuggingFace(root=tmp_path / "set", image="picture")
    source = HuggingFace(root=tmp_path / "set", image="picture", label="fine")
    assert (source[1].label, source.classes) == (2, ["x", "y", "z"])
    assert source[1].metadata == {"coarse": "b", "file": "1.x"}
    with pytest.raises(ValueError, match="no column 'x'; it has picture, coarse, fine, mask"):
        HuggingFace(root=tmp_path / "set", image="x")


def test_what_is_not_there_is_refused(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no split ''; it has train, test. Give one as --split"):
        HuggingFace(root=root)
    with pytest.raises(ValueError, match="no split 'val'"):
        HuggingFace(root=root, split="val")
    with pytest.raises(ValueError, match="has no splits, so no 'val'"):
        HuggingFace(root=root / "train", split="val")
    assert len(HuggingFace(root=root / "train")) == 7
    with pytest.raises(FileNotFoundError, match="is no data set that save_to_disk wrote"):
        HuggingFace(root=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is no data set"):
        HuggingFace(root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not on this machine"):
        HuggingFace(root="s3://bucket/set")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="has no columns of type Image; it has text"):
        HuggingFace(root=tmp_path / "text")


def test_without_the_package_the_remedy_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="uv pip install datasets"):
        HuggingFace(root=root, split="train")


def test_a_column_that_is_no_list_of_images_or_labels_is_refused_by_what_it_holds(tmp_path: Path):
    several = [[{"bytes": data, "path": None}] for data in FILES]
    square = [np.zeros((8, 8), np.uint8)] * 7
    made(
        several=(several, datasets.Sequence(datasets.Image())),
        square=(square, datasets.Array2D((8, 8), "uint8")),
    ).save_to_disk(tmp_path / "set")
    for column, holds in (("several", "(List|Sequence) of Image"), ("square", "Array2D")):
        with pytest.raises(ValueError, match=f"column '{column}' of .* holds {holds}; expected"):
            HuggingFace(root=tmp_path / "set", image=column)
    with pytest.raises(ValueError, match=r"column 'picture' of .* holds Image; expected names"):
        HuggingFace(root=tmp_path / "set", image="picture", label="picture")


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_files_of_a_set_are_below_it(root: Path, tmp_path: Path):
    """What it says of its own files would otherwise open any other set of this machine."""
    made().save_to_disk(tmp_path / "secret")
    arrow = "data-00000-of-00001.arrow"
    (tmp_path / "linked").symlink_to(tmp_path / "secret" / arrow)
    state = root / "test" / "state.json"
    for name in (f"../../secret/{arrow}", str(tmp_path / "secret" / arrow), "../../linked"):
        edit_json(state, lambda j, name=name: j["_data_files"][0].update(filename=name))
        with pytest.raises(ValueError, match="read as a part of it, which is outside"):
            HuggingFace(root=root / "test")
        with pytest.raises(ValueError, match="read as a part of it, which is outside"):
            HuggingFace(root=root, split="train")
    edit_json(root / "dataset_dict.json", lambda j: j.update(splits=["train", "../secret"]))
    with pytest.raises(ValueError, match="read as a part of it, which is outside"):
        HuggingFace(root=root, split="train")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("state.json", lambda j: j.pop("_data_files")),
        ("state.json", lambda j: j["_data_files"][0].update(filename=7)),
        ("dataset_info.json", lambda j: j["features"]["picture"].update(_type="Nothing")),
        ("dataset_info.json", lambda j: j.update(features=3)),
    ],
)
def test_a_damaged_set_is_refused_in_a_line(
    root: Path, name: str, change: Callable[[dict], object]
):
    edit_json(root / "train" / name, change)
    with pytest.raises(ValueError, match="is damaged, or no data set that") as e:
        HuggingFace(root=root / "train")
    assert "\n" not in str(e.value)


def test_paths_lead_below_the_set_or_where_it_is_allowed(tmp_path: Path):
    inside, outside = tmp_path / "set", tmp_path / "elsewhere"
    outside.mkdir()
    for index, data in enumerate(FILES):
        (outside / f"{index}.img").write_bytes(data)
    (tmp_path / "secret").write_text("password")
    paths = [*(str(outside / f"{i}.img") for i in range(5)), str(tmp_path / "secret"), "6.img"]
    datasets.Dataset.from_dict({"photo": paths}).save_to_disk(inside)
    (inside / "6.img").write_bytes(FILES[6])
    with pytest.raises(ValueError, match=f"0.img is not below .*--allow_outside {outside}$"):
        HuggingFace(root=inside, image="photo")
    with pytest.raises(ValueError, match=f"secret is not below .*--allow_outside {tmp_path}$"):
        HuggingFace(root=inside, image="photo", allow_outside=str(outside))
    paths = [f"{i % 2 * 6}.img" for i in range(20)]
    datasets.Dataset.from_dict({"photo": [*paths, "../secret"]}).save_to_disk(tmp_path / "late")
    (tmp_path / "late" / "6.img").write_bytes(FILES[6])
    source = HuggingFace(root=tmp_path / "late", image="photo")
    assert source[1].image == FILES[6]
    with pytest.raises(Outside, match="is not below"):
        source[20]


def test_labels_without_images_are_those_of_the_samples(root: Path):
    source = HuggingFace(root=root, split="train")
    assert [source.label(i) for i in range(7)] == [source[i].label for i in range(7)]
    unlabelled = HuggingFace(root=root, split="train", label="caption")
    assert [unlabelled.label(i) for i in range(7)] == [unlabelled[i].label for i in range(7)]
