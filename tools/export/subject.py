"""What is exported: the network of a run, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.encoder import Encoder
from pipeline.graph import scaled_shorter
from pipeline.normalisation import Normalisation
from shards.layout import open_shards
from training import exported
from training.run import run_folder
from training.trained import OpenedRun, open_encoder, open_run

_STEPS = (32, 28, 16, 64, 48, 8)
"""What is added to the trained size, in pixels, to find a second one that the encoder takes."""


@dataclass(frozen=True)
class Subject:
    """A trained network in eval mode, on the CPU, in float32."""

    encoder: Encoder
    network: nn.Module
    """[N, 3, H, W] → [N, F]: the encoder; with the projector behind it, → [N, D]."""
    projector: bool
    """Whether the projector is behind it."""
    size: int
    """Height and width of the images that it was trained on, in pixels."""
    normalisation: Normalisation
    facts: Mapping[str, Any]
    """See `training.exported`; and how an image is brought to its size."""
    run: Path | None
    """The run's folder; None for an exported encoder that was taken out of it."""
    stem: str
    """Of a file's name for it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the encoder's weights under the names of the library that it is from."""
        published = exported.published(self.encoder.state_dict())
        return {name: tensor.contiguous() for name, tensor in published.items()}

    def second_size(self) -> int | None:
        """Return another size that the encoder takes, in pixels; None if there is none near."""
        for step in _STEPS:
            with suppress(ValueError):
                self.encoder.refuse(self.size + step)
                return self.size + step
        return None


def open_subject(path: Path, *, projector: bool) -> Subject:
    """Load what is to be exported.

    Args:
        path: a run's folder, a checkpoint's, or an exported encoder.safetensors.
        projector: take the projector along.

    Raises:
        ValueError: the path holds no encoder, or no projector.
    """
    if path.is_file():
        if projector:
            raise ValueError(
                f"{path} holds an encoder without its projector; name the run's folder, or a "
                "checkpoint's, for --projector."
            )
        trained = open_encoder(path, device="cpu")
        facts = exported.read(path)[1]
        run = path.parent if (path.parent / run_folder.CONFIG).exists() else None
        head, stem = None, path.stem
        encoder, size, normalisation = trained.encoder, trained.size, trained.normalisation
    else:
        opened = open_run(path, device="cpu")
        config = opened.settings.config
        facts, run = _facts(opened), opened.folder
        head = config.method.projector if projector else None
        stem = "encoder" if head is None else "embedding"
        if path.resolve() != run.resolve():  # one of several checkpoints
            stem += f"-{opened.step:08d}"
        encoder = config.method.encoder
        size, normalisation = config.views.size, config.normalisation
    # A step may recompute activations, which no other program can; nothing else differs by it.
    if turn := getattr(getattr(encoder, "network", None), "set_grad_checkpointing", None):
        turn(False)
    network = encoder if head is None else nn.Sequential(encoder, head)
    network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)  # pyright: ignore[reportCallIssue]
    return Subject(
        encoder=encoder,
        network=network,
        projector=projector,
        size=size,
        normalisation=normalisation,
        facts={
            **facts,
            "resize_shorter": scaled_shorter(size),
            "interpolation": "bilinear",
            "output": "features" if head is None else "embeddings",
        },
        run=run,
        stem=stem,
    )


def _facts(opened: OpenedRun) -> dict[str, Any]:
    """Return what the run said of its encoder at this step, or what can be said now."""
    with suppress(OSError, ValueError):
        facts = exported.read(opened.folder / exported.NAME)[1]
        if facts["step"] == opened.step:
            return facts
    shard_set = None
    with suppress(OSError, ValueError):  # it need not be here any more
        shard_set = open_shards(opened.settings.config.shards)
    return exported.facts(opened.settings, shard_set, step=opened.step)
