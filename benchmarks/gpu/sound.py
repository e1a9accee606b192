"""Is what the GPU does right: its tests, decoded pixels, buffers, precisions, continued runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import torch

from pipeline.augment import SimCLR
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.selfcheck import compare_decoders
from pipeline.tuning import Tuning
from shards.layout import open_shards
from tools.measure import Workload, endless, parse_recipe, recipe_parser
from training.monitor import records
from training.run import checkpoint

from . import material, program
from .box import Measurement, Place, Row

ROOT = Path(__file__).parent.parent.parent


def measurements(place: Place) -> Sequence[Measurement]:
    """Return all of them, the most telling first."""
    found = [
        material.make_photos(place),
        material.make_cifar10(place),
        Measurement("the GPU's tests", partial(suite, place), place.of(120.0, 1.0)),
    ]
    for load in place.of((0.9, 0.0, 1.0), (0.9,)):
        work = partial(pixels, place, load)
        name = f"decoded pixels, {load:.0%} by the decoding engine"
        found.append(Measurement(name, work, place.of(20.0, 1.0)))
    found.append(Measurement("continued runs", partial(resume, place), place.of(90.0, 20.0)))
    for finish in place.of(("fused", "dali"), ("fused",)):
        work = partial(buffers, place, finish)
        found.append(Measurement(f"buffers, finish {finish}", work, place.of(25.0, 1.0)))
    found.append(Measurement("precisions", partial(precisions, place), place.of(40.0, 1.0)))
    return found


def suite(place: Place) -> Row:
    """Return the outcomes of the tests that need a GPU, and the names of those that failed."""
    tests = place.of(["tests"], ["tests/pipeline/test_lifetime.py"])
    words = ["-o", "addopts=", "-m", "gpu", "-q", "-rfE", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *tests, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    counts = {
        kind: int(n)
        for n, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)
    }
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    if not counts:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stderr[-300:]}")
    return {"counts": counts, "not_passed": failed}


def pixels(place: Place, load: float) -> Row:
    """Return how far the GPU's decoder is from the CPU's.

    Args:
        place: where and how large.
        load: share of the images that the decoding engine takes.
    """
    images = place.of(2_000, 16)
    told = compare_decoders(
        open_shards(str(material.photos(place))),
        device=torch.device(place.device, 0) if place.device == "cuda" else torch.device("cpu"),
        tuning=Tuning(hw_decoder_load=load).filled(batch_size=images),
        samples=images,
    )
    return {"images": images, "found": told}


def buffers(place: Place, finish: str) -> Row:
    """Return in how many batches a kernel that reads late, behind a busy device, saw another batch.

    Args:
        place: where and how large.
        finish: see `Tuning.finish`.
    """
    device = torch.device("cuda", 0) if place.device == "cuda" else torch.device("cpu")
    batches = place.of(300, 3)
    shard_set = open_shards(str(material.photos(place)))

    def sums(*, late: bool) -> torch.Tensor:
        loader = Loader(
            shard_set,
            [ViewGroup(policy=SimCLR(), count=place.of(8, 2), size=place.of(96, 16))],
            batch_size_per_rank=place.of(128, 4),
            device=device,
            shuffle_buffer=place.of(8192, 16),
            tuning=Tuning(finish="dali" if finish == "dali" else "fused"),
        )
        found = []
        with loader:
            for batch in islice(chain.from_iterable(repeat(loader)), batches):
                if late and device.type == "cuda":
                    torch.cuda._sleep(20_000_000)  # about 10 ms
                found.append(batch.views[0].double().square().sum())
                del batch
                if not late and device.type == "cuda":
                    torch.cuda.synchronize(device)
        return torch.stack(found).cpu()

    wrong = int((sums(late=True) != sums(late=False)).sum())
    return {"batches": batches, "wrong_batches": wrong}


def precisions(place: Place) -> Row:
    """Return the losses of the same steps in float32, bf16 and fp16, and the skipped ones."""
    steps, found = place.of(60, 2), {}
    for precision in place.of(("no", "bf16", "fp16"), ("no",)):
        words = [*_words(place, steps), "--run", "unused", "--mixed_precision", precision]
        workload = Workload(parse_recipe(recipe_parser("benchmarks.gpu", ""), words).config)
        torch.manual_seed(0)
        with workload.loader(Tuning()) as loader:
            losses = [
                workload.step(batch.views, learning_rate=1e-3).loss.detach()
                for batch in islice(endless(loader), steps)
            ]
        skipped, _ = workload.step.guard.counts()
        curve = torch.stack(losses).tolist()
        found[precision] = {"losses": curve, "skipped_steps": skipped}
    return {"steps": steps, "precisions": found}


def resume(place: Place) -> Row:
    """Return how far a run that was continued is from one that was not, and two that were not.

    By default, and with deterministic kernels, where not a bit may differ.
    """
    found: Row = {}
    for name, words in {"default": [], "deterministic": ["--deterministic", "true"]}.items():
        steps = place.of(40, 4)
        straight, again, continued = (place.data / f"resume-{name}-{i}" for i in range(3))
        for run in (straight, again, continued):
            shutil.rmtree(run, ignore_errors=True)
        for run, killed in (
            (straight, False),
            (again, False),
            (continued, True),
            (continued, False),
        ):
            saves = ["--checkpoint_every", str(steps // 2)]
            _train([*_words(place, steps), *saves, *words], run, killed=killed)
        losses = [[r["loss"] for r in records(run) if "loss" in r] for run in (straight, continued)]
        found[name] = {
            "steps": steps,
            "continued_differs_by": _distance(straight, continued),
            "repeated_differs_by": _distance(straight, again),
            "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        }
        if place.rehearsal:
            break
    return found


def _words(place: Place, steps: int) -> list[str]:
    encoder = place.of(["ResNet", "--method.encoder.stem", "small"], ["SmallResNet"])
    width = place.of([], ["--method.encoder.width", "4"])
    return [
        *("--shards", str(material.cifar10(place, "train")), "--steps", str(steps)),
        *("--views.count", "4", "--views.size", "32", "--warmup_epochs", "0", "--tuned", "none"),
        *("--batch_size", str(place.of(256, 8)), "--shuffle_buffer", str(place.of(8192, 16))),
        *("--method", "JointEmbedding", "--method.encoder", *encoder, *width),
        *("--method.objective", "SmoothAP", "--log_every", "1", "--profile_seconds", "0"),
    ]


def _train(words: list[str], run: Path, *, killed: bool) -> None:
    """Train to the end, or until a kill as soon as there is a checkpoint."""
    words = [*words, "--run", str(run)]
    if not killed:
        program.finish(words)
        return
    process = program.start(words)
    while checkpoint.newest(run) is None and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


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
