"""Who makes views: viewrank and what others use, each giving the same views of the same images.

A contestant yields batches for ever: V tensors [B, 3, size, size], float32, normalised, on the
feed's device. All follow SimCLR's augmentation at strength 1, every view with numbers of its own:

    random resized crop (bilinear, filtered against aliasing) ─▶ flip ─▶ colour jitter ─▶ grayscale
    ─▶ Gaussian blur (from views of 64 pixels on) ─▶ normalise

and decode an image once for all of its views. viewrank and DALI read a shard set, which is in the
page cache; all others find the very bytes of its tars in memory, so that no reader slows them down.
Each is written as its users write it, with what its authors advise for speed. What differs in the
pixels: DALI, and viewrank by default, turn hue in YIQ, which is cheaper than the others' HSV, so
viewrank takes part with HSV too; plain DALI turns contrast about mid-grey; PIL's blur (lightly)
approximates a Gaussian by boxes.
"""

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image, decode_jpeg
from torchvision.transforms import v2

from benchmarks.parity import exact
from pipeline.augment import Policy, SimCLRViews
from pipeline.dali import fn, types
from pipeline.graph import ViewGroup
from pipeline.loader import Loader
from pipeline.tuning import Tuning
from shards.layout import ShardSet, open_shards

AREA, ASPECT, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.8, 0.8, 0.8, 0.8, 0.2
GRAYSCALE, BLUR, SIGMA = 0.2, 0.5, (0.1, 2.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

UNENDING = 2**40  # samples: no contestant is charged for the end of an epoch

Views = Sequence[Tensor]
Transform = Callable[[Any], Any]
Stored = NDArray[np.uint8]  # the bytes of a JPEG or PNG file, or pixels [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What every contestant is asked for."""

    shards: str
    """Folder of the shard set."""
    views: int
    size: int
    batch_size: int
    workers: int
    """Processes of a DataLoader, or threads of DALI."""
    device: str
    """cpu or cuda: where the views are delivered."""

    @property
    def shard_set(self) -> ShardSet:
        """Where the images come from."""
        return open_shards(self.shards)

    @property
    def gpu(self) -> bool:
        """Whether views are delivered onto a GPU."""
        return self.device == "cuda"

    @property
    def blur_window(self) -> int:
        """Width of the blur's filter: an odd tenth of the view, 0 (no blur) for small views."""
        return self.size // 10 | 1 if self.size >= 64 else 0


@cache
def stored_images(shards: str) -> list[Stored]:
    """Return the images of a shard set as its tars hold them."""
    shard_set = open_shards(shards)
    images: list[Stored] = []
    for name in shard_set.tars:
        with tarfile.open(name) as tar:
            parts = {part.name: tar.extractfile(part) for part in tar}
            for part, file in parts.items():
                key, _, extension = part.partition(".")
                if file is None or extension not in shard_set.manifest.extensions:
                    continue
                # A bytearray, because torch warns of memory that it may not write.
                image = np.frombuffer(bytearray(file.read()), np.uint8)
                if shard_set.manifest.raw:
                    shape = parts[f"{key}.shape.i64"]
                    assert shape
                    image = image.reshape(np.frombuffer(shape.read(), "<i8"))
                images.append(image)
    return images


def as_tensor(stored: Stored) -> Tensor:
    """Decode with torchvision, to uint8 [3, H, W]."""
    if stored.ndim == 3:
        return torch.from_numpy(stored).permute(2, 0, 1)
    return decode_image(torch.from_numpy(stored), mode=ImageReadMode.RGB)


def as_pil(stored: Stored) -> Image.Image:
    """Decode with PIL."""
    if stored.ndim == 3:
        return Image.fromarray(stored)
    return Image.open(io.BytesIO(stored.tobytes())).convert("RGB")


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────


def viewrank(feed: Feed, *, hsv: bool = False) -> Iterator[Views]:
    """Yield from our loader: one DALI graph, all views of a sample in one tensor."""
    policy: Policy = SimCLRViews(
        blur=BLUR if feed.blur_window else 0.0, blur_window=max(1, feed.blur_window)
    )
    if hsv:
        policy = exact(policy)
    loader = Loader(
        feed.shard_set,
        [ViewGroup(policy=policy, count=feed.views, size=feed.size)],
        batch_size_per_rank=feed.batch_size,
        tuning=Tuning(threads=feed.workers),
        device=torch.device("cuda", 0) if feed.gpu else None,
        seed=0,
    )
    while True:
        for batch in loader:
            yield batch.views[0].unbind()


# ── DataLoader ────────────────────────────────────────────────────────────────────────────────────


class Augmented(Dataset[Any]):
    """Images from memory: decoded once, then transformed into all their views."""

    def __init__(
        self, stored: list[Stored], decode: Callable[[Stored], Any], transform: Transform
    ) -> None:
        self.stored, self.decode, self.transform = stored, decode, transform

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.decode(self.stored[index]))


