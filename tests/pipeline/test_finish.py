"""The last pass against a naive reference, torchvision, DALI's operators and its kernel."""

import colorsys
import importlib.util
import sys
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pipeline import finish as module
from pipeline.augment import Augment, Blur, Color, Crop, Policy, SimCLRViews, Solarize
from pipeline.dali import Pipeline, fn, types
from pipeline.finish import Finish, single_threaded
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.normalisation import IMAGENET
from pipeline.tuning import Tuning
from tests.conftest import MakeShardSet, Pictures

SIDE = 12
N, P = 4, SIDE * SIDE
# Smooth pictures, noise, and every extreme: black, white and the six pure colours.
SMOOTH = [Pictures(1, height=SIDE, width=SIDE).pixels(i).reshape(P, 3) for i in range(2)]
NOISE = np.random.default_rng(0).integers(0, 256, (P, 3), dtype=np.uint8)
PURE = np.array(list(product((0, 255), repeat=3)), dtype=np.uint8)[np.arange(P) % 8]
PIXELS = torch.from_numpy(np.stack([*SMOOTH, NOISE, PURE]))

IDENTITY = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
OPERATORS = {
    "brighter": {"brightness": 1.6},
    "darker": {"brightness": 0.3},
    "more contrast": {"contrast": 1.7},
    "less contrast": {"contrast": 0.4},
    "more saturation": {"saturation": 1.8},
    "less saturation": {"saturation": 0.5},
    "grayscale": {"saturation": 0.0},
    "hue forward": {"hue": 0.13},
    "hue backward": {"hue": -0.2},
    "all": {"brightness": 1.2, "contrast": 1.3, "saturation": 0.7, "hue": 0.08},
    "nothing": {},
}
OUT_OF_RANGE = {
    "black": {"brightness": 0.0},
    "far too bright": {"brightness": 50.0},
    "no contrast": {"contrast": 0.0},
    "far too much contrast": {"contrast": 100.0},
    "negative": {"contrast": -2.0, "saturation": -1.0},
    "many turns": {"hue": 7.3},
    "turns back": {"hue": -3.6, "saturation": 4.0},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def factors(**changed: float) -> Tensor:
    """Return the same brightness, contrast, saturation and hue for every view."""
    return torch.tensor([*(IDENTITY | changed).values()]).repeat(N, 1)


def levels(finished: Tensor) -> NDArray[np.float64]:
    """Undo the normalisation: values in 0..255."""
    return finished.double().numpy() * np.array(IMAGENET.std_255) + np.array(IMAGENET.mean_255)


def naive(
    pixels_NPC: Tensor, factors_NF: Tensor, color: Color | None, threshold: float = 256
) -> NDArray[np.float64]:
    """Finish one pixel after the other by the definitions, in float64; values in 0..255."""
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    views = []
    for view, row in zip(pixels_NPC.double().numpy(), factors_NF.double().tolist(), strict=True):
        brightness, contrast, saturation, hue = row[:4]
        middle = 128.0
        if color and color.pivot == "mean":
            middle = float(np.mean([0.299 * r + 0.587 * g + 0.114 * b for r, g, b in view]))
        angle = 2 * np.pi * hue if color and color.hue_space == "yiq" else 0.0
        pixels = []
        for rgb in view:
            if color:
                rgb = brightness * (middle + contrast * (rgb - middle))
                y, i, q = to_yiq @ rgb
                i, q = (
                    saturation * (i * np.cos(angle) + q * np.sin(angle)),
                    saturation * (q * np.cos(angle) - i * np.sin(angle)),
                )
                rgb = np.clip(np.linalg.solve(to_yiq, [y, i, q]), 0, 255)
                if color.hue_space == "hsv":
                    h, s, v = colorsys.rgb_to_hsv(*rgb / 255)
                    rgb = 255 * np.array(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
            pixels.append([255 - x if x >= threshold else x for x in rgb])
        views.append(pixels)
    return np.array(views)


def torchvision_image(pixels_NPC: Tensor) -> Tensor:
    """Return float [N, 3, SIDE, SIDE] in 0..1: torchvision without rounding."""
    return pixels_NPC.float().unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2) / 255


def torchvision_levels(image: Tensor) -> NDArray[np.float64]:
    return 255 * image.permute(0, 2, 3, 1).flatten(1, 2).double().numpy()


# ── each operator, at fixed factors ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hue_space", ["yiq", "hsv"])
@pytest.mark.parametrize("pivot", ["mean", "gray"])
@pytest.mark.parametrize("changed", [*OPERATORS.values(), *OUT_OF_RANGE.values()], ids=str)
def test_colours_are_the_naive_ones(changed: dict[str, float], pivot, hue_space) -> None:
    color = Color(pivot=pivot, hue_space=hue_space)
    rows = factors(**changed)
    ours = levels(Finish([color], dtype=torch.float32)(PIXELS, rows))
    assert np.abs(ours - naive(PIXELS, rows, color)).max() < 0.01


@pytest.mark.parametrize(
    ("changed", "theirs", "bound"),
    [
        ({"brightness": 1.6}, lambda x: tv.adjust_brightness(x, 1.6), 0.01),
        ({"brightness": 0.3}, lambda x: tv.adjust_brightness(x, 0.3), 0.01),
        # Their luma weights have four digits; 0.0001 of white is 0.03 levels.
        ({"contrast": 1.7}, lambda x: tv.adjust_contrast(x, 1.7), 0.02),
        ({"contrast": 0.4}, lambda x: tv.adjust_contrast(x, 0.4), 0.02),
        ({"saturation": 1.8}, lambda x: tv.adjust_saturation(x, 1.8), 0.05),
        ({"saturation": 0.5}, lambda x: tv.adjust_saturation(x, 0.5), 0.05),
        ({"saturation": 0.0}, lambda x: tv.rgb_to_grayscale(x, 3), 0.05),
        ({"hue": 0.13}, lambda x: tv.adjust_hue(x, 0.13), 0.01),
        ({"hue": -0.2}, lambda x: tv.adjust_hue(x, -0.2), 0.01),
    ],
)
def test_in_the_exact_form_each_operator_is_torchvisions(changed, theirs, bound) -> None:
    exact = Color(pivot="mean", hue_space="hsv")
    ours = levels(Finish([exact], dtype=torch.float32)(PIXELS, factors(**changed)))
    expected = torchvision_levels(theirs(torchvision_image(PIXELS)))
    assert np.abs(ours - expected).max() < bound


@pytest.mark.parametrize("changed", OPERATORS.values(), ids=OPERATORS)
def test_colours_about_mid_gray_are_dalis_rounded(changed: dict[str, float]) -> None:
    f = IDENTITY | changed
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        frames = types.Constant(PIXELS.unflatten(1, (SIDE, SIDE)).numpy())
        pipe.set_outputs(
            fn.color_twist(
                fn.reshape(frames, layout="FHWC"),
                brightness=f["brightness"],
                contrast=f["contrast"],
                saturation=f["saturation"],
                hue=360 * f["hue"],
            )
        )
    theirs = np.asarray(pipe.run()[0].at(0)).reshape(N, P, 3)
    ours = levels(Finish([Color(pivot="gray")], dtype=torch.float32)(PIXELS, factors(**changed)))
    # Half a level is rounding; of the rest, its YIQ has three digits and ours four.
    assert np.abs(ours - theirs).max() <= 1.25


@pytest.mark.parametrize("threshold", [0, 1, 100, 128, 255])
def test_solarisation_is_torchvisions(threshold: int) -> None:
    finish = Finish([Solarize(probability=1.0)], dtype=torch.float32)
    ours = levels(finish(PIXELS, torch.full((N, 1), float(threshold))))
    expected = tv.solarize(PIXELS.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2), float(threshold))
    assert np.abs(ours - expected.permute(0, 2, 3, 1).flatten(1, 2).numpy()).max() < 0.01


