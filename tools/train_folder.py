"""Train on a folder of images: from photographs to an encoder, a page about it, and their features.

    viewrank train my/photos                  # the same as python -m tools.train_folder my/photos
    viewrank train my/photos --max_seconds 600 -- --seed 1

It chooses a recipe by the device and by the images' size, and starts other commands, each of which
is shown and can be run alone. The same command again goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any
from zipfile import BadZipFile

import numpy as np
import PIL.Image
import safetensors
from rich.console import Console

from pipeline import dali
from shards.layout import MANIFEST, SUBSETS, ShardSet, open_shards
from shards.source import ImageFolder
from shards.storage import is_remote
from shards.writing.writing_plan import is_of
from training import installed, packaged_recipes, shown_commands
from training.command_line import Rest, run_function
from training.terminal import Section, show

CPU, GPU = "own_cpu", "own_gpu"
TEST, TRAIN = "test", "train"
LOOKED_AT = 64  # images whose size is read before they are sharded
LEAST = 20  # images with which anything can be learnt and held out
STORED = 2  # an image's stored shorter side, in those of the largest view
STEP = 4  # pixels: sizes of views are its multiples
SMALLEST = 16  # pixels: below, the encoders see nothing


def main(
    images: str,
    *,
    data: Path | None = None,
    run: Path | None = None,
    recipe: str | None = None,
    hold_out: float = 0.1,
    resize_shorter: int | None = None,
    max_seconds: float | None = None,
    report: bool = True,
    features: bool = True,
    more: Rest,
) -> None:
    """Train on a folder of images, and say what was chosen.

    Flags of train.py follow --, at the end.

    Args:
        images: folder of images or of class folders, local or such as s3://….
        data: shard set to make of them, or to use again; by default, data/NAME of the folder.
        run: folder of the run; by default, runs/NAME.
        recipe: YAML file or name; by default, own_gpu with a GPU, and own_cpu without.
        hold_out: share of the images that is not trained on, and evaluated.
        resize_shorter: shorter side to which larger images are reduced when they are sharded, in
            pixels; 0 leaves them. By default, twice the largest view where that saves decoding.
        max_seconds: training seconds; by default, the recipe's epochs.
        report: write a page about the run.
        features: write the features of all images.
        more: flags of train.py.
    """
    began = time.monotonic()
    installed.require("torch", dali.PACKAGE)
    if not 0 < hold_out < 1:
        raise ValueError(f"hold_out={hold_out}; expected a share above 0 and below 1, such as 0.1.")
    if not is_remote(images):
        _refuse_no_folder(images)
    name = _name(images)
    data, run = data or Path("data", name), run or Path("runs", name)
    console = Console(highlight=False)
    import torch  # here, so that --help takes no seconds

    from training.config import gpu_available
    from training.settings import parse

    recipe = recipe or (GPU if gpu_available() else CPU)
    _refuse_no_recipe(recipe)
    length: list[str] = []
    if max_seconds is not None:
        length += ["--max_seconds", str(max_seconds).removesuffix(".0"), "--epochs", "none"]
        length += ["--evaluate_every", "none", "--evaluations", "4", "--warmup_epochs", "0.2"]
    # As train.py will read it, so that what is wrong shows before the images are sharded.
    asked = parse(["--config", recipe, "--shards", str(data), "--run", str(run), *length, *more])
    wanted, devices = asked.resolved, torch.cuda.device_count() if asked.config.on_gpu else 1
    del asked  # and its networks
    if (data / MANIFEST).exists():
        _refuse_others(data, images)
        _refuse_other_side(data, wanted["views"]["size"], resize_shorter)
    else:
        _shard(images, data, _stored_side(images, wanted["views"]["size"], resize_shorter))
    whole = open_shards(str(data))
    if len(whole) < LEAST:
        raise ValueError(f"{images} has {len(whole)} images; expected {LEAST} or more.")
    train, test = (f"{data}/{SUBSETS}/{each}" for each in (TRAIN, TEST))
    if Path(test, MANIFEST).exists():
        _refuse_other_share(test, hold_out)
    else:
        words = ["select", str(data), TEST, "--fraction", str(hold_out), "--rest", TRAIN]
        if len(whole.manifest.classes) > hold_out * len(whole):  # one of each would be too many
            words += ["--stratified", "false"]
        shown_commands.run(*words)

    held_out = len(open_shards(test))
    words = ["--config", recipe, "--shards", train, "--run", str(run)]
    if not any(word.partition("=")[0] in ("--views.size", "--more_views") for word in more):
        words += _views(wanted, whole.manifest.statistics.median_shorter_side)
    # An evaluation gives a part of the held-out images to each process.
    batch, processes = _batch(wanted, len(open_shards(train)), min(devices, held_out))
    words += ["--evaluation_train", train, "--evaluation_test", test, *length]
    _train([*words, *more, *batch], processes)
    made = {"images": f"{len(whole):,} in {data}, {held_out:,} held out"}
    if processes < devices:
        made["GPUs"] = f"{processes} of {devices}: there are too few images for more"
    made["encoder"] = f"{run}/encoder.safetensors"
    if features:
        table = run / "features.npz"
        if table.exists() and _outdated(table, run, whole):
            table.unlink()
        if not table.exists():
            shown_commands.run("embed", str(run), str(data), "--out", str(table))
        made["features"] = str(table)
    if report:
        made["page"] = report_of(run, run / "report.html")
    made["seconds"] = f"{time.monotonic() - began:.0f} in all"
    show([Section(f"{images}", list(made.items()))], console)


def _refuse_no_folder(images: str) -> None:
    """Refuse what is no folder of images before anything is made.

    Raises:
        ValueError: what it is, and what to give.
    """
    if not Path(images).is_dir():
        raise ValueError(
            f"{images} is not a folder. Give the folder of images or of class folders; or --config "
            "RECIPE, to train on shard sets that a recipe names."
        )
    if Path(images, MANIFEST).exists():
        raise ValueError(
            f"{images} is a shard set already: viewrank train --config {CPU} --shards {images} "
            "trains on it, and --help lists all settings."
        )


def _name(images: str) -> str:
    """Return what a folder's shard set and run are called."""
    last = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(images).resolve().name).strip("_.-")
    return last or "images"


