"""Shows a method the views that it asks to remember: passes over the training set between steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat

import torch
import torch.distributed as dist

from model.method import MemoryRequest, Method
from pipeline.loader import Loader
from training.config import Config

MANY = 8  # views of a sample in one pass, at most: so often an image is decoded only once


def fill(method: Method, request: MemoryRequest, config: Config, loader: Loader) -> None:
    """Show a method views of the training set, the same ones for the same request.

    They come from a loader of their own, so that the training's goes on as if nothing had happened.
    Every rank shows its own part.

    Args:
        method: on its device; its buffers become alike on all ranks, as in a checkpoint.
        request: what it asks for.
        config: of the run; its seed and the request's phase make the views.
        loader: the training's, whose shard set and settings are used.
    """
    share_buffers(method)
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
        shuffle_buffer=loader.batch_size_per_rank,  # their order is of no matter
        tuning=loader.tuning.for_one_pass(),
        searching=loader.searching,
    )

    batches = ((batch.views[0], batch.id_B) for batch in chain.from_iterable(repeat(source)))
    autocast = config.autocast()
    with source, torch.autocast(loader.device.type, autocast, enabled=autocast is not None):
        method.remember(request, batches)


def share_buffers(method: Method) -> None:
    """Give all ranks the first one's buffers, which are what checkpoints hold.

    Batch norm that is not synchronised differs by rank.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in method.buffers():
            dist.broadcast(buffer, 0)
