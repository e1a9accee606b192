"""Passes over the training set between steps, for a method that fills a memory of embeddings."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from model.memory_bank import rings
from model.method import MemoryRequest, Method
from pipeline.loader import Loader
from training.config import Config

MANY = 8  # views of a sample in one pass, at most: so often an image is decoded only once


def fill(method: Method, request: MemoryRequest, config: Config, loader: Loader) -> None:
    """Show a method views of the training set; the same request gets the same views.

    They come from another loader, so that the training's loader does not notice. Every rank shows
    its own part.

    Args:
        method: on its device; its buffers become equal on all ranks, as in a checkpoint.
        request: how many keys, of which view group; for no keys it is shown nothing.
        config: of the run; its seed and the request's phase make the views.
        loader: the training's, whose shard set and settings are used.
    """
    share_buffers(method)
    if not request.keys:
        method.remember(request, iter(()))
        return
    count = min(MANY, -(-request.keys // len(loader.shard_set)))
    source = Loader(
        loader.shard_set,
        [replace(config.groups[request.group], count=count)],
        batch_size_per_rank=loader.batch_size_per_rank,
        rank=loader.rank,
        world_size=loader.world_size,
        device=loader.device,
        seed=config.seed + 1_000_003 * (1 + request.phase),
        dtype=loader.dtype,
        shuffle_buffer=loader.batch_size_per_rank,  # their order does not matter
        tuning=loader.tuning.for_one_pass(),
        normalisation=loader.normalisation,
        searching=loader.searching,
        waiting=loader.waiting,
    )

    batches = ((batch.views[0], batch.id_B) for batch in source.endless())
    autocast = config.autocast()
    with source, torch.autocast(loader.device.type, autocast, enabled=autocast is not None):
        method.remember(request, batches)


def share_buffers(method: Method) -> None:
    """Copy the buffers of rank 0 to all ranks; checkpoints hold those of rank 0.

    Without synchronised batch norm, ranks have different statistics. Rings of keys are the same.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        same = {id(buffer) for ring in rings(method) for buffer in ring.large}
        for buffer in method.buffers():
            if id(buffer) not in same:
                dist.broadcast(buffer, 0)
