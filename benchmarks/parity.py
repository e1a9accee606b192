"""How far viewrank's augmentations are from torchvision's: every operator, the same parameters.

    python -m benchmarks.parity --coco data/raw/coco/val2017

The images of a folder are cut and changed twice with the same numbers: by this pipeline on the
CPU, and by torchvision v2 in float32, so that all rounding is ours. Errors are mean and maximum of
the absolute difference in 0..255, over all values. `fused` is the default finish, `dali` that of
`--tuning.finish dali`. Then the time that HSV hue costs over YIQ. Results go to
benchmarks/results/parity-cpu.json, and from there into docs/augmentation.md by
`python -m benchmarks.report`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from benchmarks import record
from pipeline.augment import Augment, Blur, Color, Draw, Policy, SimCLRViews, Solarize
from pipeline.augment.crop import Boxes, Resampling, cut, mirror
from pipeline.dali import DataNode, Pipeline, fn, types
from pipeline.finish import Finish
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.normalisation import IMAGENET
from pipeline.tuning import Tuning
from shards.source.folder import ImageFolder
from shards.writing.write import write
from training.surroundings import surroundings

RESULTS = Path(__file__).parent / "results" / "parity-cpu.json"
SIZE, VIEWS = 96, 4  # pixels of a view, views of an image
SCALES = {  # the crop's shorter side, in sides of the view
    "scaled up": (0.4, 1.0),
    "down 1–2×": (1.0, 2.0),
    "down 2–4×": (2.0, 4.0),
    "down more than 4×": (4.0, 8.0),
}
RESAMPLINGS: tuple[Resampling, ...] = ("resize", "warp", "supersample")
FACTORS = (0.4, 0.8, 1.2, 1.6)
TURNS = (-0.2, -0.1, 0.1, 0.2)

Picture = NDArray[np.uint8]  # [H, W, 3]
Error = tuple[float, float]  # mean and maximum


@dataclass
class ParityRow:
    """One operator: how far the two forms are from torchvision."""

    operator: str
    parameters: str
    fused: Error | None = None
    dali: Error | None = None


@dataclass
class CropRow:
    """One range of scales: how far each resampling is from torchvision, and how far bicubic is."""

    scale: str
    crops: int
    errors: dict[str, Error] = field(default_factory=dict)


# ── running our own operators ─────────────────────────────────────────────────────────────────────


def run(
    graph: Callable[..., Sequence[DataNode]], *batches: Sequence[NDArray[Any]]
) -> list[list[NDArray[Any]]]:
    """Run a DALI graph once over a batch; return its outputs, a list of samples each."""
    pipe = Pipeline(batch_size=len(batches[0]), num_threads=2, device_id=None)
    with pipe:
        inputs = [
            # Pictures have a layout; parameters have none.
            fn.external_source(source=cycle([list(b)]), layout="HWC" if b[0].ndim == 3 else "")
            for b in batches
        ]
        pipe.set_outputs(*graph(*inputs))
    return [[np.array(sample) for sample in output] for output in pipe.run()]


@dataclass(frozen=True, kw_only=True)
class FixedColor(Color):
    """Color with given factors."""

    at: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)

    def factors(self, units: Sequence[Any]) -> tuple[Any, ...]:
        """Return the given brightness, contrast, saturation and hue for every view."""
        return tuple(value + 0 * unit for value, unit in zip(self.at, units, strict=False))


class DrawRecorder(Draw):
    """Keeps what the blur draws."""

    def __init__(self, views: int, seed: tuple[int, ...], *, size: int) -> None:
        super().__init__(views, seed, size=size)
        self.drawn: list[DataNode] = []

    def uniform(self, low: float, high: float) -> DataNode:
        """See `Draw.uniform`."""
        self.drawn.append(super().uniform(low, high))
        return self.drawn[-1]

    def choice(self, probability: float, *, chosen: int, otherwise: int) -> DataNode:
        """See `Draw.choice`."""
        self.drawn.append(super().choice(probability, chosen=chosen, otherwise=otherwise))
        return self.drawn[-1]


def in_dali(augment: Augment, views_NHWC: Tensor) -> Tensor:
    """Return the views after one augmentation within DALI, in 0..255."""

    def graph() -> Sequence[DataNode]:
        frames = fn.reshape(types.Constant(views_NHWC.numpy()), layout="FHWC")
        return [augment.apply(frames, Draw(len(views_NHWC), (0,), size=SIZE))]

    pipe = Pipeline(batch_size=1, num_threads=2, device_id=None)
    with pipe:
        pipe.set_outputs(*graph())
    return torch.from_numpy(np.array(pipe.run()[0].at(0))).float()


def fused(late: Sequence[Augment], views_NHWC: Tensor, factors: Sequence[float] = ()) -> Tensor:
    """Return the views after the fused finish with the same factors for all, in 0..255."""
    factors_NF = torch.tensor(factors).repeat(len(views_NHWC), 1) if factors else None
    finished = Finish(late, dtype=torch.float32)(views_NHWC.flatten(1, 2), factors_NF)
    return unnormalised(finished).view(views_NHWC.shape)


def unnormalised(finished: Tensor) -> Tensor:
    """Return normalised values, channels last, in 0..255."""
    return finished * torch.tensor(IMAGENET.std_255) + torch.tensor(IMAGENET.mean_255)


def by_torchvision(views_NHWC: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the views changed by torchvision in float32, in 0..255."""
    return 255 * change(views_NHWC.permute(0, 3, 1, 2).float() / 255).permute(0, 2, 3, 1)


