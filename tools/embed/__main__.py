"""Write the features of images as a file, Parquet or npz, with keys, ids and labels.

    python -m tools.embed runs/mine data/mine --out features.parquet
    python -m tools.embed my/photos --encoder Timm --encoder.name resnet50 --out features.npz

Images are read as in evaluations: centre crops, in the order of the shard set. A command that was
stopped goes on where it was. `accelerate launch` or `torchrun` starts it with several processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import dali
from shards import durable
from shards.layout import ShardSet
from tools.embed import feature_file, parts
from tools.embed.input_set import is_shard_set, open_input, quarantined
from tools.embed.parts import Part
from tools.shard import kept_on_interrupt
from training import installed
from training.command_line import Dotted, program, run_function
from training.terminal import Section, show

if TYPE_CHECKING:
    from accelerate import PartialState

    from training.trained import Trained

PLAN, LOCK = "plan.json", ".lock"  # in OUT.partial
LARGEST = 8192  # samples of a part: 64 MiB of features at F = 2048
SHOWN = 5  # images that cannot be read, and are named on the terminal


@dataclass(frozen=True)
class _Work:
    """What is embedded, into which parts."""

    data: str
    shard_set: ShardSet
    folder: Path
    """OUT.partial."""
    facts: dict[str, Any]
    """About encoder and data, for the file; parts of others are not taken for these."""
    parts: list[Part]
    left: Sequence[Part] = ()
    """Those that are not there yet."""

    @property
    def temporary(self) -> bool:
        """Whether the shard set was made for this alone, of images in an order of their own."""
        return not is_shard_set(self.data)


def main(
    run: Path | None,
    data: str,
    *,
    out: Path,
    encoder: Dotted = (),
    size: int | None = None,
    float16: bool = False,
    batch_size: int = 256,
    samples_per_part: int = LARGEST,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto",
) -> None:
    """Write the features of images as a file; the same command goes on where it was stopped.

    Args:
        run: folder of a run, or of one of its checkpoints; or an exported encoder.safetensors. It
            is left out where --encoder is given.
        data: shard set, a folder or a URL; or a folder of images, or a .csv, .tsv or .parquet table
            of images, of which a temporary shard set is made.
        out: file to write, .parquet or .npz. Until it is whole, its parts are in OUT.partial.
        encoder: network, instead of RUN: a class with its settings, such as Timm --encoder.name
            vit_small_patch16_224, and --encoder.weights, a file, a run or timm:NAME (without, they
            are random). --encoder.help CLASS lists the settings.
        size: height and width of the images, in pixels; by default, what the encoder was trained
            on, or is published for.
        float16: store the features in 16 bits, half the size.
        batch_size: images of a process that go through the encoder at once.
        samples_per_part: most images of a part, which is what a stop loses and memory holds.
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: precision of the encoder; auto is bf16 where the hardware multiplies it.
    """
    # Here and not above, so that --help takes no seconds.
    from training.launch import follow_launcher
    from training.named_encoder import open_named, show_help
    from training.processes import join

    show_help(encoder, program(main))
    follow_launcher()
    _check(out, batch_size=batch_size, samples_per_part=samples_per_part)
    processes = join(device)
    trained = open_named(run, encoder, size=size, device=device, mixed_precision=mixed_precision)
    folder = out.with_name(f"{out.name}.partial")
    with kept_on_interrupt(str(out)), _locked(folder, processes):
        dtype = "float16" if float16 else "float32"
        opened = partial(_open, trained, data, folder, dtype, samples_per_part)
        making = {"samples_per_part": samples_per_part, **_facts_of_pixels(trained)}
        work = _begin(opened, making, processes)
        begin = time.monotonic()
        _make(work, trained, processes, batch_size)
        processes.wait_for_everyone()
        if processes.is_main_process:
            _finish(work, trained, out, seconds=time.monotonic() - begin)


def _check(out: Path, **numbers: int) -> None:
    """Refuse what cannot be written, before anything is loaded."""
    if out.suffix not in feature_file.ENDINGS:
        raise ValueError(f"--out {out} is no file of features: it ends in .parquet or .npz.")
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number}; give 1 or more.")
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or give another --out.")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"--out {out} needs the package pyarrow: uv pip install -e '.[parquet]'. Or give .npz."
        )
    installed.require(dali.PACKAGE)
    durable.check_writable(out=out)


@contextmanager
def _locked(folder: Path, processes: PartialState) -> Iterator[None]:
    """Keep other commands out of OUT.partial; rank 0 does it for all."""
    if not processes.is_main_process:
        yield
        return
    folder.mkdir(exist_ok=True)
    taken = f"another process writes into {folder}. Wait for it to end, or give another --out."
    with durable.alone(folder / LOCK, taken):
        try:
            yield
        finally:
            if folder.exists() and os.listdir(folder) == [LOCK]:  # wrong input: nothing was begun
                shutil.rmtree(folder)


def _begin(
    opened: Callable[[], _Work], making: Mapping[str, Any], processes: PartialState
) -> _Work:
    """Open the images, and find out which parts are not there.

    Args:
        opened: opens them.
        making: how parts are made, which is not said in the file.
        processes: all of the command.

    Raises:
        ValueError: the parts there are of another encoder or other images, or made otherwise.
    """
    from accelerate.utils import broadcast_object_list

    work = None
    numbers: list[Any] = [None]
    if processes.is_main_process:  # it alone makes a temporary set
        work = opened()
        _agree(work.folder, {**work.facts, **making})
        numbers = [[part.number for part in parts.missing(work.parts, work.folder)]]
        if there := len(work.parts) - len(numbers[0]):
            sys.stderr.write(f"{there} of {len(work.parts)} parts are in {work.folder}\n")
    if processes.num_processes > 1:
        numbers = broadcast_object_list(numbers)
    work = work or opened()
    return replace(work, left=[work.parts[number] for number in numbers[0]])


def _open(trained: Trained, data: str, folder: Path, dtype: str, samples_per_part: int) -> _Work:
    shard_set = open_input(data, folder, workers=len(os.sched_getaffinity(0)))
    facts = {**_facts_of(trained), "dtype": dtype, **_facts_of_data(shard_set)}
    return _Work(data, shard_set, folder, facts, parts.cut(shard_set, samples_per_part))


def _facts_of(trained: Trained) -> dict[str, Any]:
    from training.exported import digest_of

    encoder = {**trained.facts, "sha256": digest_of(trained.encoder.state_dict())}
    return {
        "encoder": encoder,
        "step": encoder.pop("step"),
        "size": trained.size,
        "mean": list(trained.normalisation.mean),
        "std": list(trained.normalisation.std),
        "precision": str(trained.autocast or "float32").removeprefix("torch."),
    }


def _facts_of_pixels(trained: Trained) -> dict[str, Any]:
    """Return what decides which decoder makes the pixels: each has its own, by a level or two."""
    if trained.device.type == "cpu":
        return {"device": "cpu"}
    from pipeline.tuning import Tuning

    tuning = (trained.tuning or Tuning()).for_one_pass().filled(batch_size=1)
    return {"device": "gpu", "decoder": [tuning.decode, tuning.hw_decoder_load]}


def _facts_of_data(shard_set: ShardSet) -> dict[str, Any]:
    from training.exported import described

    manifest = shard_set.manifest
    return {"data": described(manifest), "classes": manifest.classes}


def _agree(folder: Path, facts: dict[str, Any]) -> None:
    """Write what the parts are of; refuse parts of something else."""
    path = folder / PLAN
    plan = json.loads(json.dumps(facts))
    if path.exists():
        before = json.loads(durable.read(path))
        # Earlier versions' plans have fewer names; such parts are gone on with, as they were then.
        if other := [name for name in plan if before.get(name, plan[name]) != plan[name]]:
            raise ValueError(
                f"{folder} holds parts of another command or device: {', '.join(other)} differ. "
                "Repeat that command as it was, remove the folder, or give another --out."
            )
    durable.replace_json(path, plan)


def _make(work: _Work, trained: Trained, processes: PartialState, batch_size: int) -> None:
    """Make this process's share of the parts that are not there."""
    from pipeline.tuning import Tuning, default_threads
    from training.processes import local_world_size

    mine = work.left[processes.process_index :: processes.num_processes]
    threads = Tuning(threads=default_threads(local_world_size()))
    with _progress(sum(part.samples for part in mine), processes) as told:
        maker = parts.Maker(
            trained=trained,
            shard_set=work.shard_set,
            folder=work.folder,
            dtype=np.dtype(work.facts["dtype"]),
            batch_size=batch_size,
            tuning=threads.over(trained.tuning or Tuning()),
            told=told,
        )
        for part in mine:
            maker.make(part)


