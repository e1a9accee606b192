"""Checks once, before training, that the GPU makes the same pixels as the CPU.

GPU decoders have returned wrong pixels without an error (on Hopper, in August 2026, nvJPEG's
batched hardware path: pytorch/vision#9606, meta-pytorch/torchcodec#1634). A run that trains on them
shows no sign of it. What is decoded here is one batch into new memory: a decoder that is wrong only
while earlier work still reads the memory that it writes to is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dali import Pipeline, number_of
from pipeline.finish import Finish
from pipeline.graph import ViewGroup
from pipeline.normalisation import IMAGENET, Normalisation
from pipeline.part import samples_between
from pipeline.read import decode, read
from pipeline.tuning import Tuning
from pipeline.unreadable import unreadable
from shards.layout import ShardSet

# Right decoders differ by a level or two in the inverse cosine transform, and in how they enlarge
# colour, which most JPEGs have at half the resolution: some small images would be 4 levels apart.
# That changes neither brightness nor the mean colour of a block. Wrong pixels fill whole blocks.
MEAN_LEVELS = 2.0  # of 255, over an image
FAR_LEVELS, FAR_SHARE = 32, 0.02  # at most this share of an image's pixels differs by more levels
BLOCK = 16  # pixels a side; in so large a block the ways to enlarge colour agree in the mean
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def check_decoder(
    shard_set: ShardSet, *, device: torch.device, tuning: Tuning, samples: int = 64
) -> str:
    """Decode the first samples as training does, and on the CPU, and compare.

    Args:
        shard_set: whose first samples.
        device: where training decodes.
        tuning: how training decodes; every field has a value.
        samples: how many in one batch: code that decodes batches differs from that for one image.

    Returns:
        A sentence for people: how many were compared, and the largest mean difference.

    Raises:
        ValueError: the pixels differ by more than right decoders do.
    """
    if device.type != "cuda" or shard_set.manifest.raw or tuning.decode == "cpu":
        return "no decoding on a GPU to check"
    return compare_decoders(shard_set, device=device, tuning=tuning, samples=samples)


def compare_decoders(
    shard_set: ShardSet, *, device: torch.device, tuning: Tuning, samples: int
) -> str:
    """Do what `check_decoder` does, and compare the CPU's decoder with itself on a CPU."""
    apart = decoder_differences(shard_set, device=device, tuning=tuning, samples=samples)
    for each in apart:
        if each.wrong:
            raise ValueError(
                f"the GPU decodes other pixels than the CPU: sample {each.sample} of "
                f"{shard_set.root} differs by {each.mean:.1f} levels of 255 in the mean "
                f"({MEAN_LEVELS:g} at most), {each.far:.1%} of its pixels by more than "
                f"{FAR_LEVELS} ({FAR_SHARE:.0%} at most). Decode with --tuning.decode cpu, or "
                "update the driver and nvImageCodec; --no_self_check trains on these pixels."
            )
    worst = max(each.mean for each in apart)
    return f"{len(apart)} images decoded as on the CPU: {worst:.2f} levels of 255 apart at most"


class Difference(NamedTuple):
    """How far apart two decoders' pixels of one image are."""

    sample: int
    """Its id."""
    mean: float
    """Levels of 255: of the brightness, or of the colour of blocks if they differ more."""
    far: float
    """Share of the pixels whose brightness is more than `FAR_LEVELS` apart."""

    @property
    def wrong(self) -> bool:
        """Whether right decoders never differ so much."""
        return self.mean > MEAN_LEVELS or self.far > FAR_SHARE