def from_workers(
    feed: Feed, decode: Callable[[Stored], Any], transform: Transform
) -> Iterator[Any]:
    """Yield collated batches of a DataLoader, whose workers use one thread each by themselves."""
    dataset = Augmented(stored_images(feed.shards), decode, transform)
    yield from DataLoader(
        dataset,
        batch_size=feed.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=UNENDING),
        num_workers=feed.workers,
        pin_memory=feed.gpu,
    )


def every_view(feed: Feed, decode: Callable[[Stored], Any], view: Transform) -> Iterator[Views]:
    """Yield from workers that apply `view` V times to each image."""
    for views in from_workers(feed, decode, lambda image: [view(image) for _ in range(feed.views)]):
        yield [view_BCHW.to(feed.device, non_blocking=True) for view_BCHW in views]


def simclr(T: Any, feed: Feed, to_float: Transform) -> Transform:
    """Return the augmentation with the transforms of torchvision's module `T`, v1 or v2."""
    jitter = T.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION, HUE)
    blur = T.GaussianBlur(feed.blur_window, sigma=SIGMA) if feed.blur_window else None
    return T.Compose(
        [
            T.RandomResizedCrop(feed.size, scale=AREA, ratio=ASPECT, antialias=True),
            T.RandomHorizontalFlip(FLIP),
            T.RandomApply([jitter], JITTER),
            T.RandomGrayscale(GRAYSCALE),
            *([T.RandomApply([blur], BLUR)] if blur else []),
            to_float,
            T.Normalize(MEAN, STD),
        ]
    )


def torchvision_v2(feed: Feed) -> Iterator[Views]:
    """Yield from torchvision's tensor transforms on uint8, as its authors advise for speed."""
    view = simclr(v2, feed, v2.ToDtype(torch.float32, scale=True))
    return every_view(feed, as_tensor, view)


def torchvision_v1(feed: Feed) -> Iterator[Views]:
    """Yield from torchvision's first transforms on PIL images, as most published code does."""
    return every_view(feed, as_pil, simclr(v1, feed, v1.ToTensor()))


def lightly(feed: Feed) -> Iterator[Views]:
    """Yield from lightly's SimCLR view, V of them in its multi-view transform, on PIL images."""
    from lightly.transforms.multi_view_transform import MultiViewTransform
    from lightly.transforms.simclr_transform import SimCLRViewTransform

    view = SimCLRViewTransform(
        input_size=feed.size,
        min_scale=AREA[0],
        hf_prob=FLIP,
        cj_prob=JITTER,
        cj_strength=1.0,
        cj_bright=BRIGHTNESS,
        cj_contrast=CONTRAST,
        cj_sat=SATURATION,
        cj_hue=HUE,
        random_gray_scale=GRAYSCALE,
        gaussian_blur=BLUR if feed.blur_window else 0.0,
        sigmas=SIGMA,
        normalize={"mean": list(MEAN), "std": list(STD)},
    )
    views: Any = MultiViewTransform([view] * feed.views)
    for batch in from_workers(feed, as_pil, views):
        yield [view_BCHW.to(feed.device, non_blocking=True) for view_BCHW in batch]


def kornia(feed: Feed) -> Iterator[Views]:
    """Yield views cropped by workers, and augmented by kornia as one stacked batch on the device.

    Kornia augments batches, and images of different size make none. stable-pretraining therefore
    has the workers resize each image to a common size, and kornia crop from that, which filters
    twice and at another scale than the law asks for. Here the workers crop instead, with
    torchvision v2, once a view: the same pixels as the others, and uint8 on their way to the
    device, a quarter of what floats would take. All V views go through kornia together, which
    stable-pretraining found to be the faster way. On the CPU, kornia runs in this process with
    PyTorch's default of a thread a core, beside the workers.
    """
    import kornia.augmentation as K

    crop = v2.RandomResizedCrop(feed.size, scale=AREA, ratio=ASPECT, antialias=True)
    augment = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=FLIP),
        K.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION, HUE, p=JITTER),  # torchvision's formulas
        K.RandomGrayscale(p=GRAYSCALE),
        *([K.RandomGaussianBlur(feed.blur_window, SIGMA, p=BLUR)] if feed.blur_window else []),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    ).to(feed.device)

    def several(image: Tensor) -> Tensor:
        return torch.stack([crop(image) for _ in range(feed.views)])

    for crops_BVCHW in from_workers(feed, as_tensor, several):
        crops_NCHW = crops_BVCHW.to(feed.device, non_blocking=True).flatten(0, 1)
        with torch.no_grad():
            views_NCHW = augment(crops_NCHW.float() / 255)
        yield views_NCHW.unflatten(0, (-1, feed.views)).unbind(1)


# ── DALI and the GPU ──────────────────────────────────────────────────────────────────────────────


