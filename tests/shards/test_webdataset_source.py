"""Existing tars: written by webdataset, by tar, by tarfile; read back by place."""

import errno
import gzip
import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from braceexpand import braceexpand
from PIL import Image
from webdataset.compat import WebDataset as Oracle
from webdataset.writer import ShardWriter

from shards import as_webdataset
from shards.health.repair import repair
from shards.layout import ShardSet
from shards.shard_index import lines_of
from shards.source import Sample, Table, WebDataset
from shards.source.location import expand, find_tars
from shards.source.source import Names
from shards.source.tar_members import Damaged, entries
from shards.storage import LocalFolder
from shards.tar import components
from shards.writing.write import write as write_set
from tests.conftest import Pictures

Members = list[tuple[str, bytes]]


def jpeg(number: int) -> bytes:
    """Bytes that no other number has; a source does not look into images."""
    return b"\xff\xd8" + np.random.default_rng(number).bytes(50 + number % 700)


def write(path: Path, members: Members, kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def everything(source: WebDataset) -> list[Sample]:
    samples = [source[index] for index in range(len(source))]
    assert len({sample.key for sample in samples}) == len(samples)
    return samples


def number(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


# ── Tars of webdataset ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars by webdataset's own writer: 10, 10 and 5 samples."""
    (tmp_path / "data").mkdir()
    with ShardWriter(str(tmp_path / "data" / "%03d.tar"), maxcount=10, verbose=0) as writer:
        for index in range(25):
            sample = {
                "__key__": f"train/{index:05d}",
                "jpg": jpeg(index),
                "cls": index % 4,
                "json": {"size": [index, 2], "name": "ä"},
                "txt": f"caption {index}",
                "npy": np.zeros(3),
            }
            writer.write(sample)
    return tmp_path / "data"


def test_samples_are_those_that_webdataset_reads(shards: Path):
    source = WebDataset(root=shards)
    oracle = list(Oracle(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False))
    samples = everything(source)
    assert len(samples) == len(oracle) == 25
    for index, (sample, expected) in enumerate(zip(samples, oracle, strict=True)):
        assert sample.key == expected["__key__"] == f"train/{index:05d}"
        assert sample.image == expected["jpg"] == jpeg(index)
        assert (sample.label, sample.id) == (int(expected["cls"]), index)
        assert sample.metadata == {
            "file": f"{index // 10:03d}.tar/train/{index:05d}.jpg",
            "cls": str(index % 4),
            "json": json.loads(expected["json"]),
            "txt": expected["txt"].decode(),
        }
    assert source.classes == ["0", "1", "2", "3"]
    assert source.notes == ["components that are no text, and stay behind: npy (25)"]


@pytest.mark.parametrize(
    ("root", "count"),
    [
        ("{000..002}.tar", 25),
        ("*.tar", 25),
        ("00[12].tar", 15),
        ("{001,000}.tar", 20),
        ("002.tar", 5),
        ("../d?ta/{0,1}0*.tar", 25),
    ],
)
@pytest.mark.parametrize("protocol", ["", "file://"])
def test_patterns_and_protocols(shards: Path, root: str, count: int, protocol: str):
    source = WebDataset(root=f"{protocol}{shards}/{root}")
    assert len(everything(source)) == count
    assert source[0].image == jpeg(10 if root in ("00[12].tar", "{001,000}.tar") else 0) or (
        root == "002.tar" and source[0].image == jpeg(20)
    )


def test_braces_are_those_of_bash():
    for pattern in (
        "a",
        "{0..3}",
        "a{000..011}b",
        "{a,b}{1..2}",
        "x{,y}",
        "{a,b{1,2}}",
        "{3..1}",
        "s3://b/{08..11}.tar",
    ):
        assert sorted(expand(pattern)) == sorted(braceexpand(pattern)), pattern
    with pytest.raises(ValueError, match=r"\{abc\} in x\{abc\} is neither a range"):
        expand("x{abc}")


def test_a_split_is_a_folder_and_tars_come_in_the_order_people_count(tmp_path: Path):
    for name in ("10", "9", "1"):
        write(tmp_path / "train" / f"{name}.tar", [(f"{name}.jpg", b"x")])
    source = WebDataset(root=tmp_path, split="train")
    assert [sample.key for sample in everything(source)] == ["1", "9", "10"]
    assert source.split == "train"


def test_it_pickles_in_few_bytes_and_its_fingerprint_changes_with_the_list(tmp_path: Path):
    members = [(f"{i:06d}.{kind}", b"1") for i in range(5000) for kind in ("cls", "jpg")]
    write(tmp_path / "a.tar", members)
    source = WebDataset(root=str(tmp_path))
    pickled = pickle.dumps(source)
    assert len(pickled) < 37 * len(source)  # 6 of them are the key, 4 the label
    again = pickle.loads(pickled)
    assert (again[4999], again[77]) == (source[4999], source[77])
    assert again.fingerprint() == WebDataset(root=tmp_path).fingerprint() != b""
    write(tmp_path / "a.tar", members[:-2])
    assert again.fingerprint() != WebDataset(root=tmp_path).fingerprint()
    with pytest.raises(IndexError):
        source[5000]


# ── Tars of img2dataset, tar and viewrank ───────────────────────────────────────────────────────


def test_the_output_of_img2dataset_is_read_and_its_repeated_keys_told_apart(tmp_path: Path):
    for shard in range(2):
        members: Members = []
        for index in range(3):
            key = f"{index:09d}"  # restarts, as several runs put together have it
            facts = {"status": "success", "url": f"https://x/{index}", "caption": "c", "key": key}
            members += [
                (f"{key}.jpg", jpeg(10 * shard + index)),
                (f"{key}.json", json.dumps(facts).encode()),
                (f"{key}.txt", b"c"),
            ]
        write(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    source = WebDataset(root=tmp_path)
    samples = everything(source)
    assert [sample.key for sample in samples][2:4] == ["00000/000000002", "00001/000000000"]
    assert samples[4].image == jpeg(11)
    assert samples[4].metadata["json"]["url"] == "https://x/1"
    assert source.classes == [] and samples[0].label == -1
    assert source.notes == [
        "6 keys occur in several places: the name of the tar was put before them"
    ]


@pytest.mark.parametrize("options", [[], ["--format=pax"], ["--format=ustar"]])
def test_tars_that_tar_makes_of_a_folder_are_read(tmp_path: Path, options: list[str]):
    files: dict[str, bytes] = {}
    for label in ("cat", "dog", "v1.0"):
        folder = tmp_path / "in" / label
        folder.mkdir(parents=True)
        for index in range(5):
            files[f"{label}/{index}"] = (jpeg(len(files)), f"text {index}".encode())[0]
            (folder / f"{index}.JPG").write_bytes(files[f"{label}/{index}"])
            (folder / f"{index}.txt").write_text(f"text {index}")
    (tmp_path / "in" / ".hidden.jpg").touch()
    (tmp_path / "in" / "readme").touch()
    (tmp_path / "in" / "cat" / "link.jpg").symlink_to("0.JPG")
    (tmp_path / "in" / "cat" / "out.jpg").symlink_to(tmp_path / "in" / "cat" / "0.JPG")
    files["cat/link"] = files["cat/0"]
    command = ["tar", "cf", "x.tar", "--sort=name", *options, "-C", "in", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    source = WebDataset(root=tmp_path / "x.tar")
    samples = everything(source)
    assert {s.metadata["file"][6:-4]: s.image for s in samples} == files
    assert all(s.metadata.get("txt", "text k") == f"text {s.metadata['file'][-5]}" for s in samples)
    assert source.classes == [] and samples[0].key == "cat/0"  # a label is not invented
    assert source.notes == [
        "1 links that lead to no file of their tar, and other entries without content, passed over"
    ]

    labelled = WebDataset(root=tmp_path / "x.tar", label="folder")
    assert labelled.classes == ["cat", "dog", "v1.0"]
    assert all(labelled.classes[s.label] in s.metadata["file"] for s in everything(labelled))


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["data/cat/1", "data/dog/a/2"], ["cat", "dog"], [0, 1]),
        (["cat/1", "2"], ["cat"], [0, -1]),
        (["cat/1", "cat/2"], ["cat"], [0, 0]),
        (["c/x/1", "c/x/2", "c/3"], ["c"], [0, 0, 0]),
    ],
)
def test_folders_become_classes_on_demand(tmp_path: Path, names, classes, labels):
    write(tmp_path / "a.tar", [(f"{name}.jpg", b"x") for name in names])
    source = WebDataset(root=tmp_path, label="folder")
    assert source.classes == classes
    assert [sample.label for sample in everything(source)] == labels


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_not_ascii(tmp_path: Path, kind: int):
    keys = ["long" * 60 + str(i) for i in range(3)] + ["ä", os.fsdecode(b"\xff")]
    members = [
        (f"folder/{key}.{extension}", jpeg(index) if extension == "jpg" else b"5")
        for index, key in enumerate(keys)
        for extension in ("cls", "jpg")
    ]
    write(tmp_path / "a.tar", members, kind)
    samples = everything(WebDataset(root=tmp_path))
    assert [sample.image for sample in samples] == [jpeg(index) for index in range(5)]
    assert {sample.label for sample in samples} == {5}
    assert samples[2].metadata["file"] == f"a.tar/folder/{keys[2]}.jpg"


def test_shard_sets_of_our_own_keep_ids_labels_classes_and_metadata(tmp_path: Path):
    members: Members = []
    for index, label in ((7, 1), (3, 0), (5, -1)):
        key = f"k{index}"
        members += [
            (f"{key}.jpg", jpeg(index)),
            (f"{key}.y.i64", number(label)),
            (f"{key}.id.i64", number(index)),
            (f"{key}.json", json.dumps({"file": f"old/{index}.jpg", "folds": [1]}).encode()),
        ]
    write(tmp_path / "00000.tar", members)
    manifest = {"format": 2, "classes": ["cat", "dog", "eel"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    source = WebDataset(root=tmp_path)
    assert source.classes == ["cat", "dog", "eel"]
    assert [(s.id, s.label) for s in everything(source)] == [(7, 1), (3, 0), (5, -1)]
    assert source[0].metadata == {"file": "old/7.jpg", "folds": [1]}
    assert source.notes == ["1 samples have no label"]


def labelled(folder: Path, labels: list[Any], manifest: dict[str, Any] | None = None) -> Path:
    """A tar of images whose labels are numbers as ours, or texts as others'; None for no label."""
    members: Members = []
    for index, label in enumerate(labels):
        members.append((f"{index}.jpg", jpeg(index)))
        if isinstance(label, int):
            members.append((f"{index}.y.i64", number(label)))
        elif label is not None:
            members.append((f"{index}.cls", label.encode()))
    write(folder / "0.tar", members)
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_sets_with_different_classes_are_joined_by_name(tmp_path: Path):
    cats, birds = ["cat", "dog", "eel"], ["bird", "cat"]
    labelled(tmp_path / "a", [1, 0, -1], {"classes": cats})
    labelled(tmp_path / "b", [1, 0, -1], {"classes": birds})
    labelled(tmp_path / "c", ["fox", "dog", None])
    labelled(tmp_path / "d", [None, -1], {"classes": []})
    a, b = ["dog", "cat", None], ["cat", "bird", None]
    expected = {"a": a, "b": b, "c": ["fox", "dog", None], "d": [None, None]}
    for order in itertools.permutations("abcd"):
        source = WebDataset(root=f"{tmp_path}/{{{','.join(order)}}}/*.tar")
        names = [source.classes[s.label] if s.label >= 0 else None for s in everything(source)]
        assert names == [name for folder in order for name in expected[folder]]
        assert sorted(source.classes) == ["bird", "cat", "dog", "eel", "fox"]
        if order[:2] == ("a", "b"):  # the labels of the first stay what they are
            assert source.classes == ["cat", "dog", "eel", "bird", "fox"]
        assert any("5 in all: labels were joined by name" in note for note in source.notes)


def test_sets_with_equal_classes_or_numbers_for_names_keep_their_labels(tmp_path: Path):
    for name in ("a", "b"):
        labelled(tmp_path / name, [1, 0], {"classes": ["dog", "cat", "eel"]})
    labelled(tmp_path / "5", [4, 0], {"classes": [*"01234"]})
    labelled(tmp_path / "7", [6, 3], {"classes": [*"0123456"]})
    labelled(tmp_path / "none", [1, 2])
    same = WebDataset(root=f"{tmp_path}/{{a,b}}/*.tar")
    assert (same.classes, [s.label for s in everything(same)]) == (
        ["dog", "cat", "eel"],
        [1, 0] * 2,
    )
    numbers = WebDataset(root=f"{tmp_path}/{{5,7,none}}/*.tar")
    assert numbers.classes == [*"0123456"]
    assert [s.label for s in everything(numbers)] == [4, 0, 6, 3, 1, 2]
    assert not any("joined" in note for note in [*same.notes, *numbers.notes])


@pytest.mark.parametrize(
    ("other", "manifest", "says"),
    [
        ([2], None, "b have a label 2, without a name.*a: cat, dog; .*b: none named"),
        ([2], {"classes": ["x", "y"]}, "b have a label 2, without a name.*a: cat, dog; .*b: x, y"),
        ([0], {"classes": ["x", "y", "x"]}, "b have two classes called x.*: cat, dog; .*: x, y, x"),
        ([-2], {"classes": ["x", "y"]}, "b have a label -2, without a name"),
    ],
)
def test_classes_that_cannot_be_joined_by_name_are_refused(tmp_path: Path, other, manifest, says):
    labelled(tmp_path / "a", [1, 0], {"classes": ["cat", "dog"]})
    labelled(tmp_path / "b", other, manifest)
    with pytest.raises(ValueError, match=says) as refused:
        WebDataset(root=f"{tmp_path}/{{a,b}}/*.tar")
    for piece in ("Put the manifest.json", "--label", "one by one"):
        assert piece in str(refused.value)


def test_the_manifest_of_an_indexed_set_names_no_labels_in_tars(tmp_path: Path):
    labelled(tmp_path / "a", ["1", "0"], {"classes": ["by json", "others"], "indexed": True})
    assert WebDataset(root=tmp_path / "a").classes == ["0", "1"]


def test_a_manifest_that_may_not_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labelled(tmp_path / "a", [1, 0])
    read = LocalFolder.read

    def forbidding(self: LocalFolder, name: str, *part: Any) -> bytes:
        if not (tmp_path / "a" / name).exists():  # as a public bucket that may not be listed
            raise PermissionError(errno.EACCES, "403, message='Forbidden'", name)
        return read(self, name, *part)

    monkeypatch.setattr(LocalFolder, "read", forbidding)
    source = WebDataset(root=tmp_path / "a")
    assert [s.label for s in everything(source)] == [1, 0] and source.classes == ["0", "1"]


@pytest.fixture
def repaired(tmp_path: Path) -> ShardSet:
    """30 pictures, the first without its right label and the fourth without its header."""
    shard_set = write_set(Pictures(30), tmp_path / "set", samples_per_shard=15)
    lines = lines_of(shard_set, shard_set.manifest.shards[0])
    with open(shard_set.tars[0], "r+b") as tar:
        for line, name, before in ((lines[0], "y.i64", 0), (lines[3], "png", 512)):
            tar.seek(next(at for kind, at, *_ in components(line) if kind == name) - before)
            tar.write(b"\x07\x07")
    assert len(repair(shard_set.root).quarantined) == 2
    return shard_set


def test_what_a_repair_of_our_own_set_left_out_stays_out_and_nothing_else(repaired: ShardSet):
    source = WebDataset(root=repaired.root)
    expected = {s["id"]: np.asarray(s["image"]) for s in as_webdataset(repaired.root)}
    assert len(source) == len(expected) == 28
    for sample in everything(source):
        assert isinstance(sample.image, bytes) and sample.label == sample.id % 10
        pixels = np.asarray(Image.open(io.BytesIO(sample.image)))
        assert np.array_equal(pixels, expected.pop(sample.id))
    assert expected == {} and source.notes == []


def test_without_their_indexes_tars_of_ours_are_read_by_their_headers(
    repaired: ShardSet, tmp_path: Path
):
    names = ("00001.tar", "manifest.json")
    (tmp_path / "copied").mkdir()
    for name in names:
        shutil.copy(f"{repaired.root}/{name}", tmp_path / "copied")
    copied = WebDataset(root=tmp_path / "copied")
    assert everything(copied) == everything(WebDataset(root=f"{repaired.root}/00001.tar"))
    assert copied.fingerprint() == WebDataset(root=f"{repaired.root}/00001.tar").fingerprint()
    assert copied.notes == []

    first = WebDataset(root=f"{repaired.root}/00000.tar")
    index = Path(repaired.root) / "00000.idx"
    index.write_bytes(index.read_bytes().replace(b"png", b"jpg", 1))
    with pytest.raises(ValueError, match=r"00000.idx is not the file that was written.*--repair"):
        WebDataset(root=repaired.root)
    index.unlink()
    alone = WebDataset(root=f"{repaired.root}/00000.tar")
    assert len(first) == 13 and len(alone) < 13  # up to the header
    assert "damaged" in alone.notes[0]


def test_samples_that_the_manifest_of_ours_does_not_count_are_noted(tmp_path: Path):
    shard_set = write_set(Pictures(6), tmp_path / "set")
    line = lines_of(shard_set, shard_set.manifest.shards[0])[2]
    with open(shard_set.tars[0], "r+b") as tar:
        tar.seek(next(at for kind, at, *_ in components(line) if kind == "y.i64"))
        tar.write(b"\x07")
    repair(shard_set.root)
    assert len(WebDataset(root=shard_set.root)) == 5
    Path(shard_set.indexes[0]).unlink()
    source = WebDataset(root=shard_set.root)
    assert len(source) == 6
    assert source.notes == [
        "00000.tar has 6 samples, 5 by its manifest.json, and no .idx that fits: what a repair "
        "left out comes in again"
    ]


def test_bare_pixels_of_our_own_shards_are_pixels(tmp_path: Path):
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    shape = b"".join(map(number, pixels.shape))
    write(tmp_path / "a.tar", [("k.rgb", pixels.tobytes()), ("k.shape.i64", shape)])
    image = WebDataset(root=tmp_path)[0].image
    assert isinstance(image, np.ndarray) and np.array_equal(image, pixels)


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────


def decided(tmp_path: Path, names: list[str]) -> list[str]:
    write(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    source = WebDataset(root=tmp_path)
    assert any("last dot" in note for note in source.notes)
    for sample in everything(source):
        assert isinstance(sample.image, bytes)
        assert sample.metadata["file"] == f"a.tar/{sample.image.decode()}"
    return [source._keys[index] for index in range(len(source))]


@pytest.mark.parametrize(
    "names",
    [
        ["IMG.2020.01.jpg", "IMG.2020.02.jpg", "IMG.2021.01.jpg"],
        ["IMG.2020.01.jpg", "IMG.2020.02.jpg", "DSC.2021.01.jpg", "DSC.2021.02.jpg", "plain.jpg"],
        [f"a/IMG.{i}.png" for i in range(100)] + [f"b/IMG.{i}.png" for i in range(100)],
    ],
)
def test_dots_that_belong_to_keys_are_found(tmp_path: Path, names: list[str]):
    assert decided(tmp_path, names) == [name[:-4] for name in names]


def test_keys_with_dots_keep_their_other_components_and_can_be_set(tmp_path: Path):
    names = [f"v1.{i}_x.{kind}" for i in range(5) for kind in ("jpg", "cls")]
    write(tmp_path / "a.tar", [(name, b"3") for name in names])
    for keys in ("auto", "last_dot"):
        source = WebDataset(root=tmp_path, keys=keys)
        assert [sample.label for sample in everything(source)] == [3] * 5
        assert bool(source.notes) == (keys == "auto")
    with pytest.raises(ValueError, match=r"sample v1 in .* has several images: 0_x.jpg, 1_x.jpg"):
        WebDataset(root=tmp_path, keys="first_dot")


@pytest.mark.parametrize("samples", [2, 30])
def test_components_with_dots_are_no_keys(tmp_path: Path, samples: int):
    kinds = ("left.jpg", "right.jpg", "y.i64")
    members = [
        (f"{i}.{kind}", number(i) if kind == "y.i64" else f"{kind} {i}".encode())
        for i in range(samples)
        for kind in kinds
    ]
    write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError) as refused:
        WebDataset(root=tmp_path)
    for piece in ("sample 0 in", "left.jpg, right.jpg", "--image left.jpg", "--keys last_dot"):
        assert piece in str(refused.value)
    source = WebDataset(root=tmp_path, image="right.jpg")
    assert source[1].image == b"right.jpg 1" and source[1].label == 1
    assert source.notes == [f"components that are no text, and stay behind: left.jpg ({samples})"]


def test_an_example_of_the_convention_with_a_mask_takes_the_image_given(tmp_path: Path):
    members = [(f"{i}.{kind}", kind.encode()) for i in range(4) for kind in ("jpg", "seg.png")]
    write(tmp_path / "a.tar", members)
    assert WebDataset(root=tmp_path, image="jpg")[3].image == b"jpg"
    assert WebDataset(root=tmp_path, image="webp;seg.png")[3].image == b"seg.png"
    with pytest.raises(ValueError, match=r"no sample has a component gif; there are jpg \(4\)"):
        WebDataset(root=tmp_path, image="gif")


def test_kinds_of_images_may_differ_between_samples(tmp_path: Path):
    write(tmp_path / "a.tar", [("1.jpg", b"a"), ("2.PNG", b"b"), ("3.webp", b"c"), ("4.txt", b"")])
    source = WebDataset(root=tmp_path)
    assert [sample.image for sample in everything(source)] == [b"a", b"b", b"c"]
    assert source.notes == ["1 samples passed over: they have no image"]


def test_keys_that_recur_in_a_tar_or_need_escaping_become_unique(tmp_path: Path):
    write(tmp_path / "a.tar", [(n, b"") for n in ("1.jpg", "2.jpg", "1.jpg", "a b.jpg", "1.jpg")])
    write(tmp_path / "b" / "a.tar", [("1.jpg", b""), ("a b.jpg", b""), ("a/1/2.jpg", b"")])
    assert len(everything(WebDataset(root=tmp_path))) == 3
    assert len(everything(WebDataset(root=f"{tmp_path}/{{a,b/a}}.tar"))) == 6
    write(tmp_path / "b" / "a.tar", [(n, b"") for n in ("1.jpg", "2.jpg", "1.JPG", "a/1.jpg")])
    assert len(everything(WebDataset(root=tmp_path / "b"))) == 4


def test_files_of_a_sample_that_lie_apart_are_noted(tmp_path: Path):
    members = [(f"{i}.jpg", b"x") for i in range(3)] + [(f"{i}.cls", b"1") for i in range(3)]
    write(tmp_path / "a.tar", members)
    source = WebDataset(root=tmp_path)
    assert len(source) == 3
    # The last image and the first label of the same key would be side by side; these are not.
    assert "passed over: they have no image; that of 3 lies elsewhere" in source.notes[0]
    assert "tar --sort=name" in source.notes[0]


# ── Labels and metadata ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("label", "classes", "labels"),
    [
        ("cls", ["cat", "dog", "eel10"], [1, 0, -1, 2]),
        ("json:class", ["a2", "a10"], [0, 1, -1, 0]),
        ("json:number", ["0", "1", "2"], [2, 0, -1, 1]),
        (None, ["0", "1", "2", "3"], [3, 2, -1, 0]),
        ("y.i64", ["0", "1", "2", "3"], [3, 2, -1, 0]),
    ],
)
def test_labels_come_from_a_component_or_a_field(tmp_path: Path, label, classes, labels):
    facts: list[dict[str, Any]] = [{"class": "a2", "number": 2}, {"class": "a10", "number": 0}]
    facts += [{}, {"class": "a2", "number": 1}]
    members: Members = []
    for index, name in enumerate(["dog", "cat", "", "eel10"]):
        members += [(f"{index}.jpg", b"x"), (f"{index}.json", json.dumps(facts[index]).encode())]
        if index != 2:
            members += [(f"{index}.cls", name.encode() + b"\n")]
            members += [(f"{index}.y.i64", number([3, 2, 9, 0][index]))]
    write(tmp_path / "a.tar", members)
    source = WebDataset(root=tmp_path, label=label)
    assert (source.classes, [s.label for s in everything(source)]) == (classes, labels)
    assert "1 samples have no label" in source.notes


def test_numbers_as_pandas_writes_them_are_labels_as_in_a_table(tmp_path: Path):
    found = ["3.0", "NaN", "0.0", "1", "null", "2.0"]
    members: Members = []
    for index, value in enumerate(found):
        members += [(f"{index}.jpg", b"x"), (f"{index}.json", b'{"class": %b}' % value.encode())]
        (tmp_path / f"{index}.jpg").touch()
    write(tmp_path / "a.tar", members)
    rows = "".join(f"{index}.jpg,{value}\n" for index, value in enumerate(found))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    source, table = WebDataset(root=tmp_path, label="json:class"), Table(table=tmp_path / "t.csv")
    labels = [source.label(index) for index in range(len(found))]
    assert (source.classes, labels) == (["0", "1", "2", "3"], [3, -1, 0, 1, -1, 2])
    assert table.classes == source.classes
    assert [table.label(index) for index in range(len(found))] == labels


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("caption", r"has a label caption; there are jpg \(1\), json \(1\), y.i64 \(1\)"),
        ("json:class", "has a label json:class"),
        ("json:list", r"the label json of 1 in .*a\.tar is not the text expected there"),
        (None, "y.i64 of 1 in .*a.tar has 3 bytes; expected 8"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, label: str | None, says: str):
    write(tmp_path / "a.tar", [("1.jpg", b""), ("1.json", b'{"list":[1]}'), ("1.y.i64", b"abc")])
    with pytest.raises(ValueError, match=says) as refused:
        WebDataset(root=tmp_path, label=label)
    assert "label" in str(refused.value)


def test_only_text_is_metadata(tmp_path: Path):
    members = [
        ("1.json", b"{broken"),
        ("1.txt", b"\xff\xfe"),
        ("1.caption", "ä\n".encode()),
        ("1.jpg", b"x"),
        ("1.mp4", bytes(300_000)),
        ("1.text", b"a" * 70_000),
    ]
    write(tmp_path / "a.tar", members)
    source = WebDataset(root=tmp_path)
    assert source[0].metadata == {"file": "a.tar/1.jpg", "json": "{broken", "caption": "ä\n"}
    assert source.notes == ["components that are no text, and stay behind: mp4 (1), text (1)"]
    assert source._spans[0] < 10_000  # the film is not read for nothing


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_all_kinds_are_read_as_by_tarfile(tmp_path: Path, kind: int):
    random = np.random.default_rng(kind)
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        for index in range(300):
            name = "d" * int(random.integers(1, 140)) + f"/{index}.jpg"
            entry = tarfile.TarInfo(name)
            entry.mtime = (0, 1.5)[random.integers(2)]
            entry.type = (b"0", b"\0", b"5", b"2", b"1", b"7")[random.integers(6)]
            entry.linkname = "x" * int(random.integers(1, 90)) if entry.type in b"21" else ""
            entry.uname = "ä" if index % 3 else "root"
            entry.uid = 10_000_000 if kind != tarfile.USTAR_FORMAT and index % 5 == 0 else 5
            if kind == tarfile.PAX_FORMAT and index % 4 == 0:
                entry.pax_headers = {"comment": "y" * int(random.integers(1, 3000))}
            entry.size = int(random.integers(0, 2000)) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(random.bytes(entry.size)))
    with tarfile.open(tmp_path / "a.tar") as tar, (tmp_path / "a.tar").open("rb") as file:
        expected = [(e.name, e.isreg(), e.offset, e.offset_data, e.size) for e in tar]
        found = [
            (e.name, e.kind == "file", e.header, e.offset, e.size)
            for e in entries(file, file.seek(0, 2))
        ]
    assert found == expected and len(found) == 300


# ── Damage ──────────────────────────────────────────────────────────────────────────────────────


def test_a_truncated_tar_gives_the_samples_before_the_damage_wherever_it_is_cut(tmp_path: Path):
    members = [(f"{i}.{kind}", jpeg(i)) for i in range(4) for kind in ("jpg", "npy")]
    whole = write(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        headers = [entry.offset for entry in tar]
        ends = [entry.offset_data + entry.size for entry in tar]
    (tmp_path / "whole.tar").unlink()
    write(tmp_path / "a.tar", [("x.jpg", b"x")])
    cuts = {*range(700, headers[-1] + 512, 211), *headers[1:]}
    for cut in sorted(cuts):
        (tmp_path / "b.tar").write_bytes(whole[:cut])
        source = WebDataset(root=tmp_path)
        images = [sample.image for sample in everything(source)]
        # A sample is complete if another begins after it; a cut between files looks like an end.
        complete = sum(cut >= start + 512 for start in headers[2::2]) + (cut in headers)
        # Padding is not missed: where it alone is cut, the tar just has no end.
        complete += any(end <= cut < end + -end % 512 for end in ends)
        assert images == [b"x", *(jpeg(i) for i in range(complete))], cut
        assert source.notes[0].startswith("b.tar "), cut


def test_damage_within_a_tar_is_noted(tmp_path: Path):
    data = bytearray(write(tmp_path / "a.tar", [(f"{i}.jpg", b"x") for i in range(9)]).read_bytes())
    data[5 * 1024 + 20] ^= 255
    (tmp_path / "a.tar").write_bytes(data)
    source = WebDataset(root=tmp_path)
    assert len(source) == 4
    assert source.notes == [
        "a.tar is damaged at byte 5,120 (4 samples before that were taken)",
    ]


def header(name: str, size: int, *, kind: bytes = b"0", form: Any = tarfile.GNU_FORMAT) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(form)


@pytest.mark.parametrize(
    ("form", "size"),
    [
        (tarfile.GNU_FORMAT, -512),  # leads back to its own header
        (tarfile.GNU_FORMAT, -1024),
        (tarfile.GNU_FORMAT, -1),
        (tarfile.PAX_FORMAT, -512),
        (tarfile.PAX_FORMAT, -1536),  # the same
    ],
)
def test_a_size_below_zero_is_damage_and_not_read_for_ever(form: int, size: int):
    data = header("0.jpg", 0) + header("1.jpg", size, form=form) + bytes(1024)
    found = entries(io.BytesIO(data), len(data))
    assert next(found).name == "0.jpg"
    with pytest.raises(Damaged, match="is damaged at byte 512"):
        next(found)


def test_a_long_name_is_read_and_two_thousand_of_them_are_damage():
    longer = header("././@LongLink", 6, kind=tarfile.GNUTYPE_LONGNAME) + b"1.jpg".ljust(512, b"\0")

    def found(count: int) -> Iterator[Any]:
        data = header("0.jpg", 0) + longer * count + header("x.jpg", 0) + bytes(1024)
        return entries(io.BytesIO(data), len(data))

    assert [entry.name for entry in found(1)] == ["0.jpg", "1.jpg"]
    many = found(2000)
    assert next(many).name == "0.jpg"
    with pytest.raises(Damaged, match="is damaged at byte 512"):
        next(many)


def test_tars_put_together_without_tar_are_noted(tmp_path: Path):
    one = write(tmp_path / "a.tar", [("1.jpg", b"x")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(one + one)
    source = WebDataset(root=tmp_path)
    assert len(source) == 1 and "goes on after its end mark" in source.notes[0]


def test_files_that_are_no_tars_are_noted_or_refused(tmp_path: Path):
    write(tmp_path / "a.tar", [("1.jpg", b"x")])
    (tmp_path / "b.tar").touch()
    (tmp_path / "c.tar").write_bytes(b"no tar" * 1000)
    source = WebDataset(root=tmp_path)
    assert len(source) == 1
    assert source.notes[0] == "b.tar is empty (0 samples before that were taken)"
    assert source.notes[1] == "c.tar is no tar (0 samples before that were taken)"
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"b.tar, … \(2 tars\): no sample has an image.*empty"):
        WebDataset(root=tmp_path)


def test_compressed_tars_are_refused_with_a_remedy(tmp_path: Path):
    packed = gzip.compress(write(tmp_path / "a.tar", [("1.jpg", b"x")]).read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(packed)
    for root in (tmp_path, tmp_path / "*.gz", tmp_path / "b.tar.gz"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"compressed|not a folder"):
            WebDataset(root=root)
    (tmp_path / "b.tar.gz").rename(tmp_path / "b.tar")
    with pytest.raises(ValueError, match=r"b.tar is compressed.*gunzip .*b.tar"):
        WebDataset(root=tmp_path)


def test_what_is_not_there_is_refused(shards: Path):
    for root, says in (
        ("nowhere", "nowhere is not a folder"),
        ("{000..009}.tar", "003.tar is missing, and 6 more of 10"),
        ("x*.tar", r"no file is called .*x\*.tar"),
        ("no/*.tar", "data/no, in .*, is not a folder"),
        ("x.tar", "x.tar is missing"),
    ):
        with pytest.raises(FileNotFoundError, match=says):
            WebDataset(root=f"{shards}/{root}")
    with pytest.raises(FileNotFoundError, match=r"holds no .tar files. .* has the folders data"):
        WebDataset(root=shards.parent)
    with pytest.raises(ValueError, match="split into the pattern"):
        WebDataset(root=f"{shards}/*.tar", split="train")
    with pytest.raises(FileNotFoundError, match=r"val holds no .tar files"):
        WebDataset(root=shards.parent, split="val")


def test_a_tar_that_changed_underneath_is_an_unreadable_file(shards: Path):
    source = WebDataset(root=shards)
    data = (shards / "002.tar").read_bytes()
    (shards / "002.tar").write_bytes(data[: source._starts[24] + 100])
    assert source[20].image == jpeg(20)
    with pytest.raises(OSError, match=r"002.tar has become shorter"):
        source[24]
    (shards / "001.tar").write_bytes(bytes(len(data) * 3))
    with pytest.raises(OSError, match=r"001.tar has changed since"):
        source[10]
    (shards / "000.tar").unlink()
    with pytest.raises(OSError, match=r"000.tar"):
        source[0]


# ── A store ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_every_remote_source_reads_from_s3(bucket: str, shards: Path, class_folders):
    import s3fs

    from shards.source import COCO, ImageFolder, Source, Table

    store = s3fs.S3FileSystem()
    images = class_folders(classes=2, per_class=2)
    (images / "class_00" / "deep").mkdir()
    (images / "class_00" / "0000.jpg").rename(images / "class_00" / "deep" / "1.jpg")
    (images / "t.csv").write_text("path,label\nclass_01/0000.jpg,5\n")
    for local in (shards, images):
        store.put(str(local), f"bucket/{local.name}", recursive=True)
    pairs: list[tuple[Source, Source]] = [
        (WebDataset(root=shards), WebDataset(root=f"{bucket}/data")),
        (WebDataset(root=shards), WebDataset(root=f"{bucket}/d*/{{000..002}}.tar")),
        (ImageFolder(root=images), ImageFolder(root=f"{bucket}/images")),
        (COCO(root=images, split="class_01"), COCO(root=f"{bucket}/images", split="class_01")),
        (
            Table(root=images, table=images / "t.csv"),
            Table(root=f"{bucket}/images", table=f"{bucket}/images/t.csv"),
        ),
    ]
    for here, there in pairs:
        there = pickle.loads(pickle.dumps(there))
        assert [here[i] for i in range(len(here))] == [there[i] for i in range(len(there))]
        assert here.fingerprint() == there.fingerprint()
    with pytest.raises(FileNotFoundError, match=r"009.tar is missing"):
        WebDataset(root=f"{bucket}/data/{{000,009}}.tar")
    absent = [find_tars, lambda root, _: ImageFolder(root=root)]
    for find in absent:
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            find(f"{bucket}/nothing", "")


def test_names_of_a_few_bytes_hold_what_was_put_in():
    names = Names()
    texts = [f"name{i}" * (i % 4) for i in range(70_000)]
    for text in texts:
        names.append(text)
    assert [names[i] for i in range(0, 70_000, 997)] == texts[::997]


@pytest.mark.parametrize("count", [0, 3, 4, 11])  # in memory; a block, and more, in files
def test_names_are_the_same_wherever_they_are_and_after_pickling(
    monkeypatch: pytest.MonkeyPatch, count: int
):
    texts = [f"näme {i}" * (i % 3) for i in range(count)]
    whole, names = Names(), Names()
    for text in texts:
        whole.append(text)
    monkeypatch.setattr(Names, "_BLOCK", 4)
    for text in texts:
        names.append(text)
    again = pickle.loads(pickle.dumps(names))
    assert [again[i] for i in range(len(again))] == texts
    assert again.digest() == names.digest() == whole.digest()
    for each in (names, again):
        each.append("and on")
        assert [each[i] for i in range(len(each))] == [*texts, "and on"]
    assert again.digest() == names.digest() != whole.digest()


def test_short_lists_of_names_open_no_files():
    before = len(os.listdir("/proc/self/fd"))
    many = [Names() for _ in range(50)]
    for names in many:
        names.append("a name")
    assert len(os.listdir("/proc/self/fd")) <= before
    assert {names[0] for names in pickle.loads(pickle.dumps(many))} == {"a name"}
