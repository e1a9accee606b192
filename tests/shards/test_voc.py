"""VOC: the official layout made here, read by torchvision beside us, and real images."""

import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image, ImageOps

from shards.image import decode, read_header
from shards.layout import ABSENT, PRESENT, UNKNOWN
from shards.shard_index import lines_of
from shards.source import VOC
from shards.source.voc_annotations import LARGEST, OFFICIAL, read_xml
from shards.tar import component
from shards.writing.write import write

REAL = Path(__file__).parents[3] / "shared" / "data" / "voc756.zip"
STEMS = ["000005", "000007", "000012"]
Box = tuple[float, float, float, float]


def xml(*objects: str, size: tuple[int, int] | None = (40, 30), more: str = "") -> str:
    sides = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height>"
    sides += "<depth>3</depth></size>" if size else ""
    return f"<annotation><filename>x.jpg</filename>{sides}{''.join(objects)}{more}</annotation>"


def thing(name: str, box: Box = (3, 4, 12, 20), difficult: object = 0, more: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    flags = f"<truncated>1</truncated><difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flags}<bndbox>{corners}</bndbox>{more}</object>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images: a dog and a difficult person; difficult dogs alone; a person and another."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    head = "<part><name>head</name><bndbox><xmin>5</xmin></bndbox></part>"
    told = [
        xml(thing("dog"), thing("person", (1, 1, 40, 30), 1, head + "<pose>Left</pose>")),
        xml(thing("dog", difficult=1), thing("dog", (2, 2, 2, 2), difficult=1)),
        xml(thing("person", difficult=1), thing("person"), thing("person", difficult=1)),
    ]
    for number, (stem, text) in enumerate(zip(STEMS, told, strict=True)):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    lists = {"trainval": STEMS, "train": STEMS[:1], "val": STEMS[1:]}
    lists["dog_train"] = ["000005  1"]
    for name, lines in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{n}\n" for n in lines))
    return root


def annotate(root: Path, text: str | bytes, stem: str = STEMS[0]) -> None:
    data = text.encode() if isinstance(text, str) else text
    (root / "Annotations" / f"{stem}.xml").write_bytes(data)


def told(source: VOC, index: int) -> dict[str, int]:
    categories = source[index].categories
    assert len(categories) == len(source.categories)
    return {n: c for n, c in zip(source.categories, categories, strict=True) if c != ABSENT}


def test_bytes_boxes_and_categories_are_kept(root: Path):
    source = VOC(root=root, split="trainval")
    assert [source[i].key for i in range(len(source))] == STEMS
    assert (source.classes, source.categories, source.notes) == ([], list(OFFICIAL), [])
    sample = source[0]
    assert sample.image == (root / "JPEGImages" / f"{STEMS[0]}.jpg").read_bytes()
    assert (sample.label, sample.id, sample.extension) == (-1, 0, "jpg")
    assert sample.metadata == {
        "file": f"JPEGImages/{STEMS[0]}.jpg",
        "width": 40,
        "height": 30,
        "annotations": [
            {
                "bbox": [2, 3, 10, 17],
                "category": "dog",
                "category_id": 12,
                "iscrowd": 0,
                "area": 170,
                "difficult": 0,
                "truncated": 1,
            },
            {
                "bbox": [0, 0, 40, 30],
                "category": "person",
                "category_id": 15,
                "iscrowd": 0,
                "area": 1200,
                "difficult": 1,
                "truncated": 1,
                "pose": "Left",
            },
        ],
    }


def test_an_image_of_difficult_objects_alone_is_neither_positive_nor_negative(root: Path):
    source = VOC(root=root, split="trainval")
    assert told(source, 0) == {"dog": PRESENT, "person": UNKNOWN}
    assert told(source, 1) == {"dog": UNKNOWN}
    assert told(source, 2) == {"person": PRESENT}


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_splits_and_objects_are_those_of_torchvision(root: Path, split: str):
    oracle = torchvision.datasets.VOCDetection(
        str(root.parent.parent), year="2007", image_set=split, download=False
    )
    source = VOC(root=root.parent, split=split)
    assert len(source) == len(oracle) and source.split == split
    for index in range(len(source)):
        objects = oracle[index][1]["annotation"]["object"]
        found = source[index].metadata["annotations"]
        assert [each["category"] for each in found] == [each["name"] for each in objects]
        assert [str(each["difficult"]) for each in found] == [e["difficult"] for e in objects]


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("box", [(1, 1, 40, 32), (5, 9, 5, 9), (13, 5, 40, 20)])
def test_a_box_holds_the_pixels_of_its_object_and_no_other(root: Path, box, scale: int):
    """The object is drawn where VOC says, counted from 1, the last pixel included."""
    left, top = (4 * (n - 1) + 1 for n in box[:2])
    right, bottom = (4 * n for n in box[2:])
    pixels = np.zeros((128, 160, 3), np.uint8)
    for row in range(1, 129):
        for column in range(1, 161):
            inside = left <= column <= right and top <= row <= bottom
            pixels[row - 1, column - 1] = 255 if inside else 0
    image = Image.fromarray(pixels).resize((160 // scale, 128 // scale), Image.Resampling.BOX)
    (root / "JPEGImages" / f"{STEMS[0]}.jpg").unlink()
    image.save(root / "JPEGImages" / f"{STEMS[0]}.png")
    annotate(root, xml(thing("cat", (left, top, right, bottom)), size=(160, 128)))
    source = VOC(root=root, split="train")
    facts = source[0].metadata
    assert (facts["width"], facts["height"]) == image.size
    (each,) = facts["annotations"]
    x, y, width, height = (int(side) for side in each["bbox"])
    assert each["bbox"] == [x, y, width, height] and each["area"] == width * height
    expected = np.zeros_like(np.asarray(image))
    expected[y : y + height, x : x + width] = 255
    assert np.array_equal(np.asarray(image), expected)
    assert any("boxes are scaled" in note for note in source.notes) == (scale > 1)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_boxes_are_in_the_image_that_exif_has_turned(
    root: Path, orientation: int, upright: bool, kind: str
):
    """Whether the program that wrote the XML looked at EXIF or not; its size tells."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[4:10, 7:9] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    (root / "JPEGImages" / f"{STEMS[0]}.jpg").unlink()
    options: Any = {"lossless": True} if kind == "webp" else {}
    image.save(path := root / "JPEGImages" / f"{STEMS[0]}.{kind}", exif=exif, **options)
    with Image.open(path) as stored:
        oracle = np.asarray(ImageOps.exif_transpose(stored))
    rows, columns = (np.unique(places) + 1 for places in oracle[..., 0].nonzero())
    box, size = (columns[0], rows[0], columns[-1], rows[-1]), oracle.shape[1::-1]
    if not upright and orientation > 4:
        box, size = (8, 5, 9, 10), (40, 20)
    annotate(root, xml(thing("cat", box), size=size))
    facts = VOC(root=root, split="train")[0].metadata
    assert (facts["height"], facts["width"]) == oracle.shape[:2]
    x, y, width, height = facts["annotations"][0]["bbox"]
    found = np.zeros_like(oracle)
    found[y : y + height, x : x + width] = 255
    assert np.array_equal(found, oracle)


def exif_of(kind: int, value: bytes) -> bytes:
    """EXIF with an orientation alone, of another kind than the numbers that it should be."""
    entry = struct.pack("<HHHI4sI", 1, 0x0112, kind, 1 if kind != 2 else 4, value, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + entry + struct.pack("<II", 1, 0)


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        exif_of(3, b"\0\0\0\0"),
        exif_of(3, b"\x09\0\0\0"),
        exif_of(3, b"\x2c\x01\0\0"),
        exif_of(2, b"six\0"),
        exif_of(5, b"\x1a\0\0\0"),  # 1 / 0
        b"no TIFF at all",
    ],
    ids=["0", "9", "300", "text", "fraction", "junk"],
)
def test_an_orientation_that_is_none_turns_no_box(root: Path, exif: bytes, kind: str):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[4:10, 6:10] = 255
    (root / "JPEGImages" / f"{STEMS[0]}.jpg").unlink()
    path = root / "JPEGImages" / f"{STEMS[0]}.{kind}"
    Image.fromarray(pixels).save(path, exif=exif)
    header = read_header(path.read_bytes())
    decoded = decode(header) if header else None
    assert decoded is not None and np.array_equal(decoded > 127, pixels > 127)  # not turned
    for scale in (1, 2):
        box = (6 * scale + 1, 4 * scale + 1, 10 * scale, 10 * scale)
        annotate(root, xml(thing("cat", box), size=(40 * scale, 20 * scale)))
        facts = VOC(root=root, split="train")[0].metadata
        assert (facts["width"], facts["height"]) == (40, 20)
        assert facts["annotations"][0]["bbox"] == [6, 4, 4, 6]


def test_a_size_with_its_sides_exchanged_scales_nothing(root: Path):
    annotate(root, xml(thing("cat", (1, 1, 38, 6)), size=(30, 40)))
    source = VOC(root=root, split="train")
    facts = source[0].metadata
    assert (facts["width"], facts["height"]) == (40, 30) and source.notes == []
    assert facts["annotations"][0]["bbox"] == [0, 0, 38, 6]


def test_a_folder_above_one_set_is_it_and_above_several_one_is_to_be_named(root: Path):
    for above in (root.parent, root.parent.parent):
        assert VOC(root=above, split="val").origin == str(root)
    shutil.copytree(root, root.parent / "VOC2012")
    for above in (root.parent, root.parent.parent):
        with pytest.raises(ValueError, match=r"several sets: .*VOC2007.*VOC2012.*--root, such as"):
            VOC(root=above, split="val")
    with pytest.raises(FileNotFoundError, match=r"has no JPEGImages/.*it holds Main"):
        VOC(root=root / "ImageSets")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        VOC(root=root / "nowhere")


def test_without_lists_or_with_all_every_image_is_taken(root: Path):
    assert len(VOC(root=root, split="all")) == 3
    shutil.rmtree(root / "ImageSets")
    source = VOC(root=root)
    assert (len(source), source.split) == (3, "all")
    with pytest.raises(FileNotFoundError, match=r"no ImageSets/Main/\*.txt, so no split 'train'"):
        VOC(root=root, split="train")


def test_a_split_that_is_not_there_names_those_that_are(root: Path):
    for split, says in (("test", "no split 'test'"), ("", "is in splits")):
        with pytest.raises(FileNotFoundError) as refused:
            VOC(root=root, split=split)
        for piece in (says, "its lists are train, trainval, val. Choose", "or all for all"):
            assert piece in str(refused.value)
    with pytest.raises(ValueError, match=r"dog_train.txt lists images for one class: '000005  1'"):
        VOC(root=root, split="dog_train")


def test_lists_may_have_endings_and_repeats_and_lead_nowhere_else(root: Path):
    (root / "JPEGImages" / "a b.jpg").write_bytes(b"")
    lines = ["\ufeff000007.jpg\r", "", "000005 ", "000007", "a b", "../../secret", "/etc/passwd"]
    (root / "ImageSets" / "Main" / "own.txt").write_text("\n".join(lines))
    source = VOC(root=root, split="own")
    files = [source[i].metadata["file"] for i in range(len(source))]
    assert files == [f"JPEGImages/{name}.jpg" for name in ("000005", "000007", "a b")]
    assert source.absent == 2
    assert source.notes == [
        "1 images are listed twice, and taken once",
        "2 of 5 images of own.txt are absent from JPEGImages/, such as ../../secret",
        "1 of 3 images have no XML in Annotations/: nothing is known of them",
    ]


def test_images_that_are_absent_count_as_missing(root: Path, tmp_path: Path):
    for stem in STEMS[1:]:
        (root / "JPEGImages" / f"{stem}.jpg").unlink()
    for split, where in (("all", "with an XML in Annotations/"), ("trainval", "of trainval.txt")):
        source = VOC(root=root, split=split)
        assert source.notes == [
            f"2 of 3 images {where} are absent from JPEGImages/, such as {STEMS[1]}"
        ]
        with pytest.raises(ValueError, match=r"2 of 3 samples .* are absent.*--max_missing 0.67"):
            write(source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"none of 2 images of val.txt is in .*JPEGImages, such"):
        VOC(root=root, split="val")


def test_nothing_is_known_of_an_image_without_xml(root: Path):
    (root / "Annotations" / f"{STEMS[1]}.xml").unlink()
    annotate(root, xml(), STEMS[2])
    source = VOC(root=root, split="trainval")
    assert source[1].metadata == {"file": f"JPEGImages/{STEMS[1]}.jpg"}
    assert set(source[1].categories) == {UNKNOWN} and len(source[1].categories) == 20
    assert source[2].metadata["annotations"] == [] and set(source[2].categories) == {ABSENT}
    shutil.rmtree(root / "Annotations")
    source = VOC(root=root, split="trainval")
    assert (source.categories, source[0].categories) == ([], b"")
    assert source.notes == ["3 of 3 images have no XML in Annotations/: nothing is known of them"]


def test_other_names_are_the_categories_of_all_splits_alike(root: Path):
    annotate(root, xml(thing(" fire\n truck "), thing("dog")))
    for split in ("train", "val"):
        assert VOC(root=root, split=split).categories == ["dog", "fire truck", "person"]
    source = VOC(root=root, split="train")
    assert told(source, 0) == {"dog": PRESENT, "fire truck": PRESENT}
    numbers = {e["category"]: e["category_id"] for e in source[0].metadata["annotations"]}
    assert numbers == {"dog": 1, "fire truck": 2}


def test_what_people_write_otherwise_is_read(root: Path):
    """Fractions (VOC2012 has one), words for flags, no size, another encoding."""
    loose = "<object><name>cat</name><bndbox><ymax>9</ymax><xmin>45.70000076293945</xmin>"
    loose += "<xmax>48</xmax><ymin>1e0</ymin></bndbox></object>"
    text = '<?xml version="1.0" encoding="utf-16"?>' + xml(
        loose, thing("dog", difficult="True"), thing("cow", difficult="Unspecified"), size=None
    )
    annotate(root, text.encode("utf-16"))
    cat, dog, cow = VOC(root=root, split="train")[0].metadata["annotations"]
    assert cat["bbox"] == [44.7, 0, 3.3, 9] and cat["difficult"] == 0
    assert (dog["difficult"], cow["difficult"]) == (1, 0)


BOMB = "<!DOCTYPE a [<!ENTITY b 'ha'><!ENTITY c '&b;&b;'>]>" + xml(thing("&c;"))
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + xml(thing("&b;"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is not XML (no element found: line 1, column 0)"),
        (xml(thing("cat"))[:80], "it is not XML ("),
        ("<html></html>", "it is <html>; expected <annotation>"),
        (xml(thing("")), "it has an object without a name"),
        (xml("<object><name>cat</name></object>"), "bndbox/xmin is ''; expected a number"),
        (xml(thing("cat", (1, 2, float("nan"), 4))), "bndbox/xmax is 'nan'; expected"),
        (xml(thing("cat", (1, 2, 3, float("1e300")))), "bndbox/ymax is '1e+300'; expected"),
        (xml(thing("cat", (9, 2, 3, 4))), "a box of cat ends before it begins: xmin, ymin, xmax,"),
        (xml(size=None, more="<size><width>wide</width></size>"), "size/width is 'wide'; expected"),
        (BOMB, "it has a DOCTYPE, which no annotation needs"),
        (BOMB.encode("utf-16"), "it has a DOCTYPE, which no annotation needs"),
        (OUTSIDE, "it has a DOCTYPE, which no annotation needs"),
        (xml(thing("&b;")), "it is not XML (undefined entity"),
        (xml(more=" " * LARGEST), "it has more than 4,194,304 bytes"),
        ('<?xml version="1.0" encoding="no-such"?><a/>', "it is not XML ("),
        ("<a>" * 50_000, "it is not XML (no element found"),
    ],
)
def test_xml_that_is_no_annotation_is_named_with_the_cause(root: Path, content: Any, says: str):
    annotate(root, content)
    with pytest.raises(ValueError) as refused:
        VOC(root=root, split="val")  # whose own files are sound: categories are those of all
    said = str(refused.value)
    assert f"{root}/Annotations: 1 of 3 files are no annotations; 000005.xml: {says}" in said
    assert "\n" not in said and "remove it: its image is then kept without" in said
    (root / "Annotations" / "000005.xml").unlink()
    assert len(VOC(root=root, split="trainval")) == 3


def test_deep_xml_that_is_whole_is_read():
    deep = "<a>" * 50_000 + "</a>" * 50_000
    assert read_xml(xml(thing("cat"), more=deep).encode())["annotations"][0]["category"] == "cat"


def test_two_images_of_one_xml_and_folders_below_are_said(root: Path):
    (root / "JPEGImages" / "more").mkdir()
    assert (
        "1 folders in JPEGImages/ are passed over, such as more"
        in VOC(root=root, split="val").notes[0]
    )
    Image.new("RGB", (8, 8)).save(root / "JPEGImages" / f"{STEMS[0]}.png")
    with pytest.raises(ValueError, match=r"holds 000005.jpg and 000005.png, whose XML would be"):
        VOC(root=root, split="val")
    for path in (root / "JPEGImages").glob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"JPEGImages holds no images \(jpg, jpeg, png"):
        VOC(root=root, split="val")


def test_it_reads_from_a_store_as_from_a_disk_and_pickles(root: Path):
    local, remote = VOC(root=root, split="val"), VOC(root=f"file://{root.parent}", split="val")
    again = pickle.loads(pickle.dumps(remote))
    assert [local[i] for i in range(2)] == [again[i] for i in range(2)]
    assert local.fingerprint() == again.fingerprint()
    annotate(root, xml(thing("cow")), STEMS[2])
    assert VOC(root=root, split="val").fingerprint() != local.fingerprint()


def test_an_image_that_is_none_keeps_what_its_xml_says(root: Path):
    (root / "JPEGImages" / f"{STEMS[0]}.jpg").write_bytes(b"<html>")
    source = VOC(root=root, split="train")
    assert source[0].metadata["annotations"][0]["bbox"] == [2, 3, 10, 17]


@pytest.mark.skipif(not REAL.exists(), reason=f"needs real VOC images: {REAL} is absent")
def test_real_boxes_are_written_in_the_pixels_of_their_images(tmp_path: Path):
    with zipfile.ZipFile(REAL) as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "voc"
    source = VOC(root=root)
    assert len(source) == 756 and source.categories == list(OFFICIAL)
    assert source.notes[0].startswith("boxes are scaled") and len(source.notes) == 1
    shard_set = write(source, tmp_path / "out", limit=150)
    assert shard_set.manifest.categories == OFFICIAL
    checked = 0
    for shard in shard_set.manifest.shards:
        with shard_set.folder.open(f"{shard.name}.tar") as tar:
            for line in lines_of(shard_set, shard):
                facts = json.loads(component(tar, line, "json") or b"")
                with Image.open(root / facts["file"]) as image:
                    assert (facts["width"], facts["height"]) == image.size
                text = (root / "Annotations" / f"{Path(facts['file']).stem}.xml").read_text()
                told = component(tar, line, "y.u8") or b""
                checked += agree(facts, dict(zip(OFFICIAL, told, strict=True)), text)
    assert checked > 200


def agree(facts: dict[str, Any], told: dict[str, int], text: str) -> int:
    """Compare what was written of an image with its XML, taken apart by patterns alone."""
    text = re.sub(r"<part>.*?</part>", "", text, flags=re.S)

    def numbers(name: str) -> list[int]:
        return [int(number) for number in re.findall(rf"<{name}>(\d+)</{name}>", text)]

    across, down = facts["width"] / numbers("width")[0], facts["height"] / numbers("height")[0]
    names = re.findall(r"<object>\s*<name>(\w+)", text)
    corners = zip(*map(numbers, ("xmin", "ymin", "xmax", "ymax")), strict=True)
    for each, name, said in zip(facts["annotations"], names, corners, strict=True):
        x, y, width, height = each["bbox"]
        box = x / across + 1, y / down + 1, (x + width) / across, (y + height) / down
        assert each["category"] == name and box == pytest.approx(said, abs=0.01)
    flags = list(zip(names, numbers("difficult"), strict=True))
    expected = dict.fromkeys(OFFICIAL, ABSENT) | dict.fromkeys(names, UNKNOWN)
    assert told == expected | {name: PRESENT for name, difficult in flags if not difficult}
    return len(names)
