"""How much the gradients of ranking and of contrastive learning differ as an encoder learns.

    python -m benchmarks.ranking_gradients --config recipes/stl10_cpu_simclr.yaml --steps 600 \
        --at 0 115 600 [--out FILE] -- --shards data/stl10/train

An encoder is trained with the recipe's own objective. At some steps, on the same batches, each of
several objectives is differentiated by all weights; the cosine of two such gradients says whether
an optimizer that divides by the gradient's scale, as AdamW does, could tell them apart. The cosine
of one objective's gradients on two batches is what chance makes of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from benchmarks.ranking_forms import OuterLogAP
from benchmarks.record import write
from model.method import JointEmbedding
from model.objective import LogAP, NTXent, Objective, SmoothAP
from pipeline.loader import Loader
from shards.layout import open_shards
from training.schedule import EpochStart, Schedule
from training.settings import parse
from training.step import Step
from training.surroundings import surroundings

BASE = "NTXent"
OBJECTIVES: Mapping[str, type[Objective]] = {
    BASE: NTXent,
    "LogAP": LogAP,
    "OuterLogAP": OuterLogAP,
    "SmoothAP": SmoothAP,
}
Views = tuple[Tensor, ...]


def gradients(
    method: JointEmbedding, views: Views, temperature: float
) -> dict[str, dict[str, Tensor]]:
    """Return {gallery: {objective: its gradient by all weights, one after the other [P]}}."""
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    z_VBD = torch.cat([method.embed(group) for group in views]).float()
    found: dict[str, dict[str, Tensor]] = {}
    for gallery, large in (("large", len(views[0])), ("all", None)):
        of_gallery = found.setdefault(gallery, {})
        for name, make in OBJECTIVES.items():
            objective: Any = make(temperature=temperature)  # pyright: ignore[reportCallIssue]
            loss = objective(z_VBD, gallery_views=large)
            parts = torch.autograd.grad(loss, weights, retain_graph=True)
            of_gallery[name] = torch.cat([part.flatten() for part in parts]).double()
    return found


def agreement(found: Sequence[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, float]]:
    """Return {gallery: {objective: cosine with NT-Xent's gradient}}, means over the batches.

    Args:
        found: `gradients` of some batches; two or more. The entry "NTXent" of a gallery is the
            cosine with itself on the next batch.
    """
    cosines: dict[str, dict[str, float]] = {}
    for gallery in found[0]:
        of_gallery = cosines.setdefault(gallery, {})
        for name in OBJECTIVES:
            pairs = zip(found, found[1:] if name == BASE else found, strict=False)
            of_gallery[name] = mean(
                float(F.cosine_similarity(one[gallery][BASE], other[gallery][name], dim=0))
                for one, other in pairs
            )
    return cosines


def measure(
    step: Step, batches: Iterator[Views], schedule: Schedule, at: Sequence[int], count: int
) -> Iterator[dict[str, Any]]:
    """Train up to the last of some steps, and yield what the gradients' cosines are at each."""
    method = step.method
    assert isinstance(method, JointEmbedding)
    temperature = float(method.objective.temperature)  # pyright: ignore[reportArgumentType]
    for number in range(max(at) + 1):
        if number in at:
            norms = {name: value.clone() for name, value in method.named_buffers()}
            found = [gradients(method, next(batches), temperature) for _ in range(count)]
            for name, value in method.named_buffers():  # as if it had not been asked
                value.copy_(norms[name])
            yield {"step": number, "cosines": agreement(found)}
        step(next(batches), learning_rate=schedule.rate(number, 0.0))


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranking_gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, required=True, help="length of the schedule")
    parser.add_argument("--at", type=int, nargs="+", required=True)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("more", nargs="*", help="flags of train.py, after --")
    arguments = parser.parse_args()
    words = ["--config", arguments.config, "--run", "unused", *arguments.more]
    config = parse([*words, "--steps", str(arguments.steps)]).config
    torch.manual_seed(config.seed)
    accelerator = Accelerator(cpu=True)
    step = Step(config, accelerator)
    loader = Loader(
        open_shards(config.shards),
        config.groups,
        batch_size_per_rank=config.batch_size,
        seed=config.seed,
        shuffle_buffer=config.shuffle_buffer,
        normalisation=config.normalisation,
    )
    schedule = Schedule(config, EpochStart(), steps_per_epoch=len(loader))
    stages = []
    with loader:
        batches = (batch.views for batch in loader.endless())
        for stage in measure(step, batches, schedule, arguments.at, arguments.batches):
            stages.append(stage)
            print(stage, file=sys.stderr, flush=True)
    record = {
        "command": " ".join(["python -m benchmarks.ranking_gradients", *sys.argv[1:]]),
        "surroundings": surroundings("torch"),
        "weights": sum(p.numel() for p in step.method.parameters()),
        "batches": arguments.batches,
        "stages": stages,
    }
    write(record, arguments.out)


if __name__ == "__main__":
    main()