def decoder_differences(
    shard_set: ShardSet, *, device: torch.device, tuning: Tuning, samples: int
) -> list[Difference]:
    """Decode the first samples in one batch on the device and on the CPU, and compare each.

    Args:
        shard_set: whose first samples.
        device: where the first decoder is.
        tuning: how it decodes; every field has a value.
        samples: how many, at most.
    """
    gpu = device.type == "cuda"
    samples = min(samples, len(shard_set))
    pipeline = Pipeline(
        batch_size=samples,
        num_threads=tuning.threads or 1,
        device_id=number_of(device),
        prefetch_queue_depth=1,
    )
    try:
        with samples_between(shard_set, 0, samples) as first, pipeline:
            (stored,), (id_B, _) = read(first, name="reader")
            here = decode(stored, gpu, tuning)
            there = decode(stored, False, tuning)
            pipeline.set_outputs(here, there, id_B)
            pipeline.build()  # reads the indexes
        images, expected, ids = (output.as_cpu() for output in pipeline.run())
    except RuntimeError as error:
        raise unreadable(shard_set, error) from error
    with ThreadPoolExecutor(tuning.threads or 1) as workers:  # each photo takes milliseconds
        apart = workers.map(
            distance,
            [np.asarray(images.at(i)) for i in range(samples)],
            [np.asarray(expected.at(i)) for i in range(samples)],
        )
        return [Difference(int(ids.at(i)[0]), *each) for i, each in enumerate(apart)]


def distance(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> tuple[float, float]:
    """Return how far two images [H, W, 3] are apart: see `Difference.mean` and `Difference.far`."""
    if ours.shape != theirs.shape:
        return 255.0, 1.0
    apart_HWC = ours.astype(np.float32) - theirs
    luma_HW = np.abs(apart_HWC @ _LUMA)
    height, width, _ = ours.shape
    rows, columns = np.arange(0, height, BLOCK), np.arange(0, width, BLOCK)
    sums = np.add.reduceat(np.add.reduceat(apart_HWC, rows, axis=0), columns, axis=1)
    color = float(np.abs(sums).sum() / apart_HWC.size)
    return max(float(luma_HW.mean()), color), float((luma_HW > FAR_LEVELS).mean())


def check_finish(
    groups: Sequence[ViewGroup],
    *,
    device: torch.device,
    dtype: torch.dtype,
    normalisation: Normalisation = IMAGENET,
) -> None:
    """Compare the GPU's kernel with its definition on random views.

    Raises:
        ValueError: they differ by more than the rounding of `dtype`.
    """
    generator = torch.Generator().manual_seed(0)
    for group in groups:
        late = group.policy.late
        pixels = torch.randint(
            0, 256, (16, group.size**2, 3), generator=generator, dtype=torch.uint8
        )
        factors = 0.5 + torch.rand(16, 5, generator=generator)
        factors[:, 3] -= 1.0  # turns
        factors[:, 4] = 128.0  # threshold
        kinds = [type(augment).__name__ for augment in late]
        columns = ([0, 1, 2, 3] if "Color" in kinds else []) + ([4] if "Solarize" in kinds else [])
        given = factors[:, columns] if columns else None
        mirrored = torch.arange(16) % 2 == 1
        expected = Finish(late, dtype=torch.float32, normalisation=normalisation)(
            pixels, given, mirrored
        )
        on_device = None if given is None else given.to(device)
        try:
            finish = Finish(late, dtype=dtype, normalisation=normalisation)
            found = finish(pixels.to(device), on_device, mirrored.to(device)).float().cpu()
        except Exception as error:  # of Triton, or of the compiler that it calls
            raise ValueError(
                f"the last pass's kernel does not run here ({' '.join(str(error).split())[:200]}). "
                "Triton needs a C compiler; install one, or set --tuning.finish dali."
            ) from error
        # Values reach 2.7; a value at the threshold may fall on either side of it.
        apart = (found - expected).abs() > 3 * torch.finfo(dtype).eps + 1e-3
        if apart.float().mean() > 1e-3:
            raise ValueError(
                f"the GPU's kernel gives other views than its definition "
                f"({apart.float().mean():.1%} of the values of a view of {type(group.policy)}). "
                "Set --tuning.finish dali, and please report it; --no_self_check trains with it."
            )
