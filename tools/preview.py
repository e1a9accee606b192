"""Draw the views that training gets: a row for each image, as one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.loader import Batch, Loader
from pipeline.normalisation import IMAGENET, Normalisation
from shards import durable
from shards.layout import ShardSet, open_shards
from shards.one_line import one_line
from training.command_line import run_function
from training.config import Config
from training.settings import Settings

GAP = 3  # pixels between views


def main(settings: Settings, folder: str, *, out: Path = Path("views.png"), rows: int = 8) -> None:
    """Draw the views that a recipe makes, exactly as training sees them.

    Args:
        settings: the recipe.
        folder: shard set of `python -m tools.shard`.
        out: PNG to write.
        rows: number of samples, one a row: the first of an epoch.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}; give 1 or more.")
    durable.check_writable(out=out)
    shard_set = open_shards(folder)
    batch = first_batch(settings.config, shard_set, rows)
    with durable.replaced(out) as partial:
        Image.fromarray(contact_sheet(batch.views, settings.config.normalisation)).save(
            partial, format="PNG"
        )
    groups = " + ".join(f"{g.count} × {g.size} px" for g in settings.config.groups)
    turns = ", in turn of each image and its partner" if shard_set.manifest.partners else ""
    print(f"{len(batch.id_B)} samples × {groups} views of {one_line(f'{folder}{turns}: {out}')}")


def first_batch(config: Config, shard_set: ShardSet, rows: int) -> Batch:
    """Return the views of the first samples of an epoch, at most `rows` of them."""
    loader = Loader(
        shard_set,
        config.groups,
        batch_size_per_rank=min(rows, len(shard_set)),
        seed=config.seed,
        shuffle_buffer=config.shuffle_buffer,
        tuning=config.tuning,
        normalisation=config.normalisation,
    )
    with loader:
        return next(iter(loader))


def contact_sheet(views: tuple[Tensor, ...], normalisation: Normalisation = IMAGENET) -> np.ndarray:
    """Return one picture, uint8 [H, W, 3]: a row for each sample, its views from left to right.

    Args:
        views: normalised view groups [V, B, C, H, W].
        normalisation: how they were normalised.
    """
    height = max(group.shape[-1] for group in views) + GAP
    width = sum(group.shape[0] * (group.shape[-1] + GAP) for group in views)
    sheet = np.full((views[0].shape[1] * height + GAP, width + GAP, 3), 255, dtype=np.uint8)
    left = GAP
    for group in views:
        pixels = normalisation.undone(group.float().cpu())
        for of_view in pixels.permute(0, 1, 3, 4, 2).numpy():
            size = of_view.shape[1]
            for row, picture in enumerate(of_view):
                top = GAP + row * height
                sheet[top : top + size, left : left + size] = picture
            left += size + GAP
    return sheet


if __name__ == "__main__":
    run_function(main)
