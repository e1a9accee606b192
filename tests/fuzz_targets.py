"""What `tests.fuzz` damages, and how it is read: as the programs and tools read it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from PIL import Image

from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from shards import as_webdataset, durable
from shards.health.repair import repair
from shards.health.verification import verify
from shards.layout import MANIFEST, PLAN, QUARANTINE, REASONS, open_shards
from shards.sealed_json import DIGEST, seal
from shards.shard_table import Quarantined
from shards.source.folder import ImageFolder
from shards.source.table import Table
from shards.source.webdataset import WebDataset
from shards.storage import folder_at
from shards.tar import file_of
from shards.writing.write import write
from tests.conftest import Pictures
from tests.damage import PLACES, bomb, damaged, edited, edited_state
from tests.program import RECIPE
from tools import replay, select
from tools.inspect import __main__ as inspect
from training import machine_settings
from training.command_line import call
from training.data import ShardSets, open_data
from training.monitor import METRICS, records
from training.run import checkpoint, dump, quarantine, run_folder, state_file
from training.run.failure import Phase
from training.settings import parse
from training.state import State
from training.step import Step
from training.trained import open_encoder

SAMPLES = 20
PLACE = "place"  # the file that says where to look
DUMP = f"{dump.FOLDER}/00000003-rank-0.safetensors"

Read = Callable[[Path], object]
Damage = Callable[[Path, random.Random], object]


# ── how it is read ────────────────────────────────────────────────────────────────────────────────


def all_of(*readers: Read) -> Read:
    """Return a reader that goes on where one refuses: what it refuses may be fine to the others."""

    def read(case: Path) -> None:
        refused = None
        for reader in readers:
            try:
                reader(case)
            except (ValueError, OSError) as error:
                refused = error
        if refused is not None:
            raise refused

    return read


def read_set(case: Path) -> None:
    """Open a shard set, train on a batch of it, and verify it."""
    train(case)
    verify(str(case / "set"), deep=True)


def train(case: Path) -> None:
    """Train on the shard set."""
    group = ViewGroup(count=2, size=16, policy=SimCLRViews(blur=0.0))
    shard_set = open_shards(case / "set")
    with Loader(shard_set, [group], batch_size_per_rank=4, shuffle_buffer=4) as loader:
        for batch in loader:
            assert batch.views[0].shape == (2, 4, 3, 16, 16)
            assert batch.label_B.shape == batch.id_B.shape == (4,)


def evaluate(case: Path) -> None:
    """Read the set as evaluations do."""
    for batch in Images(open_shards(case / "set"), size=16):
        assert batch.image_BCHW.shape[1:] == (3, 16, 16)


def choose(case: Path) -> None:
    """Choose a subset, and stream it."""
    call(select.main, [str(case / "set"), "half", "--fraction", "0.5"])
    stream(case / "set" / "subsets" / "half")


def stream(root: Path) -> None:
    """Read a set as other programs do."""
    for sample in as_webdataset(root):
        assert sample["image"].mode == "RGB"


def look(case: Path) -> None:
    """Report what is in the set, and draw it."""
    call(inspect.main, [str(case / "set"), "--out", str(case / "sheet.png")])


use_set = all_of(
    train,
    evaluate,
    look,
    choose,
    lambda case: verify(str(case / "set"), deep=True),
    lambda case: repair(str(case / "set"), deep=True),
)


def read_recipe(case: Path) -> None:
    """Read a recipe, as train.py and as the tools that open a run do."""
    run_folder.read_config(case / "run")
    parse(["--config", str(case / "run" / run_folder.CONFIG)])


def read_tuning(case: Path) -> None:
    """Read the settings of the pipeline."""
    machine_settings.read(case / "run" / machine_settings.NAME)


def read_checkpoint(case: Path) -> None:
    """Read the newest checkpoint."""
    saved = checkpoint.newest(case / "run")
    if saved is not None:
        for read in (saved.method, saved.optimizer, lambda: saved.rank(0)):
            read()


def read_tree(case: Path) -> None:
    """Read every part of a checkpoint, as if its hashes were those of the damage."""
    for path in sorted((case / "run" / checkpoint.FOLDER / "00000005").glob("*.safetensors")):
        state_file.loads(durable.read(path))


def go_on(case: Path) -> None:
    """Continue the run for a step."""
    loader, state = restored(case)
    with loader:
        take_step(loader, state.step)


def restored(case: Path) -> tuple[Loader, State]:
    """Return loader and state of the run as its next start has them."""
    words = ["--config", str(case / "run" / run_folder.CONFIG), "--shards", str(case / "set")]
    words += ["--run", str(case / "run"), "--device", "cpu", "--mixed_precision", "no"]
    config = parse(words).config
    saved = checkpoint.newest(config.run)
    processes: Any = SimpleNamespace(world_size=1, rank=0, on_this_machine=1)
    processes.device, processes.from_first = torch.device("cpu"), lambda *found: found
    data = open_data(config, ShardSets.open(config, rank=0), saved, processes, Phase())
    state = State(Step(config, Accelerator(cpu=True)), data.loader, None, 0)
    if saved is not None:
        run_folder.check_continues(saved, world_size=1, machine="cpu, no", reshaped=data.reshaped)
        state.restore(saved, data)
    return data.loader, state


def take_step(loader: Loader, step: Step) -> None:
    """Train on one batch."""
    for batch in loader:
        step(batch.views, id_B=batch.id_B, learning_rate=0.01)
        break


def take_out(case: Path) -> None:
    """Load the encoder of the newest checkpoint."""
    open_encoder(case / "run", device="cpu")


def read_export(case: Path) -> None:
    """Load the encoder that the run exported."""
    run_folder.read_export(case / "run" / run_folder.ENCODER)
    open_encoder(case / "run" / run_folder.ENCODER, device="cpu")


def read_dump(case: Path) -> None:
    """Repeat the step of a dump."""
    call(replay.main, [str(case / "run" / DUMP), "--device", "cpu"])


def read_metrics(case: Path) -> None:
    """Read the records of a run."""
    records(case / "run")


def shard_images(case: Path) -> None:
    """Shard a folder of images; those that are damaged go to quarantine."""
    write(ImageFolder(root=str(case / "images")), str(case / "sharded"), max_missing=1)


def _at_place(read: Callable[[str], object]) -> Read:
    return lambda case: read((case / PLACE).read_text())


def _walk(place: str) -> None:
    folder = folder_at(place)
    for names, _ in zip(folder.walk(), range(10), strict=False):
        assert len(names) == 3


go_to_place = all_of(
    _at_place(open_shards),
    _at_place(verify),
    _at_place(_walk),
    _at_place(lambda place: ImageFolder(root=place)),
    _at_place(lambda place: WebDataset(root=place)),
    _at_place(lambda place: Table(table=place, path="path", root=place)),
)
read_all = all_of(
    read_set,
    read_recipe,
    read_tuning,
    read_checkpoint,
    read_tree,
    shard_images,
    read_export,
    read_dump,
    read_metrics,
)


# ── how it is damaged ─────────────────────────────────────────────────────────────────────────────


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
            words[at] = chance.choice([*numbers, str(int(words[at]) + chance.choice([-1, 1, 512]))])
        else:
            words[at] = chance.choice([*numbers, "\t", "a\vb", "y.i64", "jpg", "\n", "x y", "é"])
    path.write_text("\n".join(map(" ".join, lines)) + "\n")
    _vouch(path, "index", chance)


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


TARGETS: dict[str, tuple[int, Damage, Read]] = {
    # name: (weight, damage, reading)
    "recipe": (3, file("run/*.yaml"), all_of(read_recipe, read_tuning)),
    "recipe's values": (6, yaml_values, all_of(read_recipe, read_tuning)),
    "recipe that unfolds": (3, yaml_bomb, all_of(read_recipe, read_tuning)),
    "manifest": (3, file("set/manifest.json"), read_set),
    "manifest, sealed anew": (6, sealed, use_set),
    "index": (3, file("set/*.idx"), use_set),
    "index, sealed anew": (5, sealed_index, use_set),
    "tar": (4, file("set/*.tar"), read_set),
    "table": (2, file("set/*.jsonl"), read_set),
    "table, sealed anew": (6, sealed_table, use_set),
    "links, pipes and paths": (4, linked, read_all),
    "place": (3, text(PLACE, lambda chance: chance.choice(PLACES)), go_to_place),
    "image": (5, file("images/*/*"), shard_images),
    "checkpoint": (3, file("run/checkpoints/*/*"), all_of(read_checkpoint, go_on)),
    "checkpoint, hashed anew": (4, file("run/checkpoints/*/*.safetensors"), read_tree),
    "checkpoint's values": (
        5,
        saved_values("checkpoints/*/*.safetensors"),
        all_of(go_on, take_out),
    ),
    "exported encoder": (2, file("run/encoder.safetensors"), read_export),
    "dump": (2, file(f"run/{DUMP}"), read_dump),
    "dump's values": (4, saved_values(DUMP), read_dump),
    "quarantine of a run": (1, left_out, go_on),
    "metrics": (1, file(f"run/{METRICS}"), read_metrics),
}
CONNECTS = {"place"}
"""Where a connection is no harm: it is what was asked for."""


def prepare(root: Path) -> None:
    """Write what is going to be damaged: a small one of everything."""
    write(Pictures(SAMPLES), str(root / "set"), samples_per_shard=8)
    reasons = [Quarantined(f"{i}.jpg", "empty", "it has 0 bytes", "") for i in range(2)]
    lines = "".join(json.dumps(vars(reason)) + "\n" for reason in reasons)
    (root / "set" / QUARANTINE).mkdir()
    (root / "set" / QUARANTINE / REASONS).write_text(lines)
    (root / PLACE).touch()
    images = root / "images" / "class"
    images.mkdir(parents=True)
    for number, path in enumerate(sorted((root / "set").glob("*.tar"))):
        shutil.copy(path, images / f"{number}.jpg")  # no image at all
    for index in range(4):
        picture = Image.fromarray(Pictures(SAMPLES).pixels(index))
        picture.save(images / f"a{index}.{'jpg' if index % 2 else 'png'}")
    _prepare_run(root)


def _prepare_run(root: Path) -> None:
    run = root / "run"
    run.mkdir()
    (run / run_folder.CONFIG).write_text(f"shards: x\nrun: r\nsteps: 5\n{RECIPE}")
    loader, state = restored(root)
    machine_settings.write(run / machine_settings.NAME, loader.tuning)
    with loader:
        take_step(loader, state.step)
        _save(run, state.parts())
    method = state.step.method
    run_folder.export(run, method.encoder, size=24, step=5)
    views: Sequence[torch.Tensor] = [torch.rand(2, 4, 3, 24, 24), torch.rand(2, 4, 3, 16, 16)]
    ids = torch.arange(4)
    dump.write(run, step=3, rank=0, world_size=1, method=method, views=views, id_B=ids)
    assert (run / DUMP).exists()
    (run / METRICS).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')


def _save(run: Path, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        checkpoint.write_part(run, 5, name, state_file.pieces(part))
    facts = {"seconds": 1.0, "world_size": 1, "machine": "cpu, no"}
    checkpoint.commit(run, 5, facts)
