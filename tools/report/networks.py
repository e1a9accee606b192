"""The networks of a run, and the shard sets on which they are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.features import Features, embed, eval_mode
from evaluation.suite import VIEW_SEED
from model.encoder import Encoder
from model.method import Method
from pipeline.images import Images, LabelledImages
from pipeline.loader import Loader
from pipeline.normalisation import Normalisation
from pipeline.tuning import Tuning
from shards.layout import ShardSet, open_shards
from training import exported, machine_settings
from training.config import Config
from training.run import checkpoint, run_folder
from training.trained import device_of, locate, recipe

LARGE, SMALL = 96, 48  # pixels, of pictures in rows and of those under the pointer
_VIEWS = 4096  # of all samples, that are ranked


@dataclass(frozen=True)
class Networks:
    """What a run has learned."""

    config: Config
    encoder: Encoder
    """With its weights, on the device."""
    method: Method | None
    """The whole; None if the run left its encoder alone, as those of tools.compare do."""
    step: int
    device: torch.device
    tuning: Tuning | None
    """Settings of its run's pipeline that move pixels; None without a GPU."""
    shard_set: ShardSet
    """Whose first samples are looked at."""
    held_out: bool
    """Whether they are of the evaluation set; else the run trained on them."""


@dataclass(frozen=True)
class Looked:
    """Some samples, and what the encoder made of them."""

    features: Features
    """On the CPU."""
    pictures: Tensor
    """The images, uint8 [N, 3, H, W]."""


@dataclass(frozen=True)
class LookedViews:
    """Views of some samples, and their embeddings."""

    z_VAD: Tensor
    """Normalised, on the CPU."""
    pictures: Tensor
    """The views, uint8 [V, A, 3, H, W]."""


def open_networks(path: Path, device: str) -> Networks:
    """Load what a run has learned.

    Args:
        path: folder of the run, or of one of its checkpoints.
        device: auto, cpu or gpu.

    Raises:
        ValueError: there is no checkpoint yet, or it does not fit the configuration.
    """
    run, saved = locate(path)
    config = recipe(run, device=device).config
    where, method = device_of(config), config.method
    if saved is not None:
        with checkpoint.fits(saved.root, f"{run / run_folder.CONFIG}"):
            method.load_state_dict(saved.method())
        step = saved.step
    elif (run / exported.NAME).exists():
        tensors, facts = exported.read(run / exported.NAME)
        with checkpoint.fits(run / exported.NAME, f"{run / run_folder.CONFIG}"):
            exported.fill(method.encoder, tensors)
        step = facts["step"]
    else:
        raise ValueError("there is no checkpoint yet")
    moved = method.to(where).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return Networks(
        config=config,
        encoder=moved.encoder,
        method=moved if saved is not None else None,
        step=step,
        device=where,
        tuning=machine_settings.kept(run).for_one_pass() if where.type == "cuda" else None,
        shard_set=open_shards(config.evaluation_test or config.shards),
        held_out=config.evaluation_test is not None,
    )


def look(networks: Networks, samples: int) -> Looked:
    """Return features and pictures of the first samples, in stored order: that is a random one."""
    config, pictures = networks.config, list[Tensor]()
    images = Images(
        networks.shard_set,
        size=config.views.size,
        batch_size=min(128, samples),
        device=networks.device,
        tuning=networks.tuning,
        normalisation=config.normalisation,
    )

    def some() -> Iterator[LabelledImages]:
        left = samples
        for batch in images:
            own = LabelledImages(batch.image_BCHW[:left], batch.label_B[:left], batch.id_B[:left])
            pictures.append(bytes_of(own.image_BCHW, config.normalisation))
            yield own
            left -= len(own.id_B)
            if left <= 0:
                return

    found = embed(networks.encoder, some(), autocast=config.autocast())
    features = Features(found.h_NF.cpu(), found.label_N.cpu(), found.id_N.cpu())
    return Looked(features, torch.cat(pictures))


@torch.inference_mode()
def look_at_views(networks: Networks, method: Method, samples: int) -> LookedViews:
    """Return embeddings and pictures of fresh views, as evaluations make them.

    Args:
        networks: of the run.
        method: its method.
        samples: number of them, at most.
    """
    config = networks.config
    group = replace(config.views, count=max(2, config.views.count))
    samples = min(samples, len(networks.shard_set), max(2, _VIEWS // group.count))
    size = min(64, samples)
    loader = Loader(
        networks.shard_set,
        [group],
        batch_size_per_rank=size,
        device=networks.device,
        seed=VIEW_SEED,
        tuning=networks.tuning or Tuning(),
        normalisation=config.normalisation,
    )
    z, pictures = list[Tensor](), list[Tensor]()
    autocast = config.autocast()
    with loader, eval_mode(method):
        for _, batch in zip(range(samples // size), loader, strict=False):
            views_VBCHW = batch.views[0]
            with torch.autocast(networks.device.type, autocast, enabled=autocast is not None):
                z.append(method.embed(views_VBCHW).float().cpu())
            seen = bytes_of(views_VBCHW.flatten(0, 1), config.normalisation)
            pictures.append(seen.unflatten(0, views_VBCHW.shape[:2]))
    return LookedViews(F.normalize(torch.cat(z, dim=1), dim=-1), torch.cat(pictures, dim=1))


def bytes_of(images_NCHW: Tensor, normalisation: Normalisation) -> Tensor:
    """Return normalised images as uint8 [N, 3, H, W] on the CPU, made smaller where they are large.

    Args:
        images_NCHW: normalised.
        normalisation: how they were normalised.
    """
    images_NCHW = images_NCHW.float()
    if images_NCHW.shape[-1] > LARGE:
        images_NCHW = F.interpolate(images_NCHW, LARGE, mode="bilinear", antialias=True)
    return normalisation.undone(images_NCHW).cpu()
