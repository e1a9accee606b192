"""How far an export is from the original, on images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.export.file_format import Reader

TOLERANCE = 2e-5
"""The largest relative difference of an export that is given its name.

Float32 rounding in another order was seen to differ by up to 1e-6. Of barely trained networks, an
approximate GELU differed by 5e-5 (a ViT), a norm's epsilon of 1e-5 for 1e-6 by 1e-4 (a ConvNeXt),
one of 1e-3 for 1e-5 by 4e-3 and weights in bfloat16 by 8e-3 (a ResNet).
"""


@dataclass(frozen=True)
class FeatureDifference:
    """Of the features of some images."""

    reader: str
    """The program that read the export."""
    size: int
    """Of the images, in pixels."""
    batch_size: int
    absolute: float
    """The largest of a number."""
    relative: float
    """The largest of an image: the length of the difference over that of its features."""


def measure(
    original: Reader, reader: Reader, images_NCHW: Tensor, *, name: str, batch_size: int
) -> FeatureDifference:
    """Return how far a reader's features are from the original's.

    Args:
        original: the network in float32.
        reader: what reads the export.
        images_NCHW: prepared images.
        name: of the reader.
        batch_size: images that either is given at once; the last batch may be smaller.

    Raises:
        ValueError: features are of another shape, or not finite.
    """
    with torch.inference_mode():
        expected_NF = torch.cat([original(batch) for batch in images_NCHW.split(batch_size)])
    with torch.no_grad():  # not all programs run in inference mode
        found_NF = torch.cat([reader(batch) for batch in images_NCHW.split(batch_size)])
    if not bool(expected_NF.isfinite().all()):
        raise ValueError("the encoder's features are not finite: its training has diverged.")
    if found_NF.shape != expected_NF.shape:
        raise ValueError(
            f"{name} returns {list(found_NF.shape)} for {len(images_NCHW)} images, the original "
            f"{list(expected_NF.shape)}; nothing was written."
        )
    far_NF = found_NF.double() - expected_NF.double()
    lengths_N = expected_NF.double().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return FeatureDifference(
        reader=name,
        size=images_NCHW.shape[-1],
        batch_size=batch_size,
        absolute=float(far_NF.abs().max()),
        relative=float((far_NF.norm(dim=1) / lengths_N).max()),
    )


def refuse_far(found: Iterable[FeatureDifference]) -> None:
    """Refuse an export that computes something else.

    Raises:
        ValueError: a difference is above the tolerance, or no number.
    """
    for each in found:
        if not each.relative <= TOLERANCE:
            raise ValueError(
                f"{each.reader} computes other features from the export than the encoder does: "
                f"they differ by {each.relative:.1e} of their length (at most {TOLERANCE:.0e} is "
                f"rounding), images of {each.size} px in batches of {each.batch_size}. Nothing was "
                "written; another --to may do, and we would like to know of it."
            )