@contextmanager
def _progress(images: int, processes: PartialState) -> Iterator[Callable[[int], object]]:
    """Show how far this process is; rank 0's speaks for all, which have as much to do."""
    console = Console(stderr=True)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not processes.is_main_process
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=images)
        yield lambda done: progress.advance(task, done)


def _finish(work: _Work, trained: Trained, out: Path, *, seconds: float) -> None:
    """Join the parts, remove them, and say what was written."""
    lost = parts.left_out(work.parts, work.folder)
    if work.temporary:
        lost = [*quarantined(work.shard_set), *lost]
    paths = [work.folder / f"{part.name}.npy" for part in work.parts]
    joined = feature_file.Joined(paths, by_id=work.temporary)
    if not len(joined):
        raise ValueError(f"no image of {work.data} can be read; copy it again.")
    whole = work.folder / f"joined{out.suffix}"
    feature_file.write(whole, joined, {**work.facts, "left_out": lost})
    whole.replace(out)
    durable.sync(out.parent)
    shutil.rmtree(work.folder)
    (F,) = joined.dtype("feature").shape
    images = sum(part.samples for part in work.left)
    rows = [
        ("images", f"{len(joined):,} of {work.data}, {trained.size} px"),
        ("encoder", trained.name),
        ("features", f"{F:,} of {work.facts['dtype']}"),
        ("time", f"{seconds:,.1f} s, {images / seconds:,.0f} images/s"),
        *(("left out", line) for line in lost[:SHOWN]),
        ("where", str(out)),
    ]
    if len(lost) > SHOWN:
        rows.insert(-1, ("", f"and {len(lost) - SHOWN:,} more, listed in the file: left_out"))
    show([Section("features", rows)], Console())


if __name__ == "__main__":
    run_function(main)
