"""The laws of the random parameters: their ranges, their distributions, and their independence.

Seeds are fixed, so a test passes always or never. A right law would exceed the bounds once in a
thousand seeds (Kolmogorov-Smirnov: 1.95 / sqrt(n)) or once in fifteen thousand (four standard
deviations).
"""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import RandomResizedCrop

from benchmarks.parity import DrawRecorder
from pipeline.augment import Blur, Color, Crop, Draw, Policy, SimCLRViews, Solarize
from pipeline.dali import DataNode, Pipeline, fn, types

B, V = 500, 4  # images, views of each
IMAGES = [(96, 96), (480, 640), (640, 427), (100, 420)]  # the last is wider than any crop
LAWS = {
    "simclr": Crop(area=(0.08, 1.0)),
    "small": Crop(area=(0.05, 0.14)),
    "free": Crop(area=(0.2, 0.9), aspect=(0.5, 2.0)),
}

Values = NDArray[np.float64]  # [images, views]


def draw(*seed: int) -> Draw:
    return Draw(V, seed, size=20)


def run(outputs: list[DataNode], pipe: Pipeline) -> list[Values]:
    pipe.set_outputs(*outputs)
    return [np.stack([np.asarray(x) for x in out]).astype(float) for out in pipe.run()]


@cache
def crops(law: str, image: tuple[int, int], seed: int = 0) -> dict[str, Values]:
    """Draw crops of B images; sides in pixels, positions as a share of the free space."""
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        shape = types.Constant(np.array(image, dtype=np.int64))
        boxes = LAWS[law].draw(shape, draw(seed))
        begin_BV2, size_BV2 = run([boxes.begin, boxes.size], pipe)
    (top, left), (height, width) = (np.moveaxis(x, -1, 0) for x in (begin_BV2, size_BV2))
    return described(top, left, height, width, image)


def described(
    top: Values, left: Values, height: Values, width: Values, image: tuple[int, int]
) -> dict[str, Values]:
    return {
        "height": height,
        "area": height * width / (image[0] * image[1]),
        "aspect": np.log(width / height),
        "top": top / np.maximum(image[0] - height, 1),
        "left": left / np.maximum(image[1] - width, 1),
        "bottom": top + height,
        "right": left + width,
    }


@cache
def torchvision_crops(law: str, image: tuple[int, int]) -> dict[str, Values]:
    crop = LAWS[law]
    transform = RandomResizedCrop(8, scale=crop.area, ratio=crop.aspect)
    torch.manual_seed(1)
    blank = torch.empty(3, *image)
    drawn = [transform.make_params([blank]) for _ in range(B * V)]
    top, left, height, width = (
        np.array([p[k] for p in drawn], dtype=float) for k in ("top", "left", "height", "width")
    )
    return described(top, left, height, width, image)


@cache
def late(seed: int = 0) -> dict[str, Values]:
    """Let the last pass reckon what it does to the views of B images."""
    color = Color(brightness=0.8, contrast=0.4, saturation=1.5, hue=0.2)
    solarize = Solarize(probability=0.2, threshold=100)
    policy = Policy(crop=Crop(flip=0.3), augments=[color, solarize])
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        frames = fn.reshape(types.Constant(np.zeros((V, 8, 8, 3), np.uint8)), layout="FHWC")
        _, units = policy.augment(frames, draw(seed), late=True)
        (units_BVU,) = run([units], pipe)
    mirrored_N, factors_NF = policy.late_factors(torch.from_numpy(units_BVU).float().flatten(0, 1))
    assert mirrored_N is not None and factors_NF is not None
    names = ["flip", "brightness", "contrast", "saturation", "hue", "threshold"]
    columns = [mirrored_N, *factors_NF.unbind(1)]
    return {n: c.view(B, V).double().numpy() for n, c in zip(names, columns, strict=True)}


@cache
def blurs(seed: int = 0) -> dict[str, Values]:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        draw = DrawRecorder(V, (seed,), size=20)
        views = np.random.default_rng(0).integers(0, 256, (V, 20, 20, 3), dtype=np.uint8)
        frames = fn.reshape(types.Constant(views), layout="FHWC")
        blurred = Blur(probability=0.3, sigma=(0.5, 2.0)).apply(frames, draw)
        window, sigma, pixels = run([*draw.drawn, blurred], pipe)
    changed = (pixels != views).any((2, 3, 4)).astype(np.float64)
    blurred = (window > 1).astype(np.float64)
    return {"blurred": blurred, "sigma": sigma, "changed": changed}


def farthest(one: Values, other: Values) -> float:
    """Return the largest difference between two empirical distribution functions."""
    x = np.concatenate([one.ravel(), other.ravel()])
    below = [np.searchsorted(np.sort(a.ravel()), x, side="right") / a.size for a in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def farthest_from_uniform(drawn: Values, low: float, high: float) -> float:
    x = np.sort(drawn.ravel())
    steps = np.arange(x.size + 1) / x.size
    law = (x - low) / (high - low)
    return float(max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max()))


def is_probability(share: Values, probability: float) -> bool:
    deviation = np.sqrt(probability * (1 - probability) / share.size)
    return bool(abs(share.mean() - probability) < 4 * deviation)


# ── crops ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["area", "aspect", "top", "left"])
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("law", LAWS)
def test_crops_have_the_law_of_torchvision(law: str, image: tuple[int, int], what: str) -> None:
    ours, theirs = crops(law, image), torchvision_crops(law, image)
    if what == "left":
        # Where ten attempts fail, both cut out as much as the aspect ratio allows, torchvision in
        # the middle, DALI anywhere.
        ours, theirs = ({"left": x["left"][x["height"] < image[0]]} for x in (ours, theirs))
    ours, theirs = ours[what], theirs[what]
    assert farthest(ours, theirs) < 1.95 * np.sqrt(1 / ours.size + 1 / theirs.size)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("law", LAWS)