@pytest.mark.parametrize("hue_space", ["yiq", "hsv"])
def test_solarisation_comes_after_the_colours(hue_space) -> None:
    color, rows = Color(hue_space=hue_space), factors(**OPERATORS["all"])
    finish = Finish([color, Solarize()], dtype=torch.float32)
    ours = levels(finish(PIXELS, torch.cat([rows, torch.full((N, 1), 128.0)], 1)))
    expected = naive(PIXELS, rows, color, threshold=128)
    # Where a value lies at the threshold within rounding, either answer will do.
    assert np.quantile(np.abs(ours - expected), 0.999) < 0.01


def test_normalisation_is_torchvisions() -> None:
    ours = Finish([], dtype=torch.float32)(PIXELS, None)
    mean, std = list(IMAGENET.mean), list(IMAGENET.std)
    expected = tv.normalize(torchvision_image(PIXELS), mean, std).permute(0, 2, 3, 1).flatten(1, 2)
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("changed", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_no_factor_leads_out_of_the_range_of_pixels(changed: dict[str, float]) -> None:
    for hue_space in ("yiq", "hsv"):
        finish = Finish([Color(hue_space=hue_space)], dtype=torch.float32)
        ours = levels(finish(PIXELS, factors(**changed)))
        assert np.isfinite(ours).all() and ours.min() > -0.01 and ours.max() < 255.01


# ── the fused form and DALI's, through the loader ─────────────────────────────────────────────────


def both_forms(
    make_shard_set: MakeShardSet, policy: Policy
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the views of one batch by the fused finish and by DALI, in 0..255."""
    found = []
    for form in ("fused", "dali"):
        with Loader(
            make_shard_set(24),
            [ViewGroup(policy=policy, count=3, size=24)],
            batch_size_per_rank=24,
            seed=5,
            tuning=Tuning(finish=form, threads=2),
        ) as loader:
            views_VBCHW = next(iter(loader)).views[0]
            found.append(levels(views_VBCHW.permute(0, 1, 3, 4, 2).clone()))
    return found[0], found[1]


def test_the_fused_form_is_dalis_except_for_its_rounding(make_shard_set: MakeShardSet) -> None:
    policy = Policy(crop=Crop(), augments=[Blur(window=5), Color(pivot="gray"), Solarize()])
    fused, dali = both_forms(make_shard_set, policy)
    # DALI rounds colours to a level; 127.6 becomes 128 before it is solarised, and then 127.
    assert np.abs(fused - dali).max() <= 2.25
    assert np.quantile(np.abs(fused - dali), 0.95) <= 0.75


def test_about_the_mean_dali_rounds_and_clamps_twice(make_shard_set: MakeShardSet) -> None:
    # Gentle colours on gentle pictures: on strong ones the clamps differ.
    color = Color(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
    fused, dali = both_forms(make_shard_set, Policy(crop=Crop(), augments=[color]))
    difference = np.abs(fused - dali)
    assert difference.mean() < 0.7 and np.quantile(difference, 0.95) < 1.5


def test_a_whole_policy_agrees_in_both_forms_except_for_the_order(
    make_shard_set: MakeShardSet,
) -> None:
    """DALI's form clamps colours and then blurs, the fused one blurs and then clamps colours."""
    fused, dali = both_forms(make_shard_set, SimCLRViews(strength=0.5))
    assert np.abs(fused - dali).mean() < 2


# ── chunks, threads, types, memory ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("side", [1, 3, 5, 8, 10, 12])
@pytest.mark.parametrize("views", [1, 4, 11])
@pytest.mark.parametrize("hue_space", ["yiq", "hsv"])
def test_chunks_of_any_size_give_the_same_result(
    monkeypatch: pytest.MonkeyPatch, side: int, views: int, hue_space
) -> None:
    draw = torch.Generator().manual_seed(side)
    pixels = torch.randint(0, 256, (views, side * side, 3), generator=draw, dtype=torch.uint8)
    rows = 0.5 + torch.rand(views, 5, generator=draw) * torch.tensor([1, 1, 1, 1, 100])
    late = [Color(hue_space=hue_space), Solarize()]
    one = Finish(late, dtype=torch.float32)
    expected = torch.cat([one(pixels[v : v + 1], rows[v : v + 1]) for v in range(views)])
    monkeypatch.setattr(module, "_CHUNK", 4 * 12 * side * side)  # four views
    assert torch.allclose(Finish(late, dtype=torch.float32)(pixels, rows), expected, atol=1e-4)
    with single_threaded(2) as workers:
        threaded = Finish(late, dtype=torch.float32, workers=workers)(pixels, rows)
    assert torch.allclose(threaded, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("late", [[], [Color()], [Color(hue_space="hsv"), Solarize()]], ids=len)
def test_a_mirrored_view_is_its_finished_mirror_image(
    late: list[Augment], dtype: torch.dtype
) -> None:
    rows = torch.cat([factors(**OPERATORS["all"]), torch.full((N, 1), 128.0)], 1)
    mirrored = torch.arange(N) % 3 == 0
    frames = PIXELS.unflatten(1, (SIDE, SIDE))
    turned = torch.where(mirrored[:, None, None, None], frames.flip(2), frames).flatten(1, 2)
    finish = Finish(late, dtype=dtype)
    apart = finish(PIXELS, rows, mirrored).float() - finish(turned, rows).float()
    assert apart.abs().max() < (1e-5 if dtype == torch.float32 else 1e-2)  # the mean's rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("late", [[], [Color()], [Color(hue_space="hsv"), Solarize()]], ids=len)
def test_half_types_are_float32_rounded_once(late: list[Augment], dtype: torch.dtype) -> None:
    rows = torch.cat([factors(**OPERATORS["all"]), torch.full((N, 1), 128.0)], 1)
    full, half = (Finish(late, dtype=d)(PIXELS, rows) for d in (torch.float32, dtype))
    assert half.dtype == dtype and (half == full.to(dtype)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_that_is_held_is_not_written_over(dtype: torch.dtype) -> None:
    finish = Finish([Color()], dtype=dtype)
    first = finish(PIXELS, factors())
    before = first.clone()
    part = first[1:, :5].permute(2, 0, 1)  # another tensor holds a part of it
    del first
    for _ in range(4):
        finish(PIXELS, factors(brightness=0.2))
    assert (part == before[1:, :5].permute(2, 0, 1)).all()


def test_memory_is_reused_once_its_result_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: list[object] = []
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: fresh.append(a) or empty(*a, **k))
    finish = Finish([Color()], dtype=torch.float32)
    first, second = (finish(PIXELS, factors()) for _ in range(2))
    addresses = {first.data_ptr(), second.data_ptr()}
    assert len(addresses) == len(fresh) == 2
    del first, second
    for _ in range(5):
        held = [finish(PIXELS, factors()) for _ in range(2)]
        assert {x.data_ptr() for x in held} == addresses
        del held
    assert len(fresh) == 2  # not the same address by chance
    finish(PIXELS[:1], factors()[:1])
    assert len(fresh) == 3  # a batch of another size has its own memory


# ── the kernel ────────────────────────────────────────────────────────────────────────────────────


def kernel_cases() -> list[tuple[list[Augment], torch.dtype]]:
    yiq, hsv, solarize = Color(), Color(pivot="gray", hue_space="hsv"), Solarize(probability=1.0)
    lates = [[], [solarize], [yiq], [hsv], [yiq, solarize], [hsv, solarize]]
    return [(late, torch.float32) for late in lates] + [([yiq], torch.float16)]


def kernel_differences(device: str) -> list[float]:
    """Return how far the kernel is from the definition, in each case, in standard deviations."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for late, dtype in kernel_cases():
        # More pixels than one program takes, and not a multiple of that.
        pixels = torch.randint(0, 256, (2, 34 * 34, 3), generator=draw, dtype=torch.uint8)
        pixels[0, :8] = torch.from_numpy(PURE[:8])
        rows = torch.rand(2, 4, generator=draw) * torch.tensor([1.5, 1.5, 1.5, 1.0])
        rows[1, 2] = 0  # a gray one
        if late and isinstance(late[-1], Solarize):
            # Between levels, so that rounding does not decide.
            rows = torch.cat([rows, torch.tensor([[127.5], [256.0]])], 1)
        if len(late) == 1 and isinstance(late[0], Solarize):
            rows = rows[:, -1:]
        mirrored = torch.tensor([True, False]) if len(found) % 2 else None
        expected = Finish(late, dtype=dtype)(pixels, rows, mirrored).float()
        on_device = None if mirrored is None else mirrored.to(device)
        kernel = Finish(late, dtype=dtype).by_triton(pixels.to(device), rows.to(device), on_device)
        difference = (kernel.float().cpu() - expected).abs()
        assert kernel.dtype == dtype
        # Solarised colours near the threshold may fall on either side of it.
        found.append(float(difference.flatten().quantile(0.999)))
    return found


def test_the_interpreted_kernel_is_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    # Load the file again as an interpreted module; another process would take seconds.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = importlib.util.find_spec("pipeline.finish_kernel")
    assert found and found.loader
    interpreted = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "pipeline.finish_kernel", interpreted)
    found.loader.exec_module(interpreted)
    assert "Interpreted" in type(interpreted._finish).__name__
    differences = kernel_differences("cpu")
    assert max(differences[:-1]) < 2e-5 and differences[-1] < 2e-3


@pytest.mark.gpu
def test_the_kernel_on_a_gpu_is_the_definition() -> None:
    found = kernel_differences("cuda")
    assert max(found[:-1]) < 2e-5 and found[-1] < 2e-3
