"""The self-check finds planted errors, and no error where there is none."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import graph, selfcheck
from pipeline.augment import GroCoViews, SimCLRViews
from pipeline.dali import DataNode, fn, types
from pipeline.graph import ViewGroup
from pipeline.tuning import Tuning
from tests.conftest import MakeShardSet

CPU = torch.device("cpu")
TUNING = Tuning().filled(batch_size=8)


def plant(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the first of the two decoders, the device's, return changed pixels."""
    calls: list[int] = []

    def decode(stored: list[DataNode], gpu: bool, tuning: Tuning) -> DataNode:
        calls.append(1)
        image = graph.decode(stored, gpu, tuning)
        return change(image) if len(calls) == 1 else image

    monkeypatch.setattr(selfcheck, "decode", decode)


def wrong_block(image: DataNode) -> DataNode:
    """Overwrite a quarter of the rows, as in a batch that was read too early."""
    return fn.erase(image, anchor=[0.0], shape=[0.25], axis_names="H", normalized=True)


def test_equal_decoders_pass(make_shard_set: MakeShardSet) -> None:
    said = selfcheck.compare_decoders(make_shard_set(8), device=CPU, tuning=TUNING, samples=8)
    assert said.startswith("8 images") and "0.00 levels" in said


@pytest.mark.parametrize(
    "change",
    [
        wrong_block,
        lambda image: fn.flip(image, horizontal=1, vertical=0),
        lambda image: fn.cast_like(image * types.Constant(0.9), image),
        lambda image: fn.color_space_conversion(image, image_type=types.RGB, output_type=types.BGR),
        lambda image: fn.crop(image, crop=(16, 16)),
    ],
    ids=["a block", "mirrored", "darker", "BGR", "size"],
)
def test_a_planted_error_is_found(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    shard_set = make_shard_set(8)
    plant(monkeypatch, change)
    with pytest.raises(ValueError) as error:
        selfcheck.compare_decoders(shard_set, device=CPU, tuning=TUNING, samples=8)
    for word in ("other pixels", "sample", "--tuning.decode cpu", "--no_self_check"):
        assert word in str(error.value)


def test_a_level_of_rounding_is_no_error(
    make_shard_set: MakeShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_shard_set(8)
    plant(monkeypatch, lambda image: fn.brightness_contrast(image, brightness_shift=1 / 255))
    said = selfcheck.compare_decoders(shard_set, device=CPU, tuning=TUNING, samples=8)
    assert "levels" in said


@pytest.mark.parametrize("size", [(32, 32), (100, 70)])
def test_another_way_to_enlarge_colour_is_no_error(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 2, size[0] // 2, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).convert("YCbCr")
    luma, *colors = image.split()
    half = [color.resize((size[0] // 2, size[1] // 2), Image.Resampling.BOX) for color in colors]
    one, other = (
        np.asarray(
            Image.merge("YCbCr", (luma, *(c.resize(size, how) for c in half))).convert("RGB")
        )
        for how in (Image.Resampling.NEAREST, Image.Resampling.BILINEAR)
    )
    assert np.abs(one.astype(int) - other).mean() > 2 * selfcheck.MEAN_LEVELS
    mean, far = selfcheck.distance(one, other)
    assert mean < selfcheck.MEAN_LEVELS and far < selfcheck.FAR_SHARE


def test_the_distance_of_a_shift_is_the_shift() -> None:
    image = np.full((40, 24, 3), 100, np.uint8)
    assert selfcheck.distance(image, image + 3) == pytest.approx((3.0, 0.0), abs=1e-4)
    green = image + np.array([0, 40, 0], np.uint8)
    assert selfcheck.distance(image, green)[0] == pytest.approx(0.587 * 40, abs=1e-3)
    assert selfcheck.distance(image, image[:, :16]) == (255.0, 1.0)


@pytest.mark.parametrize("policy", [SimCLRViews(), GroCoViews(second=True)])
def test_a_wrong_kernel_is_found(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [ViewGroup(policy=policy, count=2, size=16)]
    selfcheck.check_finish(groups, device=CPU, dtype=torch.float32)
    selfcheck.check_finish(groups, device=CPU, dtype=torch.bfloat16)
    right = selfcheck.Finish.__call__

    def wrong(self: Any, *given: Any) -> torch.Tensor:
        views = right(self, *given)
        return views.flip(-1) if self.dtype == torch.float16 else views  # exchange channels

    monkeypatch.setattr(selfcheck.Finish, "__call__", wrong)
    with pytest.raises(ValueError, match="kernel gives other views"):
        selfcheck.check_finish(groups, device=CPU, dtype=torch.float16)


@pytest.mark.gpu
def test_the_gpu_decodes_as_the_cpu(make_shard_set: MakeShardSet) -> None:
    device = torch.device("cuda", 0)
    said = selfcheck.check_decoder(make_shard_set(64), device=device, tuning=TUNING)
    assert "images decoded as on the CPU" in said
    groups = [ViewGroup(policy=GroCoViews(second=True), count=2, size=32)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        selfcheck.check_finish(groups, device=device, dtype=dtype)
