"""The ways in which `tests.fuzz` damages what viewrank reads: by chance, and sealed anew."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from shards import durable
from shards.layout import MANIFEST, PLAN, QUARANTINE, REASONS
from shards.sealed_json import DIGEST, seal
from shards.tar import file_of
from tests.damage import bomb, damaged, edited, edited_state
from training import machine_settings
from training.run import checkpoint, quarantine, run_folder, state_file

Damage = Callable[[Path, random.Random], object]


def file(pattern: str) -> Damage:
    """Damage the bytes of a file."""

    def damage(case: Path, chance: random.Random) -> None:
        path = chance.choice(sorted(case.glob(pattern)))
        path.write_bytes(damaged(path.read_bytes(), chance))

    return damage


def text(name: str, make: Callable[[random.Random], str]) -> Damage:
    """Write a file anew."""

    def damage(case: Path, chance: random.Random) -> None:
        (case / name).write_text(make(chance))

    return damage


def yaml_values(case: Path, chance: random.Random) -> None:
    path = case / "run" / chance.choice([run_folder.CONFIG] * 5 + [machine_settings.NAME])
    values = yaml.safe_load(path.read_text())
    for _ in range(chance.randint(1, 3)):
        values = edited(values, chance)
    path.write_text(yaml.safe_dump(values))


def yaml_bomb(case: Path, chance: random.Random) -> None:
    """A short file that is long once it is read, alone or after what was there."""
    path = case / "run" / chance.choice([run_folder.CONFIG, machine_settings.NAME])
    before = path.read_text() if chance.random() < 0.5 else ""
    path.write_text(before + bomb(chance))


def sealed(case: Path, chance: random.Random) -> None:
    """Change values of the manifest or the plan, and seal it anew."""
    path = case / "set" / chance.choice([MANIFEST, MANIFEST, PLAN])
    changed = edited(_unsealed(path.read_text()), chance)
    if path.name == PLAN:  # it is read where the manifest cannot be
        (case / "set" / MANIFEST).write_text("{}")
    path.write_text(seal(changed if isinstance(changed, dict) else {"x": changed}, indent=1))


def sealed_table(case: Path, chance: random.Random) -> None:
    """Change values of a table, or of the list of quarantined samples, and seal all anew."""
    path = chance.choice([*sorted((case / "set").glob("*.jsonl")), case / "set" / "reasons"])
    if path.name == "reasons":
        path = case / "set" / QUARANTINE / REASONS
        rows = [edited(json.loads(line), chance) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return
    first, *lines = path.read_text().splitlines()
    head, rows = _unsealed(first), [json.loads(line) for line in lines]
    if chance.random() < 0.4:
        head = edited(head, chance)
        head = head if isinstance(head, dict) else {"x": head}
    else:
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(rows))
            rows[at] = edited(rows[at], chance)
    body = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    head["rows"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(seal(head) + body)
    _vouch(path, "table", chance)


def sealed_index(case: Path, chance: random.Random) -> None:
    """Change numbers or words of an index, and seal the manifest anew."""
    path = chance.choice(sorted((case / "set").glob("*.idx")))
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    huge = ["9" * 15, str(2**63 - 512), str(2**63), str(2**64), str(10**30), "9" * 5000]
    numbers = ["-1", "-512", "0", "1", "511", "512", "100000000", *huge, "x", "", "1e3", "+512"]
    for _ in range(chance.randint(1, 3)):
        words = chance.choice(lines)
        at = chance.randrange(len(words))
        if words[at].isdecimal() and chance.random() < 0.9:
            words[at] = chance.choice(
                [*numbers, str(int(words[at][:18]) + chance.choice([-1, 1, 512]))]
            )
        else:
            words[at] = chance.choice([*numbers, "\t", "a\vb", "y.i64", "jpg", "\n", "x y", "é"])
    path.write_text("\n".join(map(" ".join, lines)) + "\n")
    _vouch(path, "index", chance)


def of_indexed(damage: Damage) -> Damage:
    """Damage an indexed set, put in the place of the other."""

    def change(case: Path, chance: random.Random) -> None:
        shutil.rmtree(case / "set")
        (case / "indexed").rename(case / "set")
        damage(case, chance)

    return change


def _vouch(path: Path, name: str, chance: random.Random) -> None:
    """Write the size and the hash of a changed file into the manifest; or lose the manifest."""
    manifest = path.parent / MANIFEST
    values = _unsealed(manifest.read_text())
    found = file_of(path.read_bytes())
    for shard in values["shards"]:
        if shard["name"] == path.stem:
            shard[name] = {"bytes": found.bytes, "sha256": found.sha256}
    manifest.write_text(seal(values, indent=1) if chance.random() < 0.8 else "{}")


def _unsealed(sealed_text: str) -> dict[str, Any]:
    values = json.loads(sealed_text)
    del values[DIGEST]
    return values


def saved_values(*names: str) -> Damage:
    """Change values or tensors of a file of the run; its hash in the checkpoint fits again."""

    def damage(case: Path, chance: random.Random) -> None:
        path = chance.choice([p for name in names for p in sorted((case / "run").glob(name))])
        tree = state_file.loads(durable.read(path))
        for _ in range(chance.randint(1, 3)):
            tree = edited_state(tree, chance)
        path.write_bytes(b"".join(state_file.pieces(tree)))
        record = path.parent / checkpoint.RECORD
        if record.exists():
            facts = json.loads(record.read_text())
            facts["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if chance.random() < 0.2:
                facts = edited(facts, chance)
            record.write_text(json.dumps(facts))

    return damage


def left_out(case: Path, chance: random.Random) -> None:
    """A damaged list of the samples that the run leaves out."""
    bad = {"00000": {"000003": "cannot be decoded"}}
    text = json.dumps(edited(bad, chance))
    path = case / "run" / quarantine.NAME
    path.write_bytes(text.encode() if chance.random() < 0.5 else damaged(text.encode(), chance))


def linked(case: Path, chance: random.Random) -> None:
    """A file of the set that is a link out of it, or a tar whose members lead out."""
    files = [
        *(case / "set").glob("*.*"),
        *(case / "run").rglob("*.*"),
        *(case / "images").rglob("*.*"),
    ]
    path = chance.choice(sorted(f for f in files if f.is_file()))
    if path.suffix == ".tar" and chance.random() < 0.7:
        data = bytearray(path.read_bytes())
        name = chance.choice(["../../outside", "/tmp/outside", "a/../../outside"]).encode()
        data[:100] = name.ljust(100, b"\0")
        data[148:156] = b" " * 8
        data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
        path.write_bytes(data)
    else:
        path.unlink()
        target = chance.choice(["/etc/passwd", "/dev/zero", "..", "/nowhere", str(path), "pipe"])
        os.mkfifo(path) if target == "pipe" else path.symlink_to(target)
