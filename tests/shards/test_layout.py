"""Opening a shard set: what is whole opens fast, what is not is refused with a remedy."""

import json
import os
import sys
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import jsonschema
import pytest

import shards
from shards.layout import FORMAT, File, Manifest, Shard, ShardSet, open_shards
from shards.manifest_schema import schema as current_schema
from shards.sealed_json import seal, unseal
from shards.source import ImageFolder
from shards.writing.write import write


@pytest.fixture
def shard_set(class_folders, tmp_path: Path) -> ShardSet:
    return write(ImageFolder(root=class_folders()), tmp_path / "out", samples_per_shard=5)


@pytest.fixture
def root(shard_set: ShardSet) -> Path:
    return Path(shard_set.root)


def edit(shard_set: ShardSet, **changes: Any) -> None:
    """Change a manifest as another program might, with a digest that fits."""
    path = Path(shard_set.root) / "manifest.json"
    path.write_text(seal({**unseal(path.read_text()), **changes}, indent=1))


def refusal(root: Path | str) -> str:
    """The message, which must be of two lines at most, each worth reading."""
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        open_shards(root)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_what_was_written_opens_with_all_its_parts(shard_set: ShardSet):
    opened = open_shards(shard_set.root)
    assert opened == shard_set
    assert len(opened) == 12 == sum(shard.samples for shard in opened.manifest.shards)
    assert [Path(tar).name for tar in opened.tars] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [Path(idx).name for idx in opened.indexes] == ["00000.idx", "00001.idx", "00002.idx"]
    assert all(Path(path).is_file() for path in opened.tars + opened.indexes)
    assert opened.manifest.classes == ["class_00", "class_01", "class_02"]
    assert opened.manifest.extensions == ["jpg"]


def test_a_manifest_survives_its_json(shard_set: ShardSet):
    manifest = replace(shard_set.manifest, classes=["ä", "b c"], command="python -m 'x y'")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path):
    message = refusal(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is not a folder of shards: it does not exist" in message
    assert "python -m tools.shard" in message


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "is not a folder of shards: it does not exist, or is a file" in refusal(
        tmp_path / "file"
    )


def test_an_empty_folder_is_refused(tmp_path: Path):
    message = refusal(tmp_path)
    assert f"{tmp_path} holds no files; expected a shard set" in message
    assert "Make one: python -m tools.shard" in message


def test_a_folder_of_other_things_is_refused(class_folders):
    message = refusal(class_folders() / "class_00")
    assert "holds no shards (0000.jpg, …) and no manifest.json" in message
    assert "--out" in message


def test_tars_without_a_manifest_are_refused(root: Path):
    (root / "manifest.json").unlink()
    message = refusal(root)
    assert "holds 3 shards but no manifest.json, which is written last" in message
    assert "Repeat the command that wrote it (python -m tools.shard): it goes on there" in message
    (root / "plan.json").unlink()
    message = refusal(root)
    assert "holds 3 tar files but no manifest.json: they come from elsewhere" in message
    assert f"python -m tools.shard webdataset --root {root} --out DIR" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b'{"format": 1, "sour', "is not JSON"),
        (b"\xff\xfe\x00", "is not text"),
        (b"[]", "is not a JSON object"),
        (b'{"format": 1}', 'has no "digest", so it does not come from this version'),
        (seal({"format": FORMAT}).encode(), "lacks source, split, samples, classes, encoding"),
    ],
)
def test_a_broken_manifest_is_refused(root: Path, content: bytes, says: str):
    (root / "manifest.json").write_bytes(content)
    message = refusal(root)
    assert f"{root / 'manifest.json'} {says}" in message
    assert f"repair the set: python -m tools.verify {root} --repair true" in message


def test_a_manifest_edited_by_hand_is_refused(root: Path):
    path = root / "manifest.json"
    path.write_text(path.read_text().replace("class_01", "cat"))
    assert "was changed after it was written: its digest does not fit" in refusal(root)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "0/1", "", "٣"])
def test_a_manifest_names_nothing_outside_its_folder(shard_set: ShardSet, name: str):
    shards_ = [{**s, "name": name} for s in _entries(shard_set)]
    edit(shard_set, shards=shards_)
    assert f"names a shard {name!r}; expected digits only" in refusal(shard_set.root)


@pytest.mark.parametrize("parent", ["..", "/", "../../..", "s3://elsewhere"])
def test_a_subsets_tars_are_two_folders_up_or_nowhere(shard_set: ShardSet, parent: str):
    edit(shard_set, parent=parent)
    assert f"has its tars in {parent!r}; expected" in refusal(shard_set.root)


def _entries(shard_set: ShardSet) -> list[dict[str, Any]]:
    return json.loads((Path(shard_set.root) / "manifest.json").read_text())["shards"]


