"""Evaluation images: every sample once, with torchvision's pixels."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from pipeline.images import Images
from pipeline.normalisation import IMAGENET
from tests.conftest import MakeShardSet, Pictures


@pytest.mark.parametrize(("samples", "world_size"), [(40, 1), (41, 2), (50, 3), (5, 4)])
def test_ranks_see_every_sample_exactly_once(
    make_shard_set: MakeShardSet, samples: int, world_size: int
) -> None:
    ids: list[int] = []
    for rank in range(world_size):
        images = Images(
            make_shard_set(samples), size=16, batch_size=7, rank=rank, world_size=world_size
        )
        part = [int(sample) for batch in images for sample in batch.id_B]
        assert len(part) == len(images)
        ids += part
    assert sorted(ids) == list(range(samples))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (48, 72, 32)])
def test_pixels_are_torchvisions_resize_and_centre_crop(
    make_shard_set: MakeShardSet, height: int, width: int, size: int
) -> None:
    source = Pictures(12, height=height, width=width)
    batch = next(iter(Images(make_shard_set(12, height=height, width=width), size=size)))
    assert batch.image_BCHW.is_contiguous(memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean_255, IMAGENET.std_255)
    )
    for image, label, sample in zip(
        batch.image_BCHW, batch.label_B.tolist(), batch.id_B.tolist(), strict=True
    ):
        assert label == sample % 10
        pixels = torch.from_numpy(source.pixels(sample).copy()).permute(2, 0, 1)
        expected = tv.center_crop(tv.resize(pixels, [size], antialias=True), [size, size]).float()
        difference = (image * std + mean - expected).abs()
        assert difference.max() < 2.5 and difference.mean() < 0.5