def error(pairs: Sequence[tuple[Tensor, Tensor]]) -> Error:
    """Return mean and maximum of the absolute differences."""
    differences = torch.cat([(one - other).abs().flatten() for one, other in pairs])
    return round(float(differences.mean()), 3), round(float(differences.max()), 1)


# ── crops ─────────────────────────────────────────────────────────────────────────────────────────


def boxes_of(
    picture: Picture, scale: tuple[float, float], random: np.random.Generator
) -> NDArray[np.float32] | None:
    """Return crops (top, left, height, width, mirrored) [V, 5] of a scale; none: too small."""
    height, width = picture.shape[:2]
    if min(height, width) <= scale[0] * SIZE:
        return None
    boxes = []
    for view in range(VIEWS):
        side = random.uniform(scale[0], min(scale[1], min(height, width) / SIZE)) * SIZE
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        box_height = min(height, int(side * max(1.0, 1 / aspect)))
        box_width = min(width, int(side * max(1.0, aspect)))
        top = random.integers(0, height - box_height + 1)
        left = random.integers(0, width - box_width + 1)
        boxes.append((top, left, box_height, box_width, view % 2))
    return np.array(boxes, dtype=np.float32)


def torchvision_crop(
    picture: Picture,
    box: NDArray[np.float32],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> Tensor:
    """Return one crop, perhaps mirrored, float32 [3, SIZE, SIZE] in 0..1."""
    top, left, height, width, mirrored = box.astype(int).tolist()
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    view = tv.resized_crop(
        image, top, left, height, width, [SIZE, SIZE], interpolation, antialias=True
    ).clamp(0, 1)
    return tv.horizontal_flip(view) if mirrored else view


def our_crops(
    pictures: Sequence[Picture], boxes: Sequence[NDArray[np.float32]], resampling: Resampling
) -> list[NDArray[np.uint8]]:
    """Return the same crops of this pipeline, uint8 [V, SIZE, SIZE, 3] of each picture."""

    def graph(image: DataNode, box: DataNode) -> Sequence[DataNode]:
        boxes, draw = Boxes(box[:, :2], box[:, 2:4]), Draw(VIEWS, (0,), size=SIZE)
        views = cut(image, boxes, draw, resampling=resampling, minibatch=len(pictures))
        return [mirror(views, box[:, 4] > 0)]

    return run(graph, pictures, boxes)[0]


def crop_rows(pictures: Sequence[Picture]) -> list[CropRow]:
    """Compare crops and flips, by scale and resampling."""
    rows: list[CropRow] = []
    for name, scale in SCALES.items():
        random = np.random.default_rng(0)
        drawn = [(p, b) for p in pictures if (b := boxes_of(p, scale, random)) is not None]
        if not drawn:
            continue
        theirs = [
            [torchvision_crop(picture, box).permute(1, 2, 0) * 255 for box in boxes]
            for picture, boxes in drawn
        ]
        row = CropRow(name, len(drawn) * VIEWS)
        for resampling in RESAMPLINGS:
            ours = our_crops([p for p, _ in drawn], [b for _, b in drawn], resampling)
            row.errors[resampling] = error(
                [
                    (torch.from_numpy(view).float(), expected)
                    for of_picture, views in zip(theirs, ours, strict=True)
                    for expected, view in zip(of_picture, views, strict=True)
                ]
            )
        row.errors["bicubic"] = error(
            [
                (
                    255 * torchvision_crop(p, box, InterpolationMode.BICUBIC).permute(1, 2, 0),
                    expected,
                )
                for (p, boxes), of_picture in zip(drawn, theirs, strict=True)
                for box, expected in zip(boxes, of_picture, strict=True)
            ]
        )
        rows.append(row)
    return rows


# ── what changes the pixels of a view ─────────────────────────────────────────────────────────────


def operator_rows(pictures: Sequence[Picture]) -> list[ParityRow]:
    """Compare every augmentation at fixed parameters, on the largest square of each picture."""
    views_NHWC = torch.stack(
        [
            tv.resize(
                tv.center_crop(torch.from_numpy(p.copy()).permute(2, 0, 1), [min(p.shape[:2])]),
                [SIZE, SIZE],
                antialias=True,
            ).permute(1, 2, 0)
            for p in pictures
        ]
    ).contiguous()
    rows: list[ParityRow] = []

    def color(
        operator: str,
        parameters: str,
        settings: Color,
        cases: Sequence[tuple[tuple[float, float, float, float], Callable[[Tensor], Tensor]]],
    ) -> None:
        row, ours, dalis = ParityRow(operator, parameters), [], []
        for at, theirs in cases:
            expected = by_torchvision(views_NHWC, theirs)
            ours.append((fused([settings], views_NHWC, at), expected))
            if settings.hue_space == "yiq":
                fixed = FixedColor(pivot=settings.pivot, at=at)
                dalis.append((in_dali(fixed, views_NHWC), expected))
        row.fused = error(ours)
        row.dali = error(dalis) if dalis else None
        rows.append(row)

    mean, gray, hsv = Color(), Color(pivot="gray"), Color(hue_space="hsv")
    some = ", ".join(f"{f:g}" for f in FACTORS)
    color(
        "brightness",
        some,
        mean,
        [((f, 1, 1, 0), lambda x, f=f: tv.adjust_brightness(x, f)) for f in FACTORS],
    )
    contrasts = [((1, f, 1, 0), lambda x, f=f: tv.adjust_contrast(x, f)) for f in FACTORS]
    color("contrast, `pivot: mean`", some, mean, contrasts)
    color("contrast, `pivot: gray`", some, gray, contrasts)
    color(
        "saturation",
        some,
        mean,
        [((1, 1, f, 0), lambda x, f=f: tv.adjust_saturation(x, f)) for f in FACTORS],
    )
    hues = [((1, 1, 1, t), lambda x, t=t: tv.adjust_hue(x, t)) for t in TURNS]
    color("hue, `hue_space: yiq`", "±0.1, ±0.2", mean, hues)
    color("hue, `hue_space: hsv`", "±0.1, ±0.2", hsv, hues)
    color("grayscale", "", mean, [((1, 1, 0, 0), lambda x: tv.rgb_to_grayscale(x, 3))])

    for sigma in (0.5, 1.0, 2.0):
        expected = by_torchvision(
            views_NHWC, lambda x, s=sigma: tv.gaussian_blur(x, [9, 9], [s, s])
        )
        blurred = in_dali(Blur(probability=1.0, sigma=(sigma, sigma)), views_NHWC)
        here = error([(blurred, expected)])
        rows.append(ParityRow("blur, two filters (CPU)", f"σ {sigma:g}, window 9", here, here))
        one = error([(dalis_own_blur(views_NHWC, sigma), expected)])
        rows.append(ParityRow("blur, `gaussian_blur` (GPU)", f"σ {sigma:g}, window 9", one, one))
        pillow = torch.stack(
            [
                torch.from_numpy(
                    np.array(Image.fromarray(v).filter(ImageFilter.GaussianBlur(sigma)))
                )
                for v in views_NHWC.numpy()
            ]
        )
        beside = error([(pillow.float(), expected)])
        rows.append(ParityRow("*for scale: Pillow's blur, no window*", f"σ {sigma:g}", beside))

    solarize = Solarize(probability=1.0, threshold=128)
    expected = by_torchvision(views_NHWC, lambda x: tv.solarize(x, 128 / 255))
    rows.append(
        ParityRow(
            "solarize",
            "128",
            error([(fused([solarize], views_NHWC, [128.0]), expected)]),
            error([(in_dali(solarize, views_NHWC), expected)]),
        )
    )
    rows.append(
        ParityRow(
            "normalise",
            "ImageNet's",
            error([(fused([], views_NHWC), views_NHWC.float())]),
            error([(dalis_normalisation(views_NHWC), views_NHWC.float())]),
        )
    )
    return rows


def dalis_own_blur(views_NHWC: Tensor, sigma: float) -> Tensor:
    """Blur by the operator that a GPU uses, on the CPU."""
    window = SIZE // 20 * 2 + 1
    (views,) = run(
        lambda image: [fn.gaussian_blur(image, sigma=sigma, window_size=window)],
        list(views_NHWC.numpy()),
    )
    return torch.from_numpy(np.stack(views)).float()


def dalis_normalisation(views_NHWC: Tensor) -> Tensor:
    """Normalise as `--tuning.finish dali` does, and undo it."""
    (views,) = run(
        lambda image: [
            fn.crop_mirror_normalize(
                image,
                dtype=types.FLOAT,
                output_layout="HWC",
                mean=list(IMAGENET.mean_255),
                std=list(IMAGENET.std_255),
            )
        ],
        list(views_NHWC.numpy()),
    )
    return unnormalised(torch.from_numpy(np.stack(views)))


# ── the whole chain ───────────────────────────────────────────────────────────────────────────────


def exact(policy: Policy) -> Policy:
    """Return the policy with torchvision's hue."""
    return Policy(
        crop=policy.crop,
        augments=[
            replace(a, hue_space="hsv") if isinstance(a, Color) else a for a in policy.augments
        ],
    )


def our_chain(
    pictures: Sequence[Picture], policy: Policy, *, late: bool
) -> tuple[Tensor, dict[str, NDArray[np.float32]]]:
    """Return the views [N·V, SIZE, SIZE, 3] in 0..255, and all that was drawn for them, [N·V]."""
    shapes = [np.array(p.shape[:2], dtype=np.int64) for p in pictures]

    def graph(image: DataNode, shape: DataNode) -> Sequence[DataNode]:
        draw = DrawRecorder(VIEWS, (0,), size=SIZE)
        boxes = policy.crop.draw(shape, draw)
        views = cut(image, boxes, draw, resampling="resize", minibatch=len(pictures))
        views, units = policy.augment(views, draw, late=late)
        return [views, boxes.begin, boxes.size, units, *draw.drawn]

    views, begin, size, units, window, sigma = (
        torch.from_numpy(np.concatenate(output)) for output in run(graph, pictures, shapes)
    )
    mirrored, factors = policy.late_factors(units)
    color = next(a for a in policy.augments if isinstance(a, Color))
    _, jitter, gray, *_ = units.unbind(1)
    in_color = replace(color, grayscale=0).factors(units[:, 1:7].unbind(1))
    assert mirrored is not None
    drawn = {
        "top": begin[:, 0],
        "left": begin[:, 1],
        "height": size[:, 0],
        "width": size[:, 1],
        "mirrored": mirrored,
        "jitter": jitter < color.jitter,
        "gray": gray < color.grayscale,
        **dict(zip(("brightness", "contrast", "saturation", "hue"), in_color, strict=True)),
        "blurred": window > 1,
        "sigma": sigma,
    }
    if late:
        finish = Finish(policy.late, dtype=torch.float32)
        finished = finish(views.flatten(1, 2), factors, mirrored)
        views = unnormalised(finished).view(views.shape)
    return views.float(), {name: values.float().numpy() for name, values in drawn.items()}


def torchvision_chain(
    pictures: Sequence[Picture],
    drawn: dict[str, NDArray[np.float32]],
    *,
    blur_first: bool = False,
    backwards: bool = False,
) -> Tensor:
    """Return what torchvision makes of the same numbers, [N·V, SIZE, SIZE, 3] in 0..255.

    Args:
        pictures: N of them.
        drawn: the parameters of their views.
        blur_first: blur before the colours, as the fused finish has it.
        backwards: hue, saturation, contrast and brightness, in this order; torchvision's own
            order is random.
    """
    views: list[Tensor] = []
    for number in range(len(pictures) * VIEWS):
        at = {name: float(values[number]) for name, values in drawn.items()}
        box = np.array([at[k] for k in ("top", "left", "height", "width", "mirrored")], np.float32)
        view = torchvision_crop(pictures[number // VIEWS], box)
        steps: list[Callable[[Tensor], Tensor]] = []
        if at["jitter"]:
            steps = [
                lambda x, at=at: tv.adjust_brightness(x, at["brightness"]),
                lambda x, at=at: tv.adjust_contrast(x, at["contrast"]),
                lambda x, at=at: tv.adjust_saturation(x, at["saturation"]),
                lambda x, at=at: tv.adjust_hue(x, at["hue"]),
            ]
        steps = steps[::-1] if backwards else steps
        if at["gray"]:
            steps.append(lambda x: tv.rgb_to_grayscale(x, 3))
        if at["blurred"]:
            window = SIZE // 20 * 2 + 1
            steps.insert(
                0 if blur_first else len(steps),
                lambda x, at=at, w=window: tv.gaussian_blur(x, [w, w], [at["sigma"], at["sigma"]]),
            )
        for step in steps:
            view = step(view)
        views.append(255 * view.permute(1, 2, 0))
    return torch.stack(views)


def chain_rows(pictures: Sequence[Picture]) -> list[ParityRow]:
    """Compare all of SimCLR, and torchvision with itself in other orders."""
    policy, parameters = SimCLRViews(), "drawn, strength 1"
    ours, drawn = our_chain(pictures, policy, late=True)
    dali, _ = our_chain(pictures, policy, late=False)
    hsv, _ = our_chain(pictures, exact(policy), late=True)
    theirs = torchvision_chain(pictures, drawn)
    return [
        ParityRow("SimCLR, default", parameters, error([(ours, theirs)]), error([(dali, theirs)])),
        ParityRow("SimCLR, `hue_space: hsv`", parameters, error([(hsv, theirs)])),
        ParityRow(
            "*for scale: torchvision, blur before colours*",
            parameters,
            error([(torchvision_chain(pictures, drawn, blur_first=True), theirs)]),
        ),
        ParityRow(
            "*for scale: torchvision, jitter in reverse order*",
            parameters,
            error([(torchvision_chain(pictures, drawn, backwards=True), theirs)]),
        ),
    ]


# ── what HSV costs ────────────────────────────────────────────────────────────────────────────────


def hue_cost(folder: Path, *, rounds: int) -> dict[str, float]:
    """Return the finish's microseconds a view, by one thread, and the loader's images a second.

    SimCLR, 8 views of 96 px; the median of turns that alternate.
    """
    policies: dict[str, Policy] = {"yiq": SimCLRViews(), "hsv": exact(SimCLRViews())}
    N = 256
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, SIZE * SIZE, 3), generator=draw, dtype=torch.uint8)
    jitter = (torch.rand(N, 1, generator=draw) < 0.8).float()
    factors_NF = torch.rand(N, 4, generator=draw) * 1.6 + torch.tensor([0.2, 0.2, 0.2, 0])
    factors_NF[:, 3] = factors_NF[:, 3] / 4 - 0.2
    factors_NF = jitter * factors_NF + (1 - jitter) * torch.tensor([1.0, 1, 1, 0])
    factors_NF[:, 2] *= torch.rand(N, generator=draw) < 0.8
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    finishes = {name: Finish(p.late, dtype=torch.float32) for name, p in policies.items()}
    times: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(4 * rounds):
        for name, finish in finishes.items():
            begin = time.perf_counter()
            finish(pixels, factors_NF)
            times[name].append((time.perf_counter() - begin) / N)
    torch.set_num_threads(threads)
    costs = {f"finish_us_per_view_{k}": round(1e6 * median(t), 1) for k, t in times.items()}

    rates: dict[str, list[float]] = {name: [] for name in policies}
    with tempfile.TemporaryDirectory() as scratch:
        shard_set = write(
            ImageFolder(root=str(folder)), Path(scratch) / "set", samples_per_shard=64
        )
        loaders = {
            name: Loader(
                shard_set,
                [ViewGroup(policy=policy, count=8, size=SIZE)],
                batch_size_per_rank=16,
                shuffle_buffer=16,
                tuning=Tuning(),
            )
            for name, policy in policies.items()
        }
        endless = {name: (b for _ in cycle([0]) for b in ld) for name, ld in loaders.items()}
        for turn in range(rounds + 1):
            for name, batches in endless.items():
                begin = time.perf_counter()
                for _ in islice(batches, 8):
                    pass
                if turn:  # the first one warms up
                    rates[name].append(8 * 16 / (time.perf_counter() - begin))
        for loader in loaders.values():
            loader.close()
    return costs | {f"images_per_s_{k}": round(median(r), 1) for k, r in rates.items()}


# ── the command ───────────────────────────────────────────────────────────────────────────────────


def tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""

    def cell(found: Error | None) -> str:
        return f"{found[0]:.2f} / {found[1]:.0f}" if found else "–"

    lines = [
        "Mean / maximum absolute difference from torchvision v2 in float32, in 0..255; views of "
        f"{SIZE} px of {results['images']} COCO images.",
        "",
        "| crop and flip | crops | `resize` | `warp` | `supersample` | *for scale: bicubic* |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["crops"]:
        cells = [cell(row["errors"][name]) for name in (*RESAMPLINGS, "bicubic")]
        lines.append(f"| {row['scale']} | {row['crops']} | {' | '.join(cells)} |")
    lines += ["", "| operator | parameters | fused (default) | in DALI |", "|---|---|---|---|"]
    for row in results["operators"] + results["chain"]:
        lines.append(
            f"| {row['operator']} | {row['parameters']} | {cell(row['fused'])} | "
            f"{cell(row['dali'])} |"
        )
    cost = results["hue_cost"]
    if cost:
        slower = cost["images_per_s_yiq"] / cost["images_per_s_hsv"] - 1
        lines += [
            "",
            f"HSV hue costs {cost['finish_us_per_view_hsv'] - cost['finish_us_per_view_yiq']:.0f} "
            f"µs of one core a view ({cost['finish_us_per_view_yiq']:.0f} µs with YIQ, "
            f"{cost['finish_us_per_view_hsv']:.0f} µs with HSV), which makes a step of the loader "
            f"{100 * slower:.0f} % longer with 8 views of 96 px of COCO images.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Compare, measure, and write both down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity")
    parser.add_argument("--coco", type=Path, required=True, help="Folder of images.")
    parser.add_argument("--images", type=int, default=64, help="How many of them are compared.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns of the time measurement.")
    options = parser.parse_args()
    paths = sorted(options.coco.glob("*.jpg"))[: options.images]
    if not paths:
        raise SystemExit(f"{options.coco} has no .jpg files; give a folder of COCO images.")
    pictures = [np.array(Image.open(path).convert("RGB")) for path in paths]
    results = {
        "surroundings": surroundings("torch", "torchvision", "pillow"),
        "command": f"python -m benchmarks.parity --coco DIR --images {options.images} "
        f"--rounds {options.rounds}",
        "images": len(pictures),
        "crops": [asdict(row) for row in crop_rows(pictures)],
        "operators": [asdict(row) for row in operator_rows(pictures)],
        "chain": [asdict(row) for row in chain_rows(pictures)],
        "hue_cost": hue_cost(options.coco, rounds=options.rounds) if options.rounds else {},
    }
    record.write(results, RESULTS)
    print(tables(results))


if __name__ == "__main__":
    main()
