"""Multi-label sets: what an image shows gets from annotations through tars to DALI, unchanged."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import Images
from shards import as_webdataset
from shards.health.repair import repair
from shards.health.verification import undecodable, verify
from shards.layout import CATEGORIES, Manifest, ShardSet, open_shards
from shards.shard_index import check_index, lines_of
from shards.source import COCO, WebDataset
from shards.source.pairs import Pairs
from shards.source.source import Sample
from shards.subset.selection import select
from shards.survey import rows_of
from shards.tar import component
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures

NAMES = ("cat", "dog", "a bird", "été", "person")


def shown(sample: int) -> bytes:
    """What sample i shows: fixed, different, all three values."""
    return bytes(np.random.default_rng(sample).integers(0, 3, len(NAMES), dtype=np.uint8))


class Several(Pictures):
    """Pictures that show several things at once."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.classes, self.categories = [], NAMES

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), label=-1, categories=shown(index))


@pytest.fixture(params=["png", "raw"])
def shard_set(request: pytest.FixtureRequest, tmp_path: Path) -> ShardSet:
    how = Preparation(encoding=request.param)
    return write(Several(20), tmp_path / "set", samples_per_shard=8, preparation=how)


def in_tars(shard_set: ShardSet) -> Iterator[tuple[int, bytes | None]]:
    """Yield each sample's id and stored categories, by table and index."""
    for shard in shard_set.manifest.shards:
        rows, lines = rows_of(shard_set, shard), lines_of(shard_set, shard)
        with shard_set.tar_folder.open(f"{shard.name}.tar") as tar:
            for row, line in zip(rows, lines, strict=True):
                yield row.id, component(tar, line, CATEGORIES)


def by_dali(shard_set: ShardSet, **part: Any) -> dict[int, bytes]:
    found = {}
    for batch in Images(shard_set, size=16, batch_size=7, **part):
        assert batch.category_BK is not None and (batch.label_B == -1).all()
        categories: NDArray[np.uint8] = batch.category_BK.numpy()
        found |= {int(i): bytes(c) for i, c in zip(batch.id_B, categories, strict=True)}
    return found


def test_dali_and_as_webdataset_read_what_the_source_said(shard_set: ShardSet) -> None:
    expected = {sample: shown(sample) for sample in range(20)}
    assert shard_set.manifest.categories == NAMES and shard_set.manifest.classes == []
    assert dict(in_tars(shard_set)) == expected
    assert by_dali(shard_set) == expected
    halves = [by_dali(shard_set, rank=rank, world_size=2) for rank in (0, 1)]
    assert halves[0].keys().isdisjoint(halves[1]) and halves[0] | halves[1] == expected
    stream = {each["id"]: bytes(each["categories"]) for each in as_webdataset(shard_set.root)}
    assert stream == expected


def test_copies_pairs_and_subsets_keep_the_categories(shard_set: ShardSet, tmp_path: Path) -> None:
    copy = write(WebDataset(root=shard_set.root), tmp_path / "copy", seed=1)
    partners = np.roll(np.arange(20), 1)
    source = Pairs(shard_set=shard_set, partners=partners, scores=np.ones(20))
    encoding = "raw" if shard_set.manifest.raw else "original"
    pairs = write(source, tmp_path / "pairs", preparation=Preparation(encoding=encoding))
    half = select(shard_set, "half", fraction=0.5)
    assert isinstance(half, ShardSet) and len(half) == 10
    for each in (copy, pairs, half):
        assert each.manifest.categories == NAMES
        assert by_dali(each) == {sample: shown(sample) for sample in by_dali(each)}
        assert verify(each.root, deep=True).problems == []


