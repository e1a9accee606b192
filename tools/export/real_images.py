"""The images that an export is checked with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.centre_crop import CentreCrop
from shards.image import upright_pixels
from shards.layout import MANIFEST, open_shards
from shards.source.folder import is_image
from tools.export.subject import Subject
from tools.inspect.sheet import pictures_at
from training.trained import recipe

COUNT = 64


@dataclass(frozen=True)
class RealImages:
    """Some images, and where they are from."""

    images: list[Image.Image]
    location: str

    def prepared(self, subject: Subject, size: int) -> Tensor:
        """Return them as an encoder's input [N, 3, size, size]."""
        prepare = CentreCrop(size, subject.normalisation)
        return torch.stack([prepare(image) for image in self.images])


def real_images(subject: Subject, folder: Path | None) -> RealImages:
    """Return some images, evenly spread over where they are from.

    Args:
        subject: whose run's evaluation set, or else training set, is read.
        folder: of images, or a shard set, to read instead.

    Raises:
        ValueError: there are none.
    """
    if folder is not None:
        return _of_set(str(folder)) if (folder / MANIFEST).exists() else _of_folder(folder)
    if subject.run is None:
        raise ValueError(
            "the encoder lies outside of its run's folder, so that no images are known to check "
            "the export with; name some: --images DIR."
        )
    config, reasons = recipe(subject.run, device="cpu").config, []
    for root in (config.evaluation_test, config.shards):
        try:
            if root is not None:
                return _of_set(root)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
    raise ValueError(
        f"the run's images, to check the export with, cannot be read ({'; '.join(reasons)}). Name "
        "others: --images DIR."
    )


def _of_set(root: str) -> RealImages:
    shard_set = open_shards(root)
    shown = pictures_at(shard_set, _spread(len(shard_set)))
    found = [Image.fromarray(each.pixels) for each in shown.values() if each.pixels is not None]
    if not found:
        raise ValueError(f"no image of {root} can be decoded")
    return RealImages(found, root)


def _of_folder(folder: Path) -> RealImages:
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    if not paths:
        raise ValueError(
            f"images={folder} is neither a shard set nor a folder with images; name one that is."
        )
    found = []
    for path in (paths[place] for place in _spread(len(paths))):
        try:
            with Image.open(path) as image:
                found.append(Image.fromarray(upright_pixels(image)[0]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be decoded ({error}); name other --images.") from None
    return RealImages(found, str(folder))


def _spread(samples: int) -> np.ndarray:
    return np.linspace(0, samples - 1, min(samples, COUNT)).round().astype(np.int64)
