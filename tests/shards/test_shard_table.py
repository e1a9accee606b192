"""A table or manifest that was changed and sealed anew is refused by all readers."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.health.repair import repair
from shards.health.verification import read_manifest, verify
from shards.layout import MANIFEST, PLAN, Manifest, open_shards
from shards.sealed_json import DIGEST, seal, unseal
from shards.shard_table import read_quarantined, read_table
from shards.storage import LocalFolder
from shards.subset.selection import select
from shards.survey import survey
from shards.tar import file_of
from tests.conftest import MakeShardSet


@pytest.fixture
def root(make_shard_set: MakeShardSet, tmp_path: Path) -> Path:
    shutil.copytree(make_shard_set(42).root, tmp_path / "set")
    return tmp_path / "set"


def sealed_anew(text: bytes, head: dict[str, Any], row: dict[str, Any]) -> bytes:
    """Return a table with other values in its first line and in the row of its third sample."""
    first, *lines = text.decode().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[2] |= row
    body = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in rows)
    values = {k: v for k, v in json.loads(first).items() if k != DIGEST}
    values |= {"rows": hashlib.sha256(body.encode()).hexdigest(), **head}
    return (seal(values) + body).encode()


def vouch(root: Path, table: bytes, **more: Any) -> None:
    """Write a table of the first shard, and a manifest that names it."""
    (root / "00000.jsonl").write_bytes(table)
    manifest = Manifest.from_json((root / MANIFEST).read_text())
    shards = [replace(manifest.shards[0], table=file_of(table)), *manifest.shards[1:]]
    (root / MANIFEST).write_text(replace(manifest, shards=shards, **more).to_json())


ROWS = {
    "id": ["1", None, 2**63, 1.5],
    "label": [-2, "x", 2**63],
    "image": ["gif", "", 3],
    "width": [0, -1, 2**31, "9"],
    "offset": [-512, 10**30, 10**9],
    "bytes": [-1, 10**30, 2**62, 10**9],
    "crc32": [-1, 2**32],
    "content": ["", "x" * 32, "0" * 31, 5],
    "remarks": [3, [3]],
}
HEADS: dict[str, list[Any]] = {
    "shard": ["../../x", "", 5],
    "samples": [-1, 8, "7", 10**30],
    "tar": [None, {"bytes": -1, "sha256": "0" * 64}, {"bytes": 10**30, "sha256": "x"}],
    "seen": [None, []],
}
SEEN: dict[str, list[Any]] = {
    "samples": [9, -1],
    "widths": [[], [1, 2, 3], [0, 2], 5],
    "sum": [[1.0], {}, [None] * 3],
    "shorter_sides": [{"x": 7}, {"32": 10**30}, {"32": 8}],
    "extensions": [{"exe": 7}, {"png": -7}],
    "quarantined": [[5], [{"origin": "x"}]],
}
CHANGES = [("row", n, v) for n, values in ROWS.items() for v in values]
CHANGES += [("head", n, v) for n, values in HEADS.items() for v in values]
CHANGES += [("seen", n, v) for n, values in SEEN.items() for v in values]


@pytest.mark.parametrize(("where", "name", "value"), CHANGES)
def test_a_wrong_value_is_refused_whatever_the_seals_say(
    root: Path, where: str, name: str, value: Any
) -> None:
    text = (root / "00000.jsonl").read_bytes()
    assert read_table(sealed_anew(text, {}, {})).shard.samples == 7
    head, row = ({name: value}, {}) if where == "head" else ({}, {name: value})
    if where == "seen":
        seen = unseal(text.decode().splitlines()[0] + "\n")["seen"]
        head, row = {"seen": {**seen, name: value}}, {}
    table = sealed_anew(text, head, row)
    with pytest.raises(ValueError, match=r"damaged|lacks|contradicts|points outside|has 7 rows"):
        read_table(table)
    vouch(root, table)
    if where == "row":
        for read in (survey, lambda each: select(each, "half", fraction=0.5)):
            with pytest.raises(ValueError, match=r"00000\.jsonl (is damaged|points outside)"):
                read(open_shards(root))
    assert [problem.file for problem in verify(root).problems] == ["00000.jsonl"]
    assert repair(root).rebuilt == ["00000.jsonl", MANIFEST]
    assert verify(root, deep=True).problems == []


def test_a_label_without_a_class_is_refused(root: Path) -> None:
    manifest = Manifest.from_json((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(replace(manifest, classes=manifest.classes[:3]).to_json())
    for read in (survey, lambda each: select(each, "few", per_class=1)):
        with pytest.raises(ValueError, match=r"has the label \d, but manifest.* names 3 classes"):
            read(open_shards(root))


def test_labels_of_a_set_without_classes_may_be_any(root: Path) -> None:
    text = (root / "00000.jsonl").read_bytes()
    vouch(root, sealed_anew(text, {}, {"label": 2**40}), classes=[])
    assert 2**40 in survey(open_shards(root)).labels.tolist()


def _no_shards(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"shards": [], "samples": 0}


def _too_many(values: dict[str, Any]) -> dict[str, Any]:
    first, *others = values["shards"]
    more = first | {"samples": first["samples"] + 10**15}
    return values | {"shards": [more, *others], "samples": values["samples"] + 10**15}


@pytest.mark.parametrize(
    ("change", "what"),
    [(_no_shards, "lists no samples"), (_too_many, "samples in the [0-9,]+ bytes of 00000.tar")],
)
def test_a_manifest_of_what_no_tar_can_hold_is_refused(
    root: Path, change: Callable[[dict[str, Any]], dict[str, Any]], what: str
) -> None:
    values = unseal((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(seal(change(values), indent=1))
    with pytest.raises(ValueError, match=what):
        open_shards(root)
    assert repair(root).rebuilt == [MANIFEST]
    assert len(open_shards(root)) == 42


@pytest.mark.parametrize(
    "change", [{"samples": 41}, {"samples": 10**30, "kept": 1}, {"limit": -1}, {"kept": 0}]
)
def test_a_plan_of_other_numbers_makes_no_manifest(root: Path, change: dict[str, int]) -> None:
    (root / PLAN).write_text(seal(unseal((root / PLAN).read_text()) | change))
    (root / MANIFEST).write_text("{}")
    assert verify(root).problems
    with pytest.raises(ValueError, match="cannot be repaired"):
        repair(root)


def test_a_plan_takes_no_memory_for_what_it_says(root: Path) -> None:
    changed = unseal((root / PLAN).read_text()) | {"samples": 10**15}
    (root / PLAN).write_text(seal(changed))
    (root / MANIFEST).write_text("{}")
    assert len(read_manifest(LocalFolder(root))[1]) == 1  # the manifest, which is made again


def test_the_table_of_another_shard_is_not_taken_for_one(root: Path) -> None:
    shutil.copy(root / "00001.jsonl", root / "00000.jsonl")
    (root / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"00000\.jsonl is the table of shard 00001"):
        repair(root)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\xff", b'{"origin":1,"reason":"x"}', b"{"])
def test_a_damaged_list_of_quarantined_samples_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="is damaged"):
        read_quarantined(line + b"\n")