def test_a_manifest_of_another_format_is_refused(shard_set: ShardSet):
    edit(shard_set, format=FORMAT + 2)
    message = refusal(shard_set.root)
    assert f"has format {FORMAT + 2}, but this version of viewrank reads {FORMAT} and 3" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": "12"}, "is damaged: samples is '12', expected int"),
        ({"classes": "cat"}, "is damaged: classes is 'cat', expected a list"),
        ({"extensions": [1]}, "is damaged: extensions[0] is 1, expected str"),
        ({"statistics": {}}, "lacks statistics.median_shorter_side"),
        ({"shards": [{"name": "00000"}]}, "lacks shards[0].samples, shards[0].tar"),
        ({"remarks": {"a": "b"}}, "is damaged: remarks.a is 'b', expected int"),
        ({"shards": [3]}, "is damaged: shards[0] is 3, expected an object"),
        ({"partners": 1}, "is damaged: partners is 1, expected bool"),
        ({"seed": True}, "is damaged: seed is True, expected int"),
        ({"seed": -1}, "is damaged: seed is -1, expected int >= 0"),
        ({"samples": 13}, "contradicts itself: samples is not the sum over its shards"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(shard_set: ShardSet, changes: Any, says: str):
    edit(shard_set, **changes)
    assert says in refusal(shard_set.root)


@pytest.mark.parametrize("suffix", ["tar", "idx", "jsonl"])
def test_a_missing_file_is_refused(root: Path, suffix: str):
    path = root / f"00001.{suffix}"
    path.unlink()
    message = refusal(root)
    assert f"{path} is missing" in message
    assert "Copy it again, or repair the set" in message


@pytest.mark.parametrize("suffix", ["tar", "idx", "jsonl"])
def test_a_truncated_file_is_refused(root: Path, suffix: str):
    path = root / f"00002.{suffix}"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    message = refusal(root)
    assert f"{path} has {size - 1:,} bytes, but manifest.json says {size:,}" in message
    assert "it is truncated. Copy it again" in message


def test_a_tar_that_is_too_long_is_refused(root: Path):
    with open(root / "00000.tar", "ab") as file:
        file.write(bytes(512))
    assert "it is not the file that was written" in refusal(root)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("github://a:b@main/x", "its store wants more than a path: org, repo"),
        ("ftp://127.0.0.1/x", "its store wants more than a path: host"),
        ("reference://x", "cannot be opened"),
        ("async_wrapper://x", "cannot be opened"),
        ("nosuch://x", "cannot be opened: Protocol not known: nosuch"),
        ("://x", "is not a folder of shards"),
        ("s3:/x", "is not a folder of shards"),
        ("file:///nowhere/x", "is not a folder of shards"),
        ("memory://nowhere", "is not a folder of shards"),
    ],
)
def test_a_place_that_no_store_opens_is_refused_with_the_cause(place: str, what: str) -> None:
    message = refusal(place)
    assert what in message and place in message


def test_opening_costs_a_listing_and_a_manifest_however_many_shards_there_are(
    shard_set: ShardSet, root: Path
):
    least, nothing = File(5 * 512, "0" * 64), File(0, "0" * 64)
    accesses: dict[int, list[str]] = {}
    watched: list[str] | None = None

    def watch(event: str, arguments: tuple[Any, ...]) -> None:  # as long as the process lives
        if watched is None or event not in ("open", "os.scandir", "os.listdir"):
            return
        if str(arguments[0]).startswith(str(root)):  # other threads open other files
            watched.append(event)

    sys.addaudithook(watch)
    for count in (2, 1000):
        listed = [Shard(f"{i:05d}", 5, least, nothing, nothing) for i in range(count)]
        for shard in listed:
            for extension, file in (("tar", least), ("idx", nothing), ("jsonl", nothing)):
                (root / f"{shard.name}.{extension}").write_bytes(bytes(file.bytes))
        manifest = replace(shard_set.manifest, shards=listed, samples=5 * count)
        (root / "manifest.json").write_text(manifest.to_json())
        watched = accesses[count] = []
        assert len(open_shards(root)) == 5 * count
        watched = None
    assert accesses[1000] == accesses[2] == ["open", "os.scandir"]


SCHEMA = json.loads((Path(shards.__file__ or "").parent / "manifest.schema.json").read_text())


def test_the_schema_accepts_what_is_written_and_refuses_what_opening_refuses(root: Path):
    written = json.loads((root / "manifest.json").read_text())
    jsonschema.validate(written, SCHEMA)
    for wrong in ({"samples": "12"}, {"format": 1}, {"parent": "/"}, {"extensions": [1]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**written, **wrong}, SCHEMA)
    for name in written:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in written.items() if k != name}, SCHEMA)


def test_the_schema_is_what_the_code_makes():
    """Else: python -m shards.manifest_schema > shards/manifest.schema.json."""
    assert current_schema() == SCHEMA


def test_the_schema_describes_every_field_of_the_code():
    def compare(kind: type, schema: dict[str, Any]) -> None:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        expected = {field.name for field in fields(kind)} | ({"digest"} & {*schema["properties"]})
        optional = {field.name for field in fields(kind) if field.default is not MISSING}
        assert set(schema["properties"]) == expected == set(schema["required"]) | optional
        assert not optional & set(schema["required"])
        assert not schema["additionalProperties"]
        for name, hint in get_type_hints(kind).items():
            inner = schema["properties"][name]
            assert inner.get("description") or "$ref" in inner, f"{kind.__name__}.{name}"
            if is_dataclass(hint):
                compare(hint, inner)  # pyright: ignore[reportArgumentType]

    compare(Manifest, SCHEMA)
    compare(Shard, SCHEMA["properties"]["shards"]["items"])
