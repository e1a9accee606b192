"""Every augmentation against torchvision, NumPy or a law that it must keep."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as tv

import pipeline.augment as registry
from pipeline.augment import Augment, Blur, Color, Crop, Draw, Policy, Solarize
from pipeline.augment.crop import cut
from pipeline.dali import Pipeline, fn, types
from tests.conftest import Pictures

V, SIZE = 6, 24
PIXELS = Pictures(1, height=40, width=56).pixels(0)
VIEWS = np.random.default_rng(0).integers(0, 256, (V, SIZE, SIZE, 3), dtype=np.uint8)

AUGMENTS = [
    value
    for value in vars(registry).values()
    if isinstance(value, type) and issubclass(value, Augment) and value is not Augment
]


def apply(
    augment: Augment, views: NDArray[np.uint8] = VIEWS, *, seed: int = 0
) -> NDArray[np.uint8]:
    """Run one augmentation on the views of one sample."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        frames = fn.reshape(types.Constant(views), layout="FHWC")
        pipe.set_outputs(augment.apply(frames, Draw(len(views), (seed,))))
    return np.asarray(pipe.run()[0].at(0))


def crop(
    setting: Crop, *, resampling: registry.crop.Resampling, seed: int = 0
) -> NDArray[np.uint8]:
    """Cut V views out of one picture."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        image = fn.reshape(types.Constant(PIXELS), layout="HWC")
        shape = types.Constant(np.array(PIXELS.shape[:2], dtype=np.int64))
        boxes = setting.draw(shape, Draw(V, (seed,)))
        pipe.set_outputs(cut(image, boxes, views=V, size=SIZE, resampling=resampling, minibatch=V))
    return np.asarray(pipe.run()[0].at(0))


def with_probability(kind: type[Augment], probability: float) -> Augment:
    """Return the augmentation with every probability of its fields set."""
    names = {field.name for field in fields(kind)} & {"probability", "jitter", "grayscale"}  # pyright: ignore[reportArgumentType]
    return kind(**dict.fromkeys(names, probability))


@pytest.mark.parametrize("kind", AUGMENTS)
def test_an_augment_keeps_shape_and_type(kind: type[Augment]) -> None:
    changed = apply(kind())
    assert changed.shape == VIEWS.shape and changed.dtype == np.uint8


@pytest.mark.parametrize("kind", AUGMENTS)
def test_an_augment_of_probability_zero_is_the_identity(kind: type[Augment]) -> None:
    assert (apply(with_probability(kind, 0.0)) == VIEWS).all()


@pytest.mark.parametrize("kind", AUGMENTS)
def test_an_augment_of_probability_one_changes_views(kind: type[Augment]) -> None:
    changed = apply(with_probability(kind, 1.0))
    # Not each: the smallest blur rounds to the identity.
    assert sum((changed[v] != VIEWS[v]).any() for v in range(V)) > V // 2


@pytest.mark.parametrize("kind", AUGMENTS)
def test_the_same_seed_repeats_and_another_does_not(kind: type[Augment]) -> None:
    assert (apply(kind(), seed=3) == apply(kind(), seed=3)).all()
    assert any((apply(kind(), seed=3) != apply(kind(), seed=s)).any() for s in range(4, 8))


def test_solarize_inverts_exactly_what_torchvision_inverts() -> None:
    expected = tv.solarize(torch.from_numpy(VIEWS).permute(0, 3, 1, 2), 100.0)
    changed = apply(Solarize(probability=1.0, threshold=100))
    assert (changed == expected.permute(0, 2, 3, 1).numpy()).all()


def test_grayscale_is_torchvisions() -> None:
    expected = tv.rgb_to_grayscale(torch.from_numpy(VIEWS).permute(0, 3, 1, 2), 3)
    changed = apply(Color(jitter=0.0, grayscale=1.0))
    difference = np.abs(changed.astype(int) - expected.permute(0, 2, 3, 1).numpy().astype(int))
    assert difference.max() <= 2


def test_brightness_multiplies_by_a_factor_of_its_range() -> None:
    dark = np.full((V, SIZE, SIZE, 3), 100, dtype=np.uint8)
    jitter = Color(jitter=1.0, brightness=0.4, contrast=0, saturation=0, hue=0, grayscale=0)
    factors = apply(jitter, dark)[:, 0, 0, 0] / 100
    assert ((factors >= 0.595) & (factors <= 1.405)).all()
    assert len(set(factors.tolist())) == V  # every view draws for itself


def test_blur_is_torchvisions_gaussian_of_the_same_width() -> None:
    sigma = 1.3
    expected = tv.gaussian_blur(torch.from_numpy(VIEWS).permute(0, 3, 1, 2), [9, 9], [sigma, sigma])
    changed = apply(Blur(probability=1.0, sigma=(sigma, sigma + 1e-6), window=9))
    difference = np.abs(changed.astype(int) - expected.permute(0, 2, 3, 1).numpy().astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("resampling", ["warp", "resize"])
def test_a_crop_of_all_the_image_is_torchvisions_resize(
    resampling: registry.crop.Resampling,
) -> None:
    # Square, so that the whole image has the aspect ratio 1 that is asked for.
    whole = Crop(area=(1.0, 1.0), aspect=(1.4, 1.4), flip=0.0)
    assert PIXELS.shape[1] / PIXELS.shape[0] == 1.4
    views = crop(whole, resampling=resampling)
    expected = tv.resize(
        torch.from_numpy(PIXELS).permute(2, 0, 1), [SIZE, SIZE], antialias=resampling == "resize"
    )
    difference = np.abs(views.astype(int) - expected.permute(1, 2, 0).numpy().astype(int))
    assert difference.max() <= 2 and difference.mean() < 0.6


@pytest.mark.parametrize("resampling", ["warp", "resize"])
def test_a_flip_is_the_mirror_image_of_the_same_crop(resampling: registry.crop.Resampling) -> None:
    straight = crop(Crop(area=(0.3, 0.9), flip=0.0), resampling=resampling)
    mirrored = crop(Crop(area=(0.3, 0.9), flip=1.0), resampling=resampling)
    difference = np.abs(straight[:, :, ::-1].astype(int) - mirrored.astype(int))
    assert difference.max() <= 1
    assert (straight != mirrored).any()


def test_warp_and_resize_cut_the_same_views_when_crops_are_scaled_up() -> None:
    small = Crop(area=(0.05, 0.12))  # at most 18 pixels wide, for views of 24
    warp, resize = (crop(small, resampling=r) for r in ("warp", "resize"))
    assert np.abs(warp.astype(int) - resize.astype(int)).max() <= 1


def test_crop_areas_have_the_law_of_torchvision() -> None:
    """A picture whose red and green are its coordinates tells what a crop shows."""
    side, count = 256, 400
    ramp = np.arange(side, dtype=np.uint8)
    picture = np.stack(
        [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.zeros((side, side))], -1
    ).astype(np.uint8)
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        image = fn.reshape(types.Constant(picture), layout="HWC")
        shape = types.Constant(np.array([side, side], dtype=np.int64))
        setting = Crop(area=(0.2, 1.0), flip=0.0)
        boxes = setting.draw(shape, Draw(count, (1,)))
        pipe.set_outputs(
            cut(image, boxes, views=count, size=64, resampling="warp", minibatch=count)
        )
    views = np.asarray(pipe.run()[0].at(0)).astype(float)
    # Pixel centres: 63 of 64 steps lie between the first and the last.
    width = (views[:, 32, -1, 0] - views[:, 32, 0, 0]) * 64 / 63 / side
    height = (views[:, -1, 32, 1] - views[:, 0, 32, 1]) * 64 / 63 / side
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    blank = torch.zeros(3, side, side)
    theirs = [RandomResizedCrop(64, scale=(0.2, 1.0)).make_params([blank]) for _ in range(4000)]
    their_area = np.array([p["height"] * p["width"] / side**2 for p in theirs])
    quantiles = np.linspace(0.05, 0.95, 19)
    ours, expected = (np.quantile(a, quantiles) for a in (width * height, their_area))
    # Kolmogorov-Smirnov's 1 % bound for 400 draws is 0.085 in probability; areas span 0.8.
    assert np.abs(ours - expected).max() < 0.08


def test_a_policy_of_ones_own_runs_its_augments_in_order() -> None:
    policy = Policy(crop=Crop(), augments=[Solarize(probability=1.0, threshold=0)])
    assert [type(a) for a in policy.augments] == [Solarize]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Crop(area=(0.5, 0.2)), ["area=[0.5, 0.2]", "low <= high"]),
        (lambda: Crop(area=(0.5, 2.0)), ["exceeds the image"]),
        (lambda: Blur(window=4), ["window=4", "try 5"]),
        (lambda: Blur(probability=-1), ["probability=-1", "0 to 1"]),
        (lambda: Color(hue=0.7), ["hue=0.7", "0..0.5"]),
        (lambda: replace(Color(), contrast=-1.0), ["contrast=-1.0", "0 switches it off"]),
        (lambda: Solarize(threshold=300), ["threshold=300", "0 to 255"]),
    ],
)
def test_an_impossible_setting_is_refused_with_the_remedy(make, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make()
    for word in words:
        assert word in str(error.value)
