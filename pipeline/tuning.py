"""How the pipeline runs on this machine: what `python -m tools.tune` finds out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from pipeline.control_groups import cores
from pipeline.setting import setting


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Settings of the machine, not of the experiment: the same images, the same random draws.

    `decode` and `hw_decoder_load` change pixels by about a level, as decoders differ, `finish` by
    rounding and clamping (docs/augmentation.md); a run that is continued keeps these three.

    None stands for the value that `python -m tools.tune` found for this machine and load, or else
    for a default.
    """

    threads: int | None = setting(None, resume="free", compare="own")
    """CPU threads of this rank's pipeline; by default, its share of the cores."""
    prefetch: int | None = setting(None, resume="free", compare="own")
    """Batches that are made ahead; by default 2."""
    decode: Literal["gpu", "cpu", "cache"] | None = setting(None, resume="reshaped", compare="own")
    """With a GPU: decode JPEGs there (the default); on the CPU; or there once, and keep the decoded
    images in the GPU's memory."""
    hw_decoder_load: float | None = setting(None, resume="same", compare="own")
    """Share of the JPEGs that a GPU's decoding engine takes, its cores the rest; by default 0.9."""
    minibatch: int | None = setting(None, resume="free", compare="own")
    """Images that the GPU resizes in one launch; by default, all of a batch."""
    finish: Literal["fused", "dali"] | None = setting(None, resume="reshaped", compare="own")
    """fused, the default: views leave DALI as uint8; colours, solarisation and normalisation are
    one pass on the training stream. dali: DALI does all of it, ahead of time."""

    def __post_init__(self) -> None:
        for name in ("threads", "prefetch", "minibatch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"tuning.{name}={value}, but it must be 1 or more.")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(f"tuning.hw_decoder_load={self.hw_decoder_load} is not from 0 to 1.")

    def for_one_pass(self) -> Tuning:
        """Return these settings for evaluation: the same decoder, but no cache of its images."""
        return replace(self, decode="gpu") if self.decode == "cache" else self

    def over(self, other: Tuning) -> Tuning:
        """Return these settings, with those of `other` for fields that are None."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: v for name, v in given.items() if v is not None})

    def filled(self, *, batch_size: int, ranks_per_node: int = 1) -> Tuning:
        """Return these settings, with the defaults for fields that are None."""
        return self.over(
            Tuning(
                threads=default_threads(ranks_per_node),
                prefetch=2,
                decode="gpu",
                hw_decoder_load=0.9,
                minibatch=batch_size,
                finish="fused",
            )
        )


def default_threads(ranks_per_node: int = 1) -> int:
    """Return how many CPU threads a rank gets: its share of the cores that it may use."""
    return max(1, cores() // max(1, ranks_per_node))


def float_type(device: torch.device, autocast: torch.dtype | None) -> torch.dtype:
    """Return the type of the views: on a GPU the one that networks compute in, else float32."""
    return autocast if autocast is not None and device.type == "cuda" else torch.float32