def plain_dali(feed: Feed) -> Iterator[Views]:
    """Yield from a DALI graph with a branch of operators for each view, as solo-learn's has.

    solo-learn computes each augmentation for all samples and then chooses; the conditions here, of
    newer DALI versions, compute it only where it is wanted. Gets our index files, too.
    """
    from nvidia.dali.pipeline import pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        shard_set = feed.shard_set
        raw = shard_set.manifest.raw
        stored = fn.readers.webdataset(
            paths=shard_set.tars,
            index_paths=shard_set.indexes,
            ext=["rgb", "shape.i64"] if raw else [";".join(shard_set.manifest.extensions)],
            dtypes=[types.UINT8, types.INT64] if raw else [types.UINT8],
            missing_component_behavior="error",
            random_shuffle=True,
        )
        if raw:
            image = fn.reshape(stored[0], shape=stored[1], layout="HWC")
            image = image.gpu() if feed.gpu else image
        else:
            image = fn.decoders.image(
                stored, device="mixed" if feed.gpu else "cpu", output_type=types.RGB
            )
        views = []
        for _ in range(feed.views):
            view = fn.random_resized_crop(
                image,
                size=(feed.size, feed.size),
                random_area=AREA,
                random_aspect_ratio=ASPECT,
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
            if fn.random.coin_flip(probability=JITTER, dtype=types.BOOL):
                view = fn.color_twist(
                    view,
                    brightness=fn.random.uniform(range=(1 - BRIGHTNESS, 1 + BRIGHTNESS)),
                    contrast=fn.random.uniform(range=(1 - CONTRAST, 1 + CONTRAST)),
                    saturation=fn.random.uniform(range=(1 - SATURATION, 1 + SATURATION)),
                    hue=fn.random.uniform(range=(-360 * HUE, 360 * HUE)),
                )
            if fn.random.coin_flip(probability=GRAYSCALE, dtype=types.BOOL):
                view = fn.saturation(view, saturation=0.0)
            if feed.blur_window > 0 and fn.random.coin_flip(probability=BLUR, dtype=types.BOOL):
                sigma = fn.random.uniform(range=SIGMA)
                view = fn.gaussian_blur(view, sigma=sigma, window_size=feed.blur_window)
            view = fn.crop_mirror_normalize(
                view,
                mirror=fn.random.coin_flip(probability=FLIP),
                dtype=types.FLOAT,
                output_layout="CHW",
                mean=[255 * value for value in MEAN],
                std=[255 * value for value in STD],
            )
            views.append(view)
        return tuple(views)

    pipeline: Any = graph(
        batch_size=feed.batch_size,
        num_threads=feed.workers,
        device_id=0 if feed.gpu else None,
        seed=0,
    )
    names = [f"view{number}" for number in range(feed.views)]
    for (views,) in DALIGenericIterator(pipeline, names, size=-1):  # -1: without end
        yield [views[name] for name in names]


def torchvision_gpu(feed: Feed) -> Iterator[Views]:
    """Yield from torchvision's JPEG decoding and tensor transforms, both on the GPU.

    A batch is decoded in one call. The transforms run view by view: on a batch, v2 gives all images
    the same random numbers.
    """
    stored = [torch.from_numpy(image) for image in stored_images(feed.shards)]
    view = simclr(v2, feed, v2.ToDtype(torch.float32, scale=True))
    while True:
        chosen = torch.randint(len(stored), (feed.batch_size,)).tolist()
        images: Any = decode_jpeg(
            [stored[index] for index in chosen], mode=ImageReadMode.RGB, device=feed.device
        )
        yield [torch.stack([view(image) for image in images]) for _ in range(feed.views)]


# ── the list ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to make views."""

    name: str
    batches: Callable[[Feed], Iterator[Views]]
    package: str = ""
    """What has to be installed besides what viewrank needs."""
    workers: bool = False
    """Whether a DataLoader's workers do it, or the first half of it."""
    in_memory: bool = True
    """Whether it is given the stored images in memory, instead of the shard set."""
    gpu_decode: bool = False

    def cannot(self, feed: Feed) -> str:
        """Return why it cannot take part, or nothing."""
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.gpu_decode and not feed.gpu:
            return "needs a GPU"
        if self.gpu_decode and feed.shard_set.manifest.extensions != ["jpg"]:
            return "decodes JPEG only"
        return ""


VIEWRANK = Contestant(name="viewrank", batches=viewrank, in_memory=False)
VIEWRANK_HSV = Contestant(
    name="viewrank, hue in HSV", batches=partial(viewrank, hsv=True), in_memory=False
)
TORCHVISION_V2 = Contestant(name="torchvision v2, tensors", batches=torchvision_v2, workers=True)
CONTESTANTS = [
    VIEWRANK,
    VIEWRANK_HSV,
    TORCHVISION_V2,
    Contestant(name="torchvision v1, PIL", batches=torchvision_v1, workers=True),
    Contestant(name="lightly", batches=lightly, package="lightly", workers=True),
    Contestant(name="kornia", batches=kornia, package="kornia", workers=True),
    Contestant(name="plain DALI", batches=plain_dali, in_memory=False),
    Contestant(name="torchvision v2, GPU decode", batches=torchvision_gpu, gpu_decode=True),
]