def test_crops_lie_inside_the_image(law: str, image: tuple[int, int]) -> None:
    found = crops(law, image)
    assert found["top"].min() >= 0 and found["left"].min() >= 0
    assert found["bottom"].max() <= image[0] and found["right"].max() <= image[1]


def test_flips_have_their_probability() -> None:
    assert is_probability(late()["flip"], 0.3)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_no_view_or_every_view_is_mirrored(probability: float) -> None:
    units_N1 = torch.tensor([[0.0], [1 - 2.0**-24]])  # the smallest and the largest
    mirrored_N, _ = Policy(crop=Crop(flip=probability)).late_factors(units_N1)
    assert mirrored_N is None if probability == 0 else mirrored_N is not None and mirrored_N.all()


# ── colours, blur, solarisation ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("brightness", 0.2, 1.8),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.0, 2.5),  # not 1 - 1.5
        ("hue", -0.2, 0.2),
    ],
)
def test_jittered_factors_are_uniform_in_their_range(name: str, low: float, high: float) -> None:
    drawn = late()[name]
    still = 0.0 if name == "hue" else 1.0
    changed = drawn[(drawn != still) & (drawn != 0)]
    assert changed.min() >= low and changed.max() <= high
    assert farthest_from_uniform(changed, low, high) < 1.95 / np.sqrt(changed.size)


def test_colours_change_together_and_with_their_probability() -> None:
    drawn = late()
    changed = drawn["brightness"] != 1
    assert is_probability(changed * 1.0, 0.8)
    assert (changed == (drawn["contrast"] != 1)).all() and (changed == (drawn["hue"] != 0)).all()
    gray = drawn["saturation"] == 0
    assert is_probability(gray * 1.0, 0.2)
    assert is_probability(gray[changed] * 1.0, 0.2)  # independent of the jitter


def test_blur_has_its_probability_and_a_uniform_sigma() -> None:
    drawn = blurs()
    assert is_probability(drawn["blurred"], 0.3)
    assert (drawn["changed"] == drawn["blurred"]).all()  # these views and no others
    assert drawn["sigma"].min() >= 0.5 and drawn["sigma"].max() <= 2.0
    for sigma in (drawn["sigma"], drawn["sigma"][drawn["blurred"] == 1]):
        assert farthest_from_uniform(sigma, 0.5, 2.0) < 1.95 / np.sqrt(sigma.size)


def test_solarisation_has_its_probability() -> None:
    threshold = late()["threshold"]
    assert set(threshold.ravel()) == {100.0, 256.0}
    assert is_probability((threshold == 100) * 1.0, 0.2)


# ── independence ──────────────────────────────────────────────────────────────────────────────────


def correlation(one: Values, other: Values) -> float:
    return float(abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]))


DRAWN = {
    **{name: lambda name=name: crops("simclr", (96, 96))[name] for name in ("area", "left")},
    **{
        name: lambda name=name: late()[name]
        for name in ("flip", "brightness", "saturation", "hue", "threshold")
    },
    "blurred": lambda: blurs()["blurred"],
    "sigma": lambda: blurs()["sigma"],
}


@pytest.mark.parametrize("name", DRAWN)
def test_views_of_an_image_are_independent_and_so_are_images(name: str) -> None:
    drawn = DRAWN[name]()
    assert drawn.shape == (B, V)
    for one, other in combinations(range(V), 2):
        assert correlation(drawn[:, one], drawn[:, other]) < 4 / np.sqrt(B)
    for step in (1, 2):  # an image and those after it
        assert correlation(drawn[:-step], drawn[step:]) < 4 / np.sqrt(B * V)
    # Each image's mean varies as that of V independent views.
    spread = drawn.mean(1).var() / (drawn.var() / V)
    assert abs(spread - 1) < 4 * np.sqrt(2 / B)


def test_all_numbers_that_a_policy_draws_are_independent() -> None:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        draw = DrawRecorder(V, (3,), size=40)
        policy = SimCLRViews()
        shape = types.Constant(np.array([96, 96], dtype=np.int64))
        boxes = policy.crop.draw(shape, draw)
        frames = fn.reshape(types.Constant(np.zeros((V, 8, 8, 3), np.uint8)), layout="FHWC")
        _, units = policy.augment(frames, draw, late=True)
        begin, size, units_BVU, *blur = run([boxes.begin, boxes.size, units, *draw.drawn], pipe)
    units = list(np.moveaxis(units_BVU, -1, 0))
    assert len(units) == 1 + 6 + 1  # the flip; jitter, gray, four factors; solarisation
    assert len(blur) == 2
    drawn = [size[..., 0], begin[..., 1], *units, *blur]
    for one, other in combinations(drawn[1:], 2):
        assert correlation(one, other) < 4 / np.sqrt(B * V)


def test_seeds_ranks_and_batches_draw_different_numbers() -> None:
    same, other = late(0)["brightness"], late(1)["brightness"]
    again = late.__wrapped__(0)["brightness"]
    assert (same == again).all() and correlation(same, other) < 4 / np.sqrt(B * V)
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        seeds = [(7, rank, group) for rank in range(2) for group in (1, 2)]
        pipe.set_outputs(*(draw(*seed).units(1) for seed in seeds))
    batches = [[np.stack([np.asarray(x) for x in out]) for out in pipe.run()] for _ in range(2)]
    for one, another in combinations([values for batch in batches for values in batch], 2):
        assert correlation(one, another) < 4 / np.sqrt(B * V)
