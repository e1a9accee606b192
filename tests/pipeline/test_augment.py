"""Every augmentation is compared with torchvision, NumPy or a law that it must keep."""

from dataclasses import asdict, fields, replace
from inspect import isabstract
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as tv

import pipeline.augment as registry
from benchmarks import parity
from pipeline.augment import (
    Augment,
    Blur,
    BYOLViews,
    Color,
    Crop,
    DINOViews,
    Draw,
    GroCoViews,
    MoCoV2Views,
    Policy,
    S2R2Views,
    SimCLRViews,
    Solarize,
    SwAVViews,
)
from pipeline.augment.crop import Resampling, cut, mirror
from pipeline.dali import Pipeline, fn, types
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from tests.conftest import MakeShardSet, Pictures
from tools import preview
from training.command_line import call

V, SIZE = 6, 24
PIXELS = Pictures(1, height=40, width=56).pixels(0).copy()
VIEWS = np.random.default_rng(0).integers(0, 256, (V, SIZE, SIZE, 3), dtype=np.uint8)

AUGMENTS = [
    value
    for value in vars(registry).values()
    if isinstance(value, type) and issubclass(value, Augment) and not isabstract(value)
]


pytestmark = pytest.mark.usefixtures("one_thread")


def apply(
    augment: Augment, views: NDArray[np.uint8] = VIEWS, *, seed: int = 0
) -> NDArray[np.uint8]:
    """Run one augmentation on the views of one sample."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        frames = fn.reshape(types.Constant(views), layout="FHWC")
        draw = Draw(len(views), (seed,), size=views.shape[1])
        pipe.set_outputs(augment.apply(frames, draw))
    return np.asarray(pipe.run()[0].at(0))


def crop(setting: Crop, *, resampling: Resampling, seed: int = 0) -> NDArray[np.uint8]:
    """Cut V views out of one picture."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        image = fn.reshape(types.Constant(PIXELS), layout="HWC")
        shape = types.Constant(np.array(PIXELS.shape[:2], dtype=np.int64))
        draw = Draw(V, (seed,), size=SIZE)
        views = cut(image, setting.draw(shape, draw), draw, resampling=resampling, minibatch=V)
        at_once = setting.draw_and_cut(image, Draw(V, (seed,), size=SIZE), minibatch=V)
        pipe.set_outputs(views, at_once)
    views, at_once = (np.asarray(output.at(0)) for output in pipe.run())
    if resampling == "resize":
        assert (views == at_once).all()
    return views


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
    # Not every view: the smallest blur rounds to the identity.
    assert sum((changed[v] != VIEWS[v]).any() for v in range(V)) > V // 2


@pytest.mark.parametrize("kind", AUGMENTS)
def test_the_same_seed_repeats_and_another_seed_does_not(kind: type[Augment]) -> None:
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


def test_brightness_multiplies_by_a_factor_in_its_range() -> None:
    dark = np.full((V, SIZE, SIZE, 3), 100, dtype=np.uint8)
    jitter = Color(jitter=1.0, brightness=0.4, contrast=0, saturation=0, hue=0, grayscale=0)
    factors = apply(jitter, dark, seed=1)[:, 0, 0, 0] / 100
    assert ((factors >= 0.595) & (factors <= 1.405)).all()
    assert len(set(factors.tolist())) == V  # every view has its own factor


