"""What is going to run, in a few lines, with the batch arithmetic."""

from __future__ import annotations

import torch

from pipeline.loader import Loader
from training.config import Config


def header(
    config: Config, loader: Loader, precision: str, total_steps: int, tuning_source: str
) -> dict[str, str]:
    """Return {name: text} for `Monitor.header`."""
    manifest, world_size, device = loader.shard_set.manifest, loader.world_size, loader.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
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
        "run": str(config.run),
        "device": f"{ranks} on {where}, precision {'float32' if precision == 'no' else precision}",
        "shards": f"{manifest.samples:,} samples of {manifest.source} {manifest.split} in "
        f"{len(manifest.shards)} shards, {config.shards}",
        "views": " + ".join(views)
        + (", in turn of each image and of its partner" if manifest.partners else ""),
        "pipeline": f"{tuning.threads} threads a rank, {tuning.prefetch} batches ahead, {decode}"
        f"finish {tuning.finish} ({tuning_source})",
        "batch": f"{config.batch_size // world_size} images × {V} views × {ranks} = "
        f"{config.batch_size * V:,} embeddings ranked",
        "method": f"{type(config.method).__name__}, {type(encoder).__name__} of {millions:.1f} M "
        f"parameters" + (f", {objective}" if objective is not None else ""),
        "length": f"{total_steps / len(loader):g} epochs × {len(loader):,} steps = "
        f"{total_steps:,} steps"
        + (f", at most {config.max_seconds:g} s" if config.max_seconds else ""),
    }