def _refuse_no_recipe(name: str) -> None:
    """Refuse a recipe that is not there.

    Raises:
        ValueError: its name.
    """
    if not Path(packaged_recipes.located(["--config", name])[1]).is_file():
        raise ValueError(
            f"recipe={name}: there is no such file, and viewrank brings no such recipe."
        )


def _stored_side(images: str, largest: int, wanted: int | None) -> int:
    """Return the shorter side to reduce images to, 0 to leave them, from a look at some."""
    if wanted is not None:
        return wanted
    source = ImageFolder(root=images)
    sides: list[int] = []
    for index in np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int).tolist():
        try:
            image = source[index].image
            assert isinstance(image, bytes)
            with PIL.Image.open(BytesIO(image)) as opened:
                sides.append(min(opened.size))
        except (OSError, ValueError, PIL.Image.DecompressionBombError):
            continue  # sharding says which, and why
    stored = STORED * largest
    return stored if sides and median(sides) >= 1.5 * stored else 0


def _shard(images: str, data: Path, side: int) -> None:
    reduced = ["--resize_shorter", str(side), "--encoding", "jpeg:90"] if side else []
    shown_commands.run("shard", "folder", "--root", images, "--out", str(data), *reduced)


def _refuse_others(data: Path, images: str) -> None:
    """Refuse a shard set that is not of these images.

    Raises:
        ValueError: what it is of.
    """
    shard_set, source = open_shards(str(data)), ImageFolder(root=images)
    if is_of(shard_set, source):
        return
    with suppress(OSError, ValueError):  # no --root is known, it is gone, or it is remote
        words = shlex.split(shard_set.manifest.command)
        before = words[words.index("--root") + 1]
        # One folder has several names where links lead to it.
        if os.path.samefile(before, images) and is_of(shard_set, ImageFolder(root=before)):
            return
    found, now = shard_set.manifest.account.found, len(source)
    raise ValueError(
        f"{data} is a shard set of {found:,} images, made from another folder or before its "
        f"images changed; {images} has {now:,}. Remove it and the run, and both are made "
        "again; or give another --data and --run."
    )