def test_blur_is_torchvisions_gaussian_of_the_same_width() -> None:
    sigma = 1.3
    expected = tv.gaussian_blur(torch.from_numpy(VIEWS).permute(0, 3, 1, 2), [9, 9], [sigma, sigma])
    changed = apply(Blur(probability=1.0, sigma=(sigma, sigma + 1e-6), window=9))
    difference = np.abs(changed.astype(int) - expected.permute(0, 2, 3, 1).numpy().astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize(("size", "window"), [(224, 23), (96, 9), (64, 7), (32, 3), (16, 1)])
def test_the_blurs_window_is_an_odd_tenth_of_the_view(size: int, window: int) -> None:
    assert window == int(size * 0.1) | 1  # as in the papers' code
    views = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    sigma = (50.0, 50.0)  # so wide that only the window counts
    expected = tv.gaussian_blur(torch.from_numpy(views).permute(0, 3, 1, 2), [window] * 2, [50.0])
    changed = apply(Blur(probability=1.0, sigma=sigma), views)
    difference = np.abs(changed.astype(int) - expected.permute(0, 2, 3, 1).numpy().astype(int))
    assert difference.max() <= 1
    explicit = apply(Blur(probability=1.0, sigma=sigma, window=window), views)
    assert (changed == explicit).all()


@pytest.mark.parametrize("resampling", ["warp", "resize"])
def test_a_crop_of_all_the_image_is_torchvisions_resize(
    resampling: Resampling,
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


def test_a_mirrored_view_is_its_mirror_image() -> None:
    chosen = np.array([True, False, True, True, False, False])
    pipe = Pipeline(batch_size=2, num_threads=1, device_id=None)
    with pipe:
        frames = fn.reshape(types.Constant(VIEWS), layout="FHWC")
        pipe.set_outputs(mirror(frames, types.Constant(chosen)))
    expected = np.where(chosen[:, None, None, None], VIEWS[:, :, ::-1], VIEWS)
    (mirrored,) = pipe.run()
    for sample in range(2):
        assert (np.asarray(mirrored.at(sample)) == expected).all()


def test_warp_and_resize_cut_the_same_views_when_crops_are_scaled_up() -> None:
    small = Crop(area=(0.05, 0.12))  # at most 18 pixels wide, for views of 24
    warp, resize = (crop(small, resampling=r) for r in ("warp", "resize"))
    assert np.abs(warp.astype(int) - resize.astype(int)).max() <= 1


def test_crop_areas_have_the_law_of_torchvision() -> None:
    """In a picture whose red and green are its coordinates, a crop's pixels say where it lies."""
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
        draw = Draw(count, (1,), size=64)
        boxes = setting.draw(shape, draw)
        pipe.set_outputs(cut(image, boxes, draw, resampling="warp", minibatch=count))
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


# ── the parity table, on generated pictures ───────────────────────────────────────────────────────


LARGE = [Pictures(3, height=430, width=500).pixels(index) for index in range(3)]


def test_crops_of_every_scale_are_torchvisions_within_rounding() -> None:
    rows = {row.scale: row.errors for row in parity.crop_rows(LARGE)}
    assert list(rows) == list(parity.SCALES)
    for errors in rows.values():
        assert errors["resize"][0] < 0.35
    assert rows["scaled up"]["warp"][0] < 0.4


def test_every_operator_is_torchvisions_except_where_the_documentation_says_so() -> None:
    rows = parity.operator_rows(LARGE)
    for row in rows:
        for form, found in (("fused", row.fused), ("dali", row.dali)):
            if found is None or "pivot: gray" in row.operator or "yiq" in row.operator:
                continue
            if "for scale" not in row.operator:
                assert found[0] < 0.5 and found[1] <= 1.5, (row.operator, form, found)
    apart = {row.operator: row.fused[0] for row in rows if row.fused}
    assert apart["contrast, `pivot: gray`"] > 2 > apart["contrast, `pivot: mean`"]
    assert apart["hue, `hue_space: yiq`"] > 2 > apart["hue, `hue_space: hsv`"]


def test_the_exact_chain_is_torchvisions_except_for_order_and_clamping() -> None:
    default, exact, blurred_first, backwards = parity.chain_rows(LARGE)
    assert exact.fused and default.fused and blurred_first.fused and backwards.fused
    assert exact.fused[0] < default.fused[0]
    assert exact.fused[0] < backwards.fused[0] and blurred_first.fused[0] < 1


# ── policies ──────────────────────────────────────────────────────────────────────────────────────

# From the papers and their authors' code; S2R2's are inferred, its areas are our recipes'.
# area, jitter p, brightness, contrast, saturation, hue, gray p, blur p, solarise p
PAPERS: list[tuple[Policy, tuple[Any, ...]]] = [
    (SimCLRViews(), ((0.08, 1), 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 0)),
    (SimCLRViews(strength=0.5, blur=0), ((0.08, 1), 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0, 0)),
    (MoCoV2Views(), ((0.2, 1), 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5, 0)),
    (SwAVViews(), ((0.14, 1), 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 0)),
    (SwAVViews(small=True), ((0.05, 0.14), 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 0)),
    (BYOLViews(), ((0.08, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1, 0)),
    (BYOLViews(second=True), ((0.08, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)),
    (DINOViews(), ((0.4, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1, 0)),
    (DINOViews(second=True), ((0.4, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)),
    (DINOViews(local=True), ((0.05, 0.4), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, 0)),
    (GroCoViews(), ((0.14, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 1, 0)),
    (GroCoViews(second=True), ((0.14, 1), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.1, 0.2)),
    (GroCoViews(small=True), ((0.05, 0.14), 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, 0.5, 0)),
    (S2R2Views(), ((0.2, 1), 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5, 0)),
]


@pytest.mark.parametrize(("policy", "paper"), PAPERS, ids=lambda x: type(x).__name__)
def test_a_policy_has_the_values_of_its_paper(policy: Policy, paper: tuple[Any, ...]) -> None:
    area, jitter, brightness, contrast, saturation, hue, gray, blur, solarize = paper
    crop, color = asdict(policy.crop), next(a for a in policy.augments if isinstance(a, Color))
    assert crop == {"area": area, "aspect": (3 / 4, 4 / 3), "flip": 0.5}
    assert asdict(color) == {
        "jitter": jitter,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "grayscale": gray,
        "pivot": "mean",
        "hue_space": "yiq",
    }
    (blurs,) = (a for a in policy.augments if isinstance(a, Blur))
    assert (blurs.probability, blurs.sigma, blurs.window) == (blur, (0.1, 2.0), None)
    solarizes = [a for a in policy.augments if isinstance(a, Solarize)]
    assert [(a.probability, a.threshold) for a in solarizes if a.probability] == (
        [(solarize, 128)] if solarize else []
    )
    # The papers' order, whatever the last pass does.
    order = [type(a) for a in policy.augments]
    assert order == [Color, Blur, Solarize][: len(order)]


def test_every_policy_is_compared_with_its_paper() -> None:
    named = {
        value
        for value in vars(registry).values()
        if isinstance(value, type) and issubclass(value, Policy) and value is not Policy
    }
    assert named == {type(policy) for policy, _ in PAPERS}


@pytest.mark.parametrize("policies", [PAPERS[:7], PAPERS[7:]], ids=["first", "second"])
def test_every_policy_runs_through_the_loader(
    policies: list[tuple[Policy, Any]], make_shard_set: MakeShardSet
) -> None:
    groups = [ViewGroup(policy=policy, count=2, size=24) for policy, _ in policies]
    with Loader(make_shard_set(12), groups, batch_size_per_rank=4) as loader:
        batch = next(iter(loader))
    for views in batch.views:
        assert views.shape == (2, 4, 3, 24, 24) and views.isfinite().all()
        assert (views[0] != views[1]).any()


@pytest.mark.parametrize("policy", ["BYOLViews", "DINOViews", "GroCoViews"])
def test_a_pair_is_two_groups_of_a_recipe(
    policy: str,
    make_shard_set: MakeShardSet,
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"views: {{count: 1, size: 32, policy: {{class_path: {policy}}}}}\n"
        "more_views:\n"
        "- count: 1\n"
        "  size: 32\n"
        f"  policy: {{class_path: {policy}, init_args: {{second: true}}}}\n"
    )
    out, rows = tmp_path / "views.png", 4
    words = [str(make_shard_set(12).root), "--config", str(recipe), "--rows", str(rows)]
    call(preview.main, [*words, "--out", str(out)])
    assert Image.open(out).size == tuple(n * (32 + preview.GAP) + preview.GAP for n in (2, rows))


# ── what is left to the last pass ─────────────────────────────────────────────────────────────────

C, C2, B, S, S2 = Color(), Color(hue=0.1), Blur(), Solarize(), Solarize(threshold=9)
NEVER = Solarize(probability=0.0)


@pytest.mark.parametrize(
    ("augments", "late"),
    [
        ([], []),
        ([C, B, S], [C, S]),
        ([C, B], [C]),
        ([B, C, S], [C, S]),
        ([S], [S]),
        ([C, B, NEVER], [C]),  # a probability of 0 costs no pass over the pixels
        ([C, S, B], []),  # a blur of solarised views stays after it
        ([S, C], [C]),
        ([C, C2], [C2]),
        ([C, S, S2], [S2]),
        ([C, S, B, S2], [S2]),
        ([B], []),
    ],
)
def test_the_last_pass_gets_what_may_come_last(
    augments: list[Augment], late: list[Augment]
) -> None:
    assert list(Policy(crop=Crop(), augments=augments).late) == late


def test_the_draws_are_the_same_whatever_is_late() -> None:
    policy, drawn = SimCLRViews(solarize=0.5), []
    for late in (True, False):
        pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
        with pipe:
            draw, frames = Draw(V, (2,), size=SIZE), types.Constant(VIEWS)
            _, units = policy.augment(fn.reshape(frames, layout="FHWC"), draw, late=late)
            pipe.set_outputs(units, draw.units(1))
        drawn.append([np.asarray(output.at(0)) for output in pipe.run()])
    for one, other in zip(*drawn, strict=True):
        assert (one == other).all()


def test_solarisation_before_a_blur_is_done_before_it() -> None:
    """A user's own policy keeps its order; the oracle is NumPy."""
    policy = Policy(
        crop=Crop(),
        augments=[Solarize(probability=1.0), Blur(probability=1.0, sigma=(1.0, 1.0), window=9)],
    )
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        frames = fn.reshape(types.Constant(VIEWS), layout="FHWC")
        views, _ = policy.augment(frames, Draw(V, (0,), size=SIZE), late=True)
        pipe.set_outputs(views)
    assert not policy.late
    solarized = np.where(VIEWS >= 128, 255 - VIEWS, VIEWS)
    expected = tv.gaussian_blur(torch.from_numpy(solarized).permute(0, 3, 1, 2), [9, 9], [1.0])
    ours = np.asarray(pipe.run()[0].at(0)).astype(int)
    assert np.abs(ours - expected.permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1


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
        (lambda: Blur(window=-2), ["window=-2", "try 1"]),
        (lambda: DINOViews(second=True, local=True), ["second=true and local=true", "false"]),
        (lambda: GroCoViews(second=True, small=True), ["second=true and small=true", "false"]),
    ],
)
def test_an_impossible_setting_is_refused_with_the_remedy(make, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make()
    for word in words:
        assert word in str(error.value)
