"""Is what the GPU does right: its tests, decoded pixels, buffers, precisions, continued runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from benchmarks.gpu import forked_program, material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from pipeline.augment import SimCLRViews
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.profile import synchronize
from pipeline.selfcheck import decoder_differences
from pipeline.tuning import Tuning
from shards.layout import open_shards
from training.command_line import UNUSED
from training.monitor import records
from training.run import checkpoint
from training.settings import parse
from training.throughput import Workload

TESTS = Path(__file__).parent.parent.parent / "tests"


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    found = [
        replace(material.make_photos(place), first=True),
        replace(material.make_cifar10(place), first=True),
        BoxedMeasurement(
            "the GPU's tests",
            partial(suite, place),
            place.of(75.0, 1.0),
            first=True,
            rescue=partial(outcomes, place),
            whole=True,
        ),
    ]
    for kind, words in {"default": [], "deterministic": ["--deterministic", "true"]}.items():
        work = partial(resume, place, kind, words)
        found.append(
            BoxedMeasurement(f"a continued run, {kind} kernels", work, place.of(60.0, 20.0))
        )
    for load in place.of((0.9, 0.0, 1.0), (0.9,)):
        work = partial(pixels, place, load)
        name = f"decoded pixels, {load:.0%} asked of the decoding engine"
        found.append(BoxedMeasurement(name, work, place.of(15.0, 1.0), first=load == 0.9))
    for finish in place.of(("fused", "dali"), ("fused",)):
        work = partial(buffers, place, finish)
        found.append(BoxedMeasurement(f"buffers, finish {finish}", work, place.of(25.0, 1.0)))
    for precision in place.of(("no", "bf16", "fp16"), ("no",)):
        work = partial(losses, place, precision)
        found.append(BoxedMeasurement(f"losses, precision {precision}", work, place.of(15.0, 1.0)))
    return found


def suite(place: Sizes) -> Row:
    """Return the outcomes of the tests that need a GPU, and the names of those that failed."""
    tests = [path for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = place.of(tests, [path for path in tests if path.name == "test_lifetime.py"])
    words = ["-o", "addopts=", "-m", "gpu", "-v", "-rfE", "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, chosen),
        *words,
        "--continue-on-collection-errors",
    ]
    with _told(place).open("w") as file:
        done = subprocess.run(command, cwd=TESTS.parent, stdout=file, stderr=file, check=False)
    text = _told(place).read_text()
    print(text)
    found = outcomes(place)
    if place.of("passed", "skipped") not in found["counts"]:
        raise RuntimeError(f"pytest ended with {done.returncode}: {text[-300:]}")
    return found


def outcomes(place: Sizes) -> Row:
    """Return how the tests ended that have ended so far."""
    text = _told(place).read_text()
    ended = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)", text, flags=re.MULTILINE)
    broken = re.findall(r"^ERROR (\S+\.py)(?!::)", text, flags=re.MULTILINE)
    ended += [(name, "ERROR") for name in broken]  # files that could not be imported
    counts = Counter(outcome.lower() for _, outcome in ended)
    if not counts:
        raise ValueError("no test has ended")
    failed = [name for name, outcome in ended if outcome in ("FAILED", "ERROR")]
    return {"counts": dict(counts), "not_passed": failed}


def _told(place: Sizes) -> Path:
    return place.data / "tests.txt"


def pixels(place: Sizes, load: float) -> Row:
    """Return how far the GPU's decoder is from the CPU's.

    Args:
        place: where and how large.
        load: share of the images that the decoding engine is asked for.
    """
    images = place.of(2_000, 16)
    apart = decoder_differences(
        open_shards(str(material.photos(place))),
        device=place.torch_device,
        tuning=Tuning(hw_decoder_load=load).filled(batch_size=images),
        samples=images,
    )
    return {
        "images": len(apart),
        "mean_levels": round(sum(each.mean for each in apart) / len(apart), 4),
        "worst_image_mean_levels": round(max(each.mean for each in apart), 3),
        "worst_image_far_share": round(max(each.far for each in apart), 5),
        "images_that_a_run_would_refuse": sum(each.wrong for each in apart),
        # A decoder that could not be loaded leaves the work to the host's, without a word.
        "decoded_by_another": any(each.mean > 0 for each in apart),
    }


def buffers(place: Sizes, finish: Literal["fused", "dali"]) -> Row:
    """Return in how many batches a kernel that reads late, behind a busy device, saw another batch.

    Args:
        place: where and how large.
        finish: see `Tuning.finish`.
    """
    device, batches = place.torch_device, place.of(150, 3)
    shard_set = open_shards(str(material.photos(place)))
    behind = 0.0

    def sums(*, late: bool) -> torch.Tensor:
        nonlocal behind
        loader = Loader(
            shard_set,
            [ViewGroup(policy=SimCLRViews(), count=place.of(8, 2), size=place.of(96, 16))],
            batch_size_per_rank=place.of(32, 4),
            device=device,
            shuffle_buffer=place.of(8192, 16),
            tuning=Tuning(finish=finish),
        )
        found = []
        with loader:
            for batch in islice(loader.endless(), batches):
                if late and device.type == "cuda":
                    torch.cuda._sleep(60_000_000)  # about 30 ms: several times what a batch takes
                found.append(batch.views[0].double().square().sum())
                del batch
                if not late:
                    synchronize(device)
            begin = time.perf_counter()
            synchronize(device)
            behind = time.perf_counter() - begin if late else behind
        return torch.stack(found).cpu()

    late, prompt = sums(late=True), sums(late=False)
    return {
        "batches": batches,
        "wrong_batches": int((late != prompt).sum()),
        "largest_relative_difference": ((late - prompt).abs() / prompt).max().item(),
        "device_was_behind_by_seconds": round(behind, 3),
    }


def losses(place: Sizes, precision: str) -> Row:
    """Return the losses of the same steps in one precision, and how many were skipped.

    Args:
        place: where and how large.
        precision: no, bf16 or fp16.
    """
    steps = place.of(60, 2)
    torch.backends.cudnn.allow_tf32 = False  # precision "no" is the one that others are held to
    words = [*_words(place, steps), "--run", "unused", "--mixed_precision", precision]
    workload = Workload(parse([*words, "--run", "unused", *UNUSED]).config)
    torch.manual_seed(0)
    with workload.loader(Tuning()) as loader:
        found = [
            workload.step(batch.views, learning_rate=1e-3).loss.detach()
            for batch in islice(loader.endless(), steps)
        ]
    skipped, _ = workload.step.guard.counts()
    return {"steps": steps, "losses": torch.stack(found).tolist(), "skipped_steps": skipped}


def resume(place: Sizes, kind: str, words: list[str]) -> Row:
    """Return how far a run that was killed and continued is from one that was not.

    Beside it how far two are from each other that nothing disturbed.

    Args:
        place: where and how large.
        kind: of kernels.
        words: train.py's, for them.
    """
    steps = place.of(240, 4)
    words = [*_words(place, steps), "--checkpoint_every", str(max(2, steps // 6)), *words]
    straight, again, killed = (place.data / f"resume-{kind}-{i}" for i in range(3))
    for run in (straight, again, killed):
        shutil.rmtree(run, ignore_errors=True)
    for run in (straight, again):
        forked_program.finish([*words, "--run", str(run)])
    _kill([*words, "--run", str(killed)], killed)
    left = checkpoint.newest(killed)
    assert left is not None
    forked_program.finish([*words, "--run", str(killed)])
    curves = [[r["loss"] for r in records(run) if "loss" in r] for run in (straight, killed)]
    return {
        "steps": steps,
        "continued_from": left.step,
        "continued_differs_by": _distance(straight, killed),
        "repeated_differs_by": _distance(straight, again),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*curves, strict=True)),
    }


def _kill(words: list[str], run: Path) -> None:
    """Train until a kill as soon as there is a checkpoint."""
    process = forked_program.start(words)
    folder = run / checkpoint.FOLDER
    while not any(folder.glob("[0-9]*")):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"train.py ended with {code} before its first checkpoint")
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def _words(place: Sizes, steps: int) -> list[str]:
    encoder = place.of(["ResNet", "--method.encoder.stem", "small"], ["SmallResNet"])
    width = place.of([], ["--method.encoder.width", "4"])
    return [
        *("--shards", str(material.cifar10(place, "train")), "--steps", str(steps)),
        *("--views.count", "4", "--views.size", "32", "--warmup_epochs", "0", "--tuned", "none"),
        *("--batch_size", str(place.of(256, 8)), "--shuffle_buffer", str(place.of(8192, 16))),
        *("--method", "JointEmbedding", "--method.encoder", *encoder, *width),
        *("--method.objective", "SmoothAP", "--log_every", "1", "--profile_seconds", "0"),
        *("--self_check", "false"),  # `pixels` is it, for all images
    ]


def _distance(one: Path, other: Path) -> float:
    """Return the largest difference of the weights; 0 is equality to the bit."""
    ours, theirs = (checkpoint.newest(run) for run in (one, other))
    assert ours is not None and theirs is not None
    weights, expected = ours.method(), theirs.method()
    return max(
        (weights[name].double() - value.double()).abs().max().item()
        for name, value in expected.items()
        if value.numel()
    )
