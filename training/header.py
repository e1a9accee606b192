"""The header of a run: views, batch arithmetic, method, length, memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from evaluation.suite import Suite
from pipeline.loader import Loader
from pipeline.profile import Profile
from training import launcher_options, step_capture
from training.config import Config
from training.data import Data, ShardSets
from training.memory_forecast import MemoryForecast
from training.processes import Processes
from training.run import quarantine
from training.run.checkpoint import Checkpoint
from training.schedule import Schedule


def header(
    config: Config,
    data: Data,
    processes: Processes,
    schedule: Schedule,
    memory: MemoryForecast | None,
    stages: Profile | None,
) -> dict[str, str]:
    """Return {name: text} for `Monitor.header`.

    Args:
        config: of the run.
        data: its loader.
        processes: which train.
        schedule: how long.
        memory: the forecast of a step, if one was made.
        stages: costs of the pipeline's stages, if they were measured.
    """
    rows = {"run": str(config.run)}
    rows |= workload(config, data.loader, processes.precision, data.tuning_source)
    rows["length"] = schedule.describe()
    if memory is not None:
        rows["memory"] = memory.describe()
    if stages is not None:
        rows["profile"] = str(stages)
    return rows


def workload(config: Config, loader: Loader, precision: str, tuning_source: str) -> dict[str, str]:
    """Return {name: text} of a step and its input: what `python -m tools.bench` measures, too.

    Args:
        config: which views, batch and method.
        loader: of the training set.
        precision: of the networks: no, bf16 or fp16.
        tuning_source: where the settings of the pipeline come from, in words.
    """
    manifest, world_size, device = loader.shard_set.manifest, loader.world_size, loader.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if precision == "no":  # PyTorch's default on a GPU
        convolutions = device.type == "cuda" and torch.backends.cudnn.allow_tf32
        precision = "float32" + (", convolutions in TF32" if convolutions else "")
    if device.type == "cpu":
        where += f", {torch.get_num_threads()} threads"
    views: list[str] = []
    for group in config.groups:
        how, why = group.resampling_for(loader.shard_set, device)
        policy = type(group.policy).__name__
        views.append(f"{group.count} × {group.size} px {policy}, {how} ({why})")
    V = sum(group.count for group in config.groups)
    ranks = f"{world_size} rank" + "s" * (world_size > 1)
    tuning = loader.tuning
    decode = "" if device.type == "cpu" or manifest.raw else f"decode on {tuning.decode}, "
    encoder = config.method.encoder
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    objective = getattr(config.method, "objective", None)
    return {
        "device": f"{ranks} on {where}, precision {precision}",
        "shards": f"{manifest.samples:,} samples of {manifest.source} {manifest.split} in "
        f"{len(manifest.shards)} shards, {config.shards}",
        "views": " + ".join(views)
        + (", in turn of each image and of its partner" if manifest.partners else ""),
        "pipeline": f"{tuning.threads} threads a rank, {tuning.prefetch} batches ahead, {decode}"
        f"finish {tuning.finish} ({tuning_source})",
        "batch": f"{config.batch_size // world_size} images × {V} views × {ranks} = "
        f"{config.batch_size * V:,} embeddings ranked",
        "method": f"{type(config.method).__name__}, {encoder.describe()} of {millions:.1f} M "
        f"parameters" + (f", {objective}" if objective is not None else ""),
        **({"step": step_capture.describe(device)} if config.capture_step else {}),
    }


def news(
    config: Config,
    sets: ShardSets,
    data: Data,
    suite: Suite | None,
    saved: Checkpoint | None,
    killed: list[str],
) -> Iterator[str]:
    """Yield what else is to be said before the first step.

    Args:
        config: of the run.
        sets: its shard sets.
        data: its loader.
        suite: its evaluations, if it has any.
        saved: what it continues from.
        killed: which processes were killed before.
    """
    yield from launcher_options.overruled(config)
    if suite is not None:
        yield from suite.remarks()
    elif config.evaluate_every is not None or config.evaluations is not None:
        yield "nothing is evaluated: there is no --evaluation_test"
    if sets.evaluation_test is not None and sets.evaluation_test.root == sets.train.root:
        yield f"{config.shards} is trained on and evaluated on: figures are not of held-out images"
    if saved is not None:
        yield f"continuing from step {saved.step:,}: {saved.root}"
    yield from killed
    if sets.left_out:
        yield f"without the {sets.left_out} samples in {config.run / quarantine.NAME}"
    if data.reshaped:
        yield (
            f"with other batches: epoch {data.since.epoch} begins again, of "
            f"{len(data.loader):,} steps of {config.batch_size} samples; its samples so far are "
            "seen again"
        )
