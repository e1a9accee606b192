"""Damage whatever viewrank reads, in thousands of ways, and watch what happens.

    python -m tests.fuzz --cases 2000 --out benchmarks/results/fuzz-cpu.json

Recipes, manifests, indexes, tars, tables, images, checkpoints, exports and dumps are changed at
random: bits, bytes, cuts, repeats, and words that mean harm (paths that lead out, YAML tags, class
paths, numbers too large). Some are sealed anew, as whoever wants to do harm would. Each case is
then read as the programs read it. What may happen: it is accepted, or refused in one line. What may
not: any other exception, 30 seconds without an answer, a process started, a connection opened, a
module imported that a recipe named, a file written outside the case's own folder, a pickle loaded.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from PIL import Image

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from shards import durable
from shards.health.verification import verify
from shards.layout import MANIFEST, open_shards
from shards.sealed_json import DIGEST, seal
from shards.source.folder import ImageFolder
from shards.writing.write import write
from tests.conftest import Pictures
from tests.damage import damaged, edited
from tests.program import RECIPE
from tests.sentry import EVIL, Sentry
from training.command import LESS_MEMORY, run_command
from training.monitor import METRICS, records
from training.run import checkpoint, dump, run_folder, state_file
from training.settings import parse

SECONDS = 30
SAMPLES = 20
EVIL_CODE = "raise SystemExit('code of a recipe was run')\n"


class Hang(BaseException):
    """A case took too long."""


# ── what is read, and how ─────────────────────────────────────────────────────────────────────────


def read_set(root: Path) -> None:
    """Open a shard set, train on a batch of it, and verify it."""
    shard_set = open_shards(root)
    group = ViewGroup(count=2, size=16, policy=SimCLRViews(blur=0.0))
    with Loader(shard_set, [group], batch_size_per_rank=4, shuffle_buffer=4) as loader:
        for batch in loader:
            assert batch.views[0].shape == (2, 4, 3, 16, 16)
    verify(str(root), deep=True)


def read_recipe(case: Path) -> None:
    """Read a recipe, as train.py and as the tools that open a run do."""
    run_folder.read_config(case / "run")
    parse(["--config", str(case / "run" / run_folder.CONFIG)])


def read_checkpoint(case: Path) -> None:
    """Continue from the newest checkpoint."""
    saved = checkpoint.newest(case / "run")
    if saved is not None:
        for read in (saved.method, saved.optimizer, lambda: saved.rank(0)):
            read()


def read_tree(case: Path) -> None:
    """Read every part of a checkpoint, as if its hashes were those of the damage."""
    for path in sorted((case / "run" / checkpoint.FOLDER / "00000005").glob("*.safetensors")):
        state_file.loads(durable.read(path))


def shard_images(case: Path) -> None:
    """Shard a folder of images; those that are damaged go to quarantine."""
    write(ImageFolder(root=case / "images"), case / "sharded", max_missing=1)


Damage = Callable[[Path, random.Random], None]


def _file(pattern: str) -> Damage:
    def damage(case: Path, chance: random.Random) -> None:
        path = chance.choice(sorted(case.glob(pattern)))
        path.write_bytes(damaged(path.read_bytes(), chance))

    return damage


def _values(case: Path, chance: random.Random) -> None:
    path = case / "run" / run_folder.CONFIG
    values = yaml.safe_load(path.read_text())
    for _ in range(chance.randint(1, 3)):
        values = edited(values, chance)
    path.write_text(yaml.safe_dump(values))


def _sealed(case: Path, chance: random.Random) -> None:
    path = case / "set" / MANIFEST
    values = json.loads(path.read_text())
    del values[DIGEST]
    changed = edited(values, chance)
    path.write_text(seal(changed if isinstance(changed, dict) else {"x": changed}, indent=1))


def _linked(case: Path, chance: random.Random) -> None:
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


TARGETS: dict[str, tuple[int, Damage, Callable[[Path], None]]] = {
    # name: (weight, damage, reading)
    "recipe": (3, _file("run/config.yaml"), read_recipe),
    "recipe's values": (6, _values, read_recipe),
    "manifest": (3, _file("set/manifest.json"), lambda case: read_set(case / "set")),
    "manifest, sealed anew": (6, _sealed, lambda case: read_set(case / "set")),
    "index": (3, _file("set/*.idx"), lambda case: read_set(case / "set")),
    "tar": (4, _file("set/*.tar"), lambda case: read_set(case / "set")),
    "table": (2, _file("set/*.jsonl"), lambda case: read_set(case / "set")),
    "links, pipes and paths": (4, _linked, lambda case: _all(case)),
    "image": (5, _file("images/*/*"), shard_images),
    "checkpoint": (3, _file("run/checkpoints/*/*"), read_checkpoint),
    "checkpoint, hashed anew": (4, _file("run/checkpoints/*/*.safetensors"), read_tree),
    "exported encoder": (2, _file("run/encoder.safetensors"), lambda case: _export(case)),
    "dump": (2, _file("run/dumps/*"), lambda case: _dump(case)),
    "metrics": (1, _file(f"run/{METRICS}"), lambda case: _metrics(case)),
}


def _export(case: Path) -> None:
    run_folder.read_export(case / "run" / run_folder.ENCODER)


def _dump(case: Path) -> None:
    dump.read(next((case / "run" / dump.FOLDER).iterdir()))


def _metrics(case: Path) -> None:
    records(case / "run")


def _all(case: Path) -> None:
    """Read everything; what is refused is no reason to leave out what comes after it."""
    readers = [lambda case: read_set(case / "set"), read_recipe, read_checkpoint, read_tree]
    refused = None
    for read in (*readers, shard_images, _export, _dump, _metrics):
        try:
            read(case)
        except (ValueError, OSError) as error:
            refused = error
    if refused is not None:
        raise refused


def prepare(root: Path) -> None:
    """Write what is going to be damaged: a small one of everything."""
    write(Pictures(SAMPLES), str(root / "set"), samples_per_shard=8)
    images = root / "images" / "class"
    images.mkdir(parents=True)
    for number, path in enumerate(sorted((root / "set").glob("*.tar"))):
        shutil.copy(path, images / f"{number}.jpg")  # no image at all
    for index in range(4):
        picture = Image.fromarray(Pictures(SAMPLES).pixels(index))
        picture.save(images / f"a{index}.{'jpg' if index % 2 else 'png'}")
    run = root / "run"
    run.mkdir()
    (run / run_folder.CONFIG).write_text(f"shards: x\nrun: r\nsteps: 5\n{RECIPE}")
    method = parse(["--config", str(run / run_folder.CONFIG)]).config.method
    parts = {checkpoint.METHOD: method.state_dict(), checkpoint.OPTIMIZER: {"a": [1, (2.0, None)]}}
    for name, part in {**parts, checkpoint.rank_file(0): checkpoint.random_state()}.items():
        checkpoint.write_part(run, 5, name, state_file.pieces(part))
    checkpoint.commit(run, 5, {"seconds": 1.0, "world_size": 1, "machine": "cpu, no"})
    run_folder.export(run, method.encoder, size=24, step=5)
    views = [torch.rand(2, 4, 3, 8, 8)]
    ids = torch.arange(4)
    dump.write(run, step=3, rank=0, world_size=1, method=method, views=views, id_B=ids)
    (run / METRICS).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')


# ── one case after the other ──────────────────────────────────────────────────────────────────────


def fuzz(cases: int, seed: int, root: Path, *, first: int = 0, say: bool = True) -> dict[str, Any]:
    """Read so many damaged things; return the counts, and every case that went wrong.

    Args:
        cases: how many.
        seed: of all of them; a case can be repeated alone by its number.
        root: empty folder to work in.
        first: number of the first.
        say: whether to print each that went wrong.
    """
    prepare(root / "whole")
    (root / f"{EVIL}.py").write_text(EVIL_CODE)
    sys.path.insert(0, str(root))
    sentry, counts, wrong = Sentry(), Counter[tuple[str, str]](), []
    names = list(TARGETS)
    weights = [weight for weight, _, _ in TARGETS.values()]
    signal.signal(signal.SIGALRM, _too_late)
    try:
        for number in range(first, first + cases):
            chance = random.Random(f"{seed}-{number}")
            (name,) = chance.choices(names, weights)
            outcome, detail = _one(root, TARGETS[name], chance, sentry)
            counts[name, outcome] += 1
            if outcome not in ("accepted", "refused"):
                wrong.append({"case": number, "target": name, "outcome": outcome, "detail": detail})
                if say:
                    print(f"case {number}, {name}: {outcome}\n{detail}", flush=True)
    finally:
        sys.path.remove(str(root))
    table = {name: {o: n for (t, o), n in counts.items() if t == name} for name in names}
    return {"seed": seed, "cases": cases, "counts": table, "wrong": wrong}


def _one(
    root: Path,
    target: tuple[int, Damage, Callable[[Path], None]],
    chance: random.Random,
    sentry: Sentry,
) -> tuple[str, str]:
    case = root / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(root / "whole", case)
    _, damage, read = target
    damage(case, chance)
    said = StringIO()
    tempfile.tempdir = str(case)  # what is written for a moment has its place, too
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)  # where no signal is heard
    try:
        with sentry.watching(case), redirect_stdout(StringIO()), redirect_stderr(said):
            run_command(lambda: read(case))
        outcome, detail = "accepted", ""
    except SystemExit as ended:
        text = said.getvalue()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        outcome, detail = "refused", text
        if ended.code != 2 or len(errors) != 1 or len(errors[0]) < 15:
            outcome = "refused without a reason"
        elif LESS_MEMORY in text:
            outcome = "no memory left"
    except Hang:
        outcome, detail = "hang", traceback.format_exc()
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        tempfile.tempdir = None
    if sentry.seen:
        outcome, detail = "harm", "\n".join(sentry.seen)
    return outcome, detail[-3000:]


def _too_late(_: int, __: FrameType | None) -> None:
    raise Hang


def main() -> None:
    """Damage, read, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments.add_argument("--out", type=Path, help="where to write the counts, as JSON")
    given = arguments.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as root:
        done = fuzz(given.cases, given.seed, Path(root).resolve(), first=given.first)
    for name, outcomes in done["counts"].items():
        print(f"{name:26} " + ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes.items()))
    print(f"{done['cases']:,} cases, {len(done['wrong'])} that should not be")
    if given.out:
        given.out.write_text(json.dumps(done, indent=1) + "\n")
    sys.exit(bool(done["wrong"]))


if __name__ == "__main__":
    main()
