"""What `tests.fuzz` damages, and how it is read: as the programs and tools read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from PIL import Image

from model.encoder import SmallResNet
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.images import Images
from pipeline.loader import Loader
from shards import as_webdataset, durable
from shards.health.repair import repair
from shards.health.verification import verify
from shards.layout import QUARANTINE, REASONS, open_shards
from shards.shard_table import Quarantined
from shards.source.folder import ImageFolder
from shards.source.table import Table
from shards.source.webdataset import WebDataset
from shards.storage import folder_at
from shards.writing.indexing import index_tars
from shards.writing.write import write
from tests.conftest import Pictures
from tests.damage import PLACES
from tests.fuzz_damage import (
    Damage,
    file,
    left_out,
    linked,
    of_indexed,
    saved_values,
    sealed,
    sealed_index,
    sealed_table,
    text,
    yaml_bomb,
    yaml_values,
)
from tests.program import RECIPE
from tools import replay, select
from tools.inspect import __main__ as inspect
from training import exported, machine_settings, weights
from training.command_line import call
from training.data import ShardSets, open_data
from training.monitor import METRICS, records
from training.run import checkpoint, dump, run_folder, state_file
from training.run.failure import Phase
from training.settings import parse
from training.state import State
from training.step import Step
from training.trained import open_encoder

SAMPLES = 20
PLACE = "place"  # the file that says where to look
DUMP = f"{dump.FOLDER}/00000003-rank-0.safetensors"

Read = Callable[[Path], object]


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
    processes: Any = SimpleNamespace(world_size=1, rank=0, on_this_machine=1, machine="cpu, no")
    processes.device, processes.from_first = torch.device("cpu"), lambda *found: found
    data = open_data(config, ShardSets.open(config, rank=0), saved, processes, Phase())
    if saved is not None:
        run_folder.check_continues(saved, world_size=1, machine="cpu, no", reshaped=data.reshaped)
    state = State(Step(config, Accelerator(cpu=True)), data.loader, None, 0)
    if saved is not None:
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
    exported.read(case / "run" / exported.NAME)
    open_encoder(case / "run" / exported.NAME, device="cpu")


def read_weights(case: Path) -> None:
    """Begin an encoder with published weights, of both kinds of files."""
    all_of(*(partial(_begin, suffix=suffix) for suffix in ("pth", "safetensors")))(case)


def _begin(case: Path, suffix: str) -> None:
    path = case / f"published.{suffix}"
    weights.fill(SmallResNet(width=4), weights.read(str(path)).tensors, str(path))


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
    read_weights,
    read_dump,
    read_metrics,
)


TARGETS: dict[str, tuple[int, Damage, Read]] = {
    # name: (weight, damage, reading)
    "recipe": (3, file("run/*.yaml"), all_of(read_recipe, read_tuning)),
    "recipe's values": (6, yaml_values, all_of(read_recipe, read_tuning)),
    "recipe that unfolds": (3, yaml_bomb, all_of(read_recipe, read_tuning)),
    "manifest": (3, file("set/manifest.json"), read_set),
    "manifest, sealed anew": (6, sealed, use_set),
    "index": (3, file("set/*.idx"), use_set),
    "index, sealed anew": (5, sealed_index, use_set),
    "manifest of foreign tars, sealed anew": (2, of_indexed(sealed), use_set),
    "index of foreign tars, sealed anew": (4, of_indexed(sealed_index), use_set),
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
    "published weights": (4, file("published.*"), read_weights),
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
    (root / "foreign").mkdir()
    for path in (root / "set").glob("*.tar"):
        shutil.copy(path, root / "foreign")
    index_tars(WebDataset(root=root / "foreign"), root / "indexed")
    (root / PLACE).touch()
    state = SmallResNet(width=4).network.state_dict()
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, root / "published.pth")
    safetensors.torch.save_file(state, root / "published.safetensors")
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
    settings = parse(["--config", str(run / run_folder.CONFIG)])
    facts = exported.facts(settings, open_shards(root / "set"), step=5)
    exported.write(run / exported.NAME, method.encoder, facts)
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
