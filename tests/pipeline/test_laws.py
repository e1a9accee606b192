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

from pipeline.augment import Blur, Color, Crop, Draw, SimCLRViews, Solarize
from pipeline.dali import DataNode, Pipeline, fn, types

B, V = 500, 4  # images, views of each
IMAGES = [(96, 96), (480, 640), (640, 427), (100, 420)]  # the last is wider than any crop
LAWS = {
    "simclr": Crop(area=(0.08, 1.0)),
    "small": Crop(area=(0.05, 0.14)),
    "free": Crop(area=(0.2, 0.9), aspect=(0.5, 2.0)),
}

Values = NDArray[np.float64]  # [images, views]


class LawRecorder(Draw):
    """Records the numbers that an augmentation draws."""

    def __init__(self, views: int, seed: tuple[int, ...]) -> None:
        super().__init__(views, seed)
        self.drawn: list[DataNode] = []

    def uniform(self, low: float, high: float) -> DataNode:
        self.drawn.append(super().uniform(low, high))
        return self.drawn[-1]

    def coin(self, probability: float, *, trailing: int = 0) -> DataNode:
        self.drawn.append(super().coin(probability, trailing=trailing))
        return self.drawn[-1]


def run(outputs: list[DataNode], pipe: Pipeline) -> list[Values]:
    pipe.set_outputs(*outputs)
    return [np.stack([np.asarray(x) for x in out]).astype(float) for out in pipe.run()]


@cache
def crops(law: str, image: tuple[int, int], seed: int = 0) -> dict[str, Values]:
    """Draw crops of B images; sides in pixels, positions as a share of the free space."""
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        shape = types.Constant(np.array(image, dtype=np.int64))
        boxes = LAWS[law].draw(shape, Draw(V, (seed,)))
        sides = [boxes.top, boxes.left, boxes.height, boxes.width, boxes.mirrored]
        top, left, height, width, mirrored = run(sides, pipe)
    return described(top, left, height, width, image) | {"flip": mirrored}


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
def colors(seed: int = 0) -> dict[str, Values]:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        factors = Color(brightness=0.8, contrast=0.4, saturation=1.5, hue=0.2).factors(
            Draw(V, (seed,))
        )
        brightness, contrast, saturation, hue = run(list(factors), pipe)
    return {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


@cache
def blurs(seed: int = 0) -> dict[str, Values]:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        draw = LawRecorder(V, (seed,))
        views = np.random.default_rng(0).integers(0, 256, (V, 20, 20, 3), dtype=np.uint8)
        frames = fn.reshape(types.Constant(views), layout="FHWC")
        blurred = Blur(probability=0.3, sigma=(0.5, 2.0)).apply(frames, draw)
        coin, sigma, pixels = run([*draw.drawn, blurred], pipe)
    return {"coin": coin, "sigma": sigma, "changed": (pixels != views).any((2, 3, 4)) * 1.0}


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


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_flips_have_their_probability(probability: float) -> None:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        shape = types.Constant(np.array([96, 96], dtype=np.int64))
        (flips,) = run([Crop(flip=probability).draw(shape, Draw(V, (1,))).mirrored], pipe)
    assert set(flips.ravel()) <= {0.0, 1.0}
    assert is_probability(flips, probability) or flips.mean() == probability


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
    drawn = colors()[name]
    still = 0.0 if name == "hue" else 1.0
    changed = drawn[(drawn != still) & (drawn != 0)]
    assert changed.min() >= low and changed.max() <= high
    assert farthest_from_uniform(changed, low, high) < 1.95 / np.sqrt(changed.size)


def test_colours_change_together_and_with_their_probability() -> None:
    drawn = colors()
    changed = drawn["brightness"] != 1
    assert is_probability(changed * 1.0, 0.8)
    assert (changed == (drawn["contrast"] != 1)).all() and (changed == (drawn["hue"] != 0)).all()
    gray = drawn["saturation"] == 0
    assert is_probability(gray * 1.0, 0.2)
    assert is_probability(gray[changed] * 1.0, 0.2)  # independent of the jitter


def test_blur_has_its_probability_and_a_uniform_sigma() -> None:
    drawn = blurs()
    assert is_probability(drawn["coin"], 0.3)
    assert (drawn["changed"] == drawn["coin"]).all()  # these views and no others
    assert drawn["sigma"].min() >= 0.5 and drawn["sigma"].max() <= 2.0
    for sigma in (drawn["sigma"], drawn["sigma"][drawn["coin"] == 1]):
        assert farthest_from_uniform(sigma, 0.5, 2.0) < 1.95 / np.sqrt(sigma.size)


def test_solarisation_has_its_probability() -> None:
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        setting = Solarize(probability=0.2, threshold=100)
        (threshold,) = run(list(setting.factors(Draw(V, (0,)))), pipe)
    assert set(threshold.ravel()) == {100.0, 256.0}
    assert is_probability((threshold == 100) * 1.0, 0.2)


# ── independence ──────────────────────────────────────────────────────────────────────────────────


def correlation(one: Values, other: Values) -> float:
    return float(abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]))


DRAWN = {
    **{name: lambda name=name: crops("simclr", (96, 96))[name] for name in ("area", "left")},
    "flip": lambda: crops("simclr", (96, 96))["flip"],
    **{name: lambda name=name: colors()[name] for name in ("brightness", "saturation", "hue")},
    "blurred": lambda: blurs()["coin"],
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
        draw = LawRecorder(V, (3,))
        policy = SimCLRViews()
        shape = types.Constant(np.array([96, 96], dtype=np.int64))
        boxes = policy.crop.draw(shape, draw)
        frames = fn.reshape(types.Constant(np.zeros((V, 8, 8, 3), np.uint8)), layout="FHWC")
        policy.augment(frames, draw)
        drawn = run([boxes.height, boxes.left, *draw.drawn], pipe)
    assert len(drawn) == 2 + 1 + 6 + 2  # the flip; jitter, gray, four factors; blur, sigma
    for one, other in combinations(drawn[1:], 2):
        assert correlation(one, other) < 4 / np.sqrt(B * V)


def test_seeds_ranks_and_batches_draw_different_numbers() -> None:
    same, again, other = colors(0)["brightness"], colors(0)["brightness"], colors(1)["brightness"]
    assert (same == again).all() and correlation(same, other) < 4 / np.sqrt(B * V)
    pipe = Pipeline(batch_size=B, num_threads=1, device_id=None)
    with pipe:
        seeds = [(7, rank, group) for rank in range(2) for group in (1, 2)]
        pipe.set_outputs(*(Draw(V, seed).uniform(0, 1) for seed in seeds))
    batches = [[np.stack([np.asarray(x) for x in out]) for out in pipe.run()] for _ in range(2)]
    for one, another in combinations([values for batch in batches for values in batch], 2):
        assert correlation(one, another) < 4 / np.sqrt(B * V)