def _refuse_other_side(data: Path, largest: int, wanted: int | None) -> None:
    """Refuse a shard set of images that were reduced to another side, or for a smaller recipe.

    Args:
        data: the shard set.
        largest: size of the recipe's views, in pixels.
        wanted: shorter side that was asked for; None where nothing was.

    Raises:
        ValueError: to which side they are reduced.
    """
    manifest = open_shards(str(data)).manifest
    side = manifest.resize_shorter
    if wanted is not None:
        fits, what = wanted == side, f"resize_shorter={wanted}"
    else:
        # Where most were small anyway, they have the pixels that `_stored_side` would leave them.
        reduced = 2 * manifest.remarks.get("reduced", 0) >= manifest.samples
        fits = not reduced or side >= STORED * largest
        what = f"views of {largest} px are cut from images of {STORED * largest} px"
    if not fits:
        state = f"reduced to a shorter side of {side} px" if side else "as large as they were"
        raise ValueError(
            f"{what}, but the images in {data} are {state} since an earlier command. Give "
            f"--resize_shorter {side} to train on them; or other --data and --run, or remove "
            f"{data} and the runs on it, and they are stored anew."
        )


def _refuse_other_share(test: str, hold_out: float) -> None:
    """Refuse a subset of held-out images that another share was asked of.

    Raises:
        ValueError: which share it is.
    """
    words = shlex.split(open_shards(test).manifest.command)
    share = words[words.index("--fraction") + 1] if "--fraction" in words else None
    if share is not None and float(share) != hold_out:
        raise ValueError(
            f"hold_out={hold_out}, but {test} holds out {share} of the images since an earlier "
            f"command. Give --hold_out {share}; or other --data and --run."
        )


def _outdated(features: Path, run: Path, whole: ShardSet) -> bool:
    """Whether a file of features is of an earlier state of the encoder, or of other images."""
    from training import exported  # here, so that --help takes no seconds

    try:
        with np.load(features) as file:
            facts = json.loads(str(file["metadata"]))
        with safetensors.safe_open(str(run / exported.NAME), "np") as encoder:
            step = json.loads(encoder.metadata()["step"])
        return facts["step"] != step or facts["data"]["manifest_sha256"] != whole.manifest.digest()
    except (OSError, ValueError, KeyError, BadZipFile):
        return True


def _views(recipe: dict[str, Any], shorter: float) -> list[str]:
    """Return the flags by which a recipe's views fit images of a shorter side, in pixels."""
    size, groups = recipe["views"]["size"], recipe["more_views"]
    if shorter >= size:
        return []
    share = shorter / size
    words = ["--views.size", str(_rounded(size * share))]
    smaller = [{**group, "size": _rounded(group["size"] * share)} for group in groups]
    return words + (["--more_views", json.dumps(smaller)] if smaller else [])


def _batch(recipe: dict[str, Any], samples: int, devices: int) -> tuple[list[str], int]:
    """Return the flags by which a recipe's batch fits few samples, and on how many devices.

    Args:
        recipe: plain values.
        samples: that are trained on.
        devices: at most.
    """
    batch = recipe["batch_size"]
    while batch > 2 and batch > samples // 4:  # an epoch has some steps
        batch //= 2
    devices = max(1, min(devices, batch // 2))
    fitting = {"batch_size": batch // devices * devices}
    if (micro := recipe["micro_batch_size"]) is not None:
        parts = range(devices, max(devices, micro) + 1, devices)
        fitting["micro_batch_size"] = max(n for n in parts if fitting["batch_size"] % n == 0)
    changed = {name: value for name, value in fitting.items() if value != recipe[name]}
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))], devices


def _rounded(pixels: float) -> int:
    return max(SMALLEST, STEP * round(pixels / STEP))


def _train(words: list[str], devices: int) -> None:
    """Train in this machine's processes, one for each GPU."""
    if devices < 2:
        shown_commands.run("train", *words)
        return
    launcher = ["--multi_gpu", "--num_processes", str(devices), "-m", "viewrank", "train", *words]
    shown_commands.start(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher],
        shown=["accelerate", "launch", *launcher],
    )


def report_of(run: Path, page: Path) -> str:
    """Write the page about a run; return where it is, or why there is none."""
    try:
        installed.require(*installed.EXTRAS["report"])
    except ModuleNotFoundError as error:
        return f"none: {installed.remedy(error)}"
    shown_commands.run("report", str(run), "--out", str(page))
    return str(page)


if __name__ == "__main__":
    run_function(main)
