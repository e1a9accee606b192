"""What is learned in equal seconds: CIFAR-10, ResNet-18, every method, several numbers of views.

Two of them also in the goal's own time. Then, where their images are given, STL-10 and COCO at 96
pixels: the 5,000 labelled images of STL-10, without their labels, and 5,000 images of COCO's
train2014, squashed to 256×256. Both are judged by STL-10's labels, k-NN and a linear probe: fitted
to the 5,000, tested on the 8,000 test images.

k-NN as lightly's published benchmark has it (k = 200, T = 0.1), which reaches 84.8 % with SimCLR
after 200 epochs, about 100 minutes on an A6000. Goal: 84.8 % in under 5 minutes. Seconds are of
training, evaluations left out; the schedule follows them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.gpu import forked_program, material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from training.monitor import records

KNOWN = 0.848
SECONDS, GOAL_SECONDS = 180.0, 285.0
CROPS = "2 × 32 + 6 × 20 px"
"""What learned most in equal seconds on a CPU (docs/methods.md)."""
COMPILED = ["--compile", "true"]
AT_THE_GOAL = f", {GOAL_SECONDS:g} s"
TINY = [
    *("--method.encoder", "SmallResNet", "--method.encoder.width", "4"),
    *("--batch_size", "8", "--shuffle_buffer", "16"),
]
"""Words of a rehearsal."""
POINTS = 6
"""Evaluations on the way."""
FIGURES = ("knn_top1", "linear_top1", "label_map", "view_map", "effective_dimension")


class Learned(NamedTuple):
    """Images to learn from, and those to judge by."""

    data: str
    """In words, for the tables."""
    shards: Path
    train: Path
    test: Path


class LearningRun(NamedTuple):
    """A run to compare."""

    words: list[str]
    """train.py's."""
    of: Learned


def cifar10(place: Sizes) -> Learned:
    """Return CIFAR-10 for all three."""
    train, test = (material.cifar10(place, split) for split in ("train", "test"))
    return Learned("CIFAR-10", train, train, test)


def photographs(place: Sizes) -> Mapping[str, LearningRun]:
    """Return what is learned from STL-10 and COCO, of those that are given."""
    if not place.stl10:
        return {}
    train, test = (material.stl10_labelled(place, split) for split in ("train", "test"))
    sets = {
        "STL-10": Learned(
            "5,000 labelled images of STL-10, without their labels", train, train, test
        )
    }
    if place.coco2014:
        text = "5,000 images of COCO's train2014, squashed to 256×256, judged by STL-10's labels"
        sets["COCO"] = Learned(text, material.coco2014(place), train, test)
    ways = {"S2R2-style, 8 views": ("s2r2", 8), "SimCLR, 8 views": ("simclr", 8)}
    ways["SimCLR, 2 views"] = ("simclr", 2)
    found: dict[str, LearningRun] = {}
    for data, of in sets.items():
        for way, (recipe, V) in place.of(ways, {"SimCLR, 2 views": ("simclr", 2)}).items():
            words = ["--config", f"recipes/stl10_{recipe}.yaml", "--views.count", str(V)]
            words += place.of(COMPILED, TINY)
            found[f"{data}: {way}{place.of(', compiled', '')}"] = LearningRun(words, of)
    return found