def test_tars_without_their_manifest_say_that_categories_stay_behind(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    for tar in shard_set.tars:
        (tmp_path / "foreign" / Path(tar).name).write_bytes(Path(tar).read_bytes())
    source = WebDataset(root=tmp_path / "foreign")
    assert list(source.categories) == [] and source[0].categories == b""
    assert f"components that are no text, and stay behind: {CATEGORIES} (20)" in source.notes


def test_sets_of_the_same_categories_are_joined_and_of_others_stay_behind(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(Several(6), tmp_path / name)
    (tmp_path / "a").rename(tmp_path / "old")
    joined = WebDataset(root=f"{tmp_path}/{{old,b}}/*.tar")
    assert list(joined.categories) == list(NAMES) and len(joined) == 12
    source = Several(6)
    source.categories = NAMES[::-1]
    write(source, tmp_path / "a")
    mixed = WebDataset(root=f"{tmp_path}/{{a,b}}/*.tar")
    assert list(mixed.categories) == [] and mixed[0].categories == b""
    assert any(f"stay behind: {CATEGORIES} (12)" in note for note in mixed.notes)


def test_repair_makes_the_same_manifest_again(shard_set: ShardSet) -> None:
    path = Path(shard_set.root) / "manifest.json"
    text = path.read_text()
    path.write_text("{}")
    repair(shard_set.root)
    assert path.read_text() == text
    (Path(shard_set.root) / "plan.json").write_text("{}")  # from the manifest
    (Path(shard_set.root) / "00000.jsonl").unlink()  # from the tar
    repair(shard_set.root, deep=True)
    path.write_text("{}")
    repair(shard_set.root)
    assert open_shards(shard_set.root).manifest.categories == NAMES
    assert dict(in_tars(open_shards(shard_set.root))) == {i: shown(i) for i in range(20)}


def test_categories_that_do_not_fit_are_found(shard_set: ShardSet) -> None:
    shard = shard_set.manifest.shards[0]
    data = shard_set.folder.read(f"{shard.name}.idx")
    check_index(data, shard, categories=5)
    with pytest.raises(ValueError, match=r"no index .* and categories of 4"):
        check_index(data, shard, categories=4)
    pixels = {"rgb": bytes(3), "shape.i64": b"".join(n.to_bytes(8, "little") for n in (1, 1, 3))}
    files = {**pixels, CATEGORIES: b"\0\1\2\0\0"}
    assert undecodable(files, categories=5) is None and undecodable(pixels) is None
    assert undecodable(files, categories=6) == "has 5 categories; the manifest names 6"
    assert undecodable(pixels, categories=5) == "has 0 categories; the manifest names 5"
    wrong = undecodable({**files, CATEGORIES: b"\0\1\2\3\0"}, categories=5)
    assert wrong is not None and wrong.startswith("has a category of 3; expected 0")


def test_a_damaged_byte_is_found_as_in_any_component(shard_set: ShardSet) -> None:
    shard, tar = shard_set.manifest.shards[1], Path(shard_set.tars[1])
    words = lines_of(shard_set, shard)[3].split()
    data, at = bytearray(tar.read_bytes()), int(words[words.index(CATEGORIES) + 1])
    data[at] ^= 1
    tar.write_bytes(data)
    problems = [str(problem) for problem in verify(shard_set.root, deep=True).problems]
    assert any("has other bytes than were written" in problem for problem in problems)


def test_a_set_without_categories_has_the_manifest_and_plan_it_had(
    make_shard_set: MakeShardSet,
) -> None:
    plain = make_shard_set(20)
    for name in ("manifest.json", "plan.json"):
        assert "categories" not in plain.folder.read(name).decode()
    (batch, *_) = Images(plain, size=16)
    assert batch.category_BK is None


def test_categories_and_classes_together_are_refused(shard_set: ShardSet) -> None:
    both = replace(shard_set.manifest, classes=["cat"]).to_json()
    with pytest.raises(ValueError, match="contradicts itself: it has categories and"):
        Manifest.from_json(both)


# ── COCO ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Four images: a dog twice and a crowd, nothing, one category without a name, not annotated."""
    root = tmp_path / "coco"
    (root / "val").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(root / "val" / f"{number}.png")
    boxes = [(0, 18, 0), (0, 18, 0), (0, 100, 1), (2, 7, 0)]  # image, category, crowd
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "iscrowd": crowd}
            for n, (image, category, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": n} for i, n in ((100, "zebra"), (18, "dog"), (9, "boat"))],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def test_coco_s_categories_are_in_the_order_of_their_ids(coco: Path) -> None:
    source = COCO(root=coco, split="val")
    assert list(source.categories) == ["boat", "dog", "zebra"] and source.classes == []
    found = [source[index].categories for index in range(4)]
    # A crowd counts; an unknown category has no column; an unlisted image is not counted.
    assert found == [b"\0\1\1", b"\0\0\0", b"\0\0\0", b"\2\2\2"]


def test_coco_counts_as_pycocotools_does(coco: Path, tmp_path: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    theirs = pycocotools.COCO(str(coco / "annotations" / "instances_val.json"))
    source = COCO(root=coco, split="val")
    ids = sorted(theirs.getCatIds())
    assert [each["name"] for each in theirs.loadCats(ids)] == list(source.categories)
    for column, category in enumerate(ids):
        images = {index for index in range(3) if source[index].categories[column] == 1}
        assert images == set(theirs.getImgIds(catIds=[category]))


def test_a_split_without_annotations_of_objects_is_no_multi_label_set(coco: Path) -> None:
    captions = {"images": [], "annotations": []}
    (coco / "annotations" / "instances_val.json").unlink()
    (coco / "annotations" / "captions_val.json").write_text(json.dumps(captions))
    source = COCO(root=coco, split="val")
    assert list(source.categories) == [] and source[0].categories == b""