def variants(place: Sizes) -> Mapping[str, LearningRun]:
    """Return what is compared, the most telling first."""
    of = cifar10(place)
    if place.rehearsal:
        words = ["--config", "recipes/cifar10_simclr.yaml", "--views.count", "2", *TINY]
        return {"SimCLR": LearningRun(words, of), **photographs(place)}
    recipes = {
        f"S2R2-style, {CROPS}": ("multicrop_s2r2", None),
        "SimCLR, 2 views": ("simclr", 2),
        f"SimCLR, {CROPS}": ("multicrop_simclr", None),
        "S2R2-style, 4 views": ("s2r2", 4),
        "SimCLR, 4 views": ("simclr", 4),
        "S2R2-style, 8 views": ("s2r2", 8),
        "S2R2-style, 2 views": ("s2r2", 2),
        "GroCo": ("groco", None),
        "MoCo-v2": ("moco", None),
        "SwAV": ("swav", None),
        "SimSiam": ("simsiam", None),
        "BYOL": ("byol", None),
        "DINO": ("dino", None),
        "S2R2-style, 16 views": ("s2r2", 16),
    }
    plain: dict[str, list[str]] = {}
    for name, (recipe, V) in recipes.items():
        views = ["--views.count", str(V)] if V else []
        plain[name] = ["--config", f"recipes/cifar10_{recipe}.yaml", *views]
    fast = {
        f"{name}, compiled": [*plain[name], *COMPILED]
        for name in (f"S2R2-style, {CROPS}", "SimCLR, 2 views", f"SimCLR, {CROPS}")
    }
    crops, simclr, *_ = fast
    # The first alone is short enough for a lease of a quarter of an hour beside other stages.
    at_the_goal = {f"{name}{AT_THE_GOAL}": fast[name] for name in (crops, simclr)}
    early, late = {crops: fast[crops]} | at_the_goal, fast | plain
    return {
        **{name: LearningRun(words, of) for name, words in early.items()},
        **photographs(place),
        **{name: LearningRun(words, of) for name, words in late.items() if name not in early},
    }


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    found = [replace(material.make_cifar10(place), first=True)]
    found += [material.make_stl10_labelled(place)] if place.stl10 else []
    found += [material.make_coco2014(place)] if place.stl10 and place.coco2014 else []
    for number, (name, (words, of)) in enumerate(variants(place).items()):
        run = place.data / f"run-{re.sub('[^0-9A-Za-z]+', '-', name)}"
        seconds = place.of(GOAL_SECONDS if AT_THE_GOAL in name else SECONDS, 2.0)
        work, rescue = partial(learn, place, words, of, run, seconds), partial(known, run, of)
        # With evaluations, a start, and of what is compiled one start more and the compilation,
        # which takes a new machine a minute.
        takes = place.of(seconds + 60.0 + 100.0 * (COMPILED[0] in words), 20.0)
        first = number == 0  # made again if it was cut off: its rate had not come down yet
        found.append(BoxedMeasurement(name, work, takes, first=first, whole=first, rescue=rescue))
    return found


def learn(place: Sizes, words: list[str], of: Learned, run: Path, seconds: float) -> Row:
    """Return the curve of one run, its last figures, and when it knew what lightly's did.

    Args:
        place: where and how large.
        words: train.py's.
        of: the images.
        run: the run's folder.
        seconds: of training.
    """
    common = [
        *("--shards", str(of.shards), "--epochs", "null"),
        *("--evaluation_train", str(of.train), "--evaluation_test", str(of.test)),
        *("--evaluation_neighbours", str(place.of(200, 5)), "--evaluation_temperature", "0.1"),
        *("--tuned", "none", "--profile_seconds", "0", "--keep_checkpoints", "1"),
        *("--self_check", "false", "--check_shards", "false"),
        *("--mixed_precision", place.of("bf16", "no"), "--warmup_epochs", place.of("2", "0")),
    ]
    shutil.rmtree(run, ignore_errors=True)  # what an earlier attempt left is not this one's
    if COMPILED[0] in words:  # the run then finds it on the disk, as every run but the first does
        twice = ["--steps", "2", "--evaluation_test", "null", "--evaluation_train", "null"]
        first = run.with_name(f"first-{run.name}")
        shutil.rmtree(first, ignore_errors=True)
        forked_program.finish(
            [*words, *common, "--warmup_epochs", "0", *twice, "--run", str(first)]
        )
    length = ["--max_seconds", str(seconds), "--evaluate_every", "null"]
    length += ["--evaluations", str(POINTS), "--log_every", place.of("20", "1")]
    forked_program.finish([*words, *common, *length, "--run", str(run)])
    return known(run, of)


def known(run: Path, of: Learned) -> Row:
    """Return what a run's records say, ended or not."""
    found = records(run)
    steps = [record for record in found if "loss" in record]
    evaluated = [record for record in found if "evaluation" in record]
    curve = []
    for record in evaluated:
        before = [step for step in steps if step["step"] <= record["step"]]
        at = max(before, key=lambda step: step["step"], default=steps[0])
        figures = {name: record[name] for name in FIGURES if name in record}
        views = at["views_per_second"] / at["images_per_second"]
        curve.append(
            {
                "step": record["step"],
                "seconds": round(at["seconds"], 1),
                "epochs": at["epoch"],
                "epochs_times_views": round(at["epoch"] * views, 3),
                **figures,
            }
        )
    if not curve:
        raise ValueError(f"{run} was cut off before its first evaluation")
    knew = [point["seconds"] for point in curve if point.get("knn_top1", 0.0) >= KNOWN]
    last = steps[-1]
    return {
        "data": of.data,
        "seconds": round(last["seconds"], 1),
        "steps": last["step"],
        # Medians: the last lap may be a step.
        "images_per_second": round(median(step["images_per_second"] for step in steps), 1),
        "views_per_second": round(median(step["views_per_second"] for step in steps), 1),
        "data_wait": round(median(step["data_wait"] for step in steps), 4),
        "memory_gib": round(last["memory_gib"], 2),
        "curve": curve,
        "final": curve[-1],
        f"seconds_to_{KNOWN:.1%}": min(knew, default=None),
    }
