"""A set of images with boxes, as a detector is trained and tested on it.

    seed, epoch, index ─▶ DrawnImage: flip, height and width ─▶ image and boxes ─▶ padded batch

All random numbers of an image come from (seed, epoch, index), and the padding of a batch from all
of its images on all ranks. So any number of ranks and workers makes the same batches, at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from evaluation.detection.annotated_images import AnnotatedImages, Facts
from shards.one_line import one_line

STRIDE = 32
"""Batches are padded to multiples of it, the stride of most networks' last stage."""
_SLACK = 1.0  # pixels that a box may reach beyond its image without being counted: rounding
_THINNEST = 0.1  # pixels; a thinner box has no area


@dataclass(frozen=True)
class TrueBoxes:
    """The boxes of a set of images: M of them, in pixels of their image's frame."""

    image_M: NDArray[np.int64]
    """Positions of their images."""
    label_M: NDArray[np.int64]
    box_M4: NDArray[np.float64]
    """x, y, width and height."""
    area_M: NDArray[np.float64]
    """As annotated, such as of COCO's outlines; by default, of the box."""
    crowd_M: NDArray[np.bool_]
    """Whether it holds a group, of which none is to be found by itself."""
    difficult_M: NDArray[np.bool_]
    """Whether VOC takes it for too hard to be asked for."""

    def __len__(self) -> int:
        return len(self.image_M)


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image as a batch has it."""

    index: int
    height: int
    """In pixels; the image is resized to it."""
    width: int
    padded: tuple[int, ...]
    """Height and width of the batch."""
    flip: bool = False
    """Whether left and right are exchanged."""
    seed: int = 0
    """Of the anchors and proposals that are sampled."""


@dataclass(eq=False)
class DetectionSet(Dataset[Any]):
    """Images with boxes.

    Args:
        images: gives the pixels.
        categories: names by label.
        boxes: of all images.
        frame_N2: width and height of each image, which its boxes are in.
        remarks: what was changed or left out, a line each.
        clip: whether boxes end where their image does, as for training.
    """

    images: AnnotatedImages
    categories: list[str]
    boxes: TrueBoxes
    frame_N2: NDArray[np.float64]
    remarks: list[str] = field(default_factory=list)
    clip: bool = True

    def __post_init__(self) -> None:
        self._starts = np.searchsorted(self.boxes.image_M, np.arange(len(self) + 1))

    @classmethod
    def read(
        cls, images: AnnotatedImages, *, clip: bool, categories: Sequence[str] = ()
    ) -> DetectionSet:
        """Read all annotations.

        Args:
            images: whose annotations are read.
            clip: whether boxes end where their image does.
            categories: names by label, before those that occur here alone.

        Raises:
            ValueError: there are no boxes, or one is not a box.
        """
        label = {name: number for number, name in enumerate(categories)}
        numbers: dict[Any, str] = {}
        frames, rows, outside, empty, bare = [], [], 0, 0, 0
        for index, facts in enumerate(images.facts()):
            width, height = float(facts["width"]), float(facts["height"])
            frames.append((width, height))
            before = len(rows)
            for found in facts.get("annotations") or ():
                name, box = _category(found, numbers, images.location), _box(found, facts, images)
                x, y, w, h = box
                left, top = min(max(x, 0), width), min(max(y, 0), height)
                right, bottom = min(max(x + w, 0), width), min(max(y + h, 0), height)
                if min(right - left, bottom - top) < _THINNEST:
                    empty += 1
                    continue
                outside += max(left - x, top - y, x + w - right, y + h - bottom) > _SLACK
                if clip:
                    box = (left, top, right - left, bottom - top)
                row = (index, label.setdefault(name, len(label)), *box, found.get("area") or w * h)
                rows.append((*row, bool(found.get("iscrowd")), bool(found.get("difficult"))))
            bare += len(rows) == before
        if not rows:
            raise ValueError(
                f"{images.location}: none of its {len(frames):,} images has a box. Detection needs "
                "annotations: shards of python -m tools.shard coco, or a folder of COCO or VOC, "
                "which --detection.root names."
            )
        table = np.array(rows, np.float64)
        whole = table[:, [0, 1]].astype(np.int64)
        boxes = TrueBoxes(
            whole[:, 0], whole[:, 1], table[:, 2:6], table[:, 6], table[:, 7] > 0, table[:, 8] > 0
        )
        what = {
            f"{empty:,} boxes without an area inside of their image are left out": empty,
            f"{outside:,} boxes reach beyond their image{', and are cut' * clip}": outside,
            f"{bare:,} of {len(frames):,} images have no box, and are background": bare,
        }
        remarks = [f"{images.location}: {text}" for text, count in what.items() if count]
        return cls(images, list(label), boxes, np.array(frames, np.float64), remarks, clip)

    def __len__(self) -> int:
        return len(self.frame_N2)

    def digest(self) -> str:
        """Return what tells its annotations from all others."""
        found = hashlib.sha256("\n".join(self.categories).encode())
        boxes = self.boxes
        flags = (boxes.crowd_M, boxes.difficult_M)
        for each in (boxes.image_M, boxes.label_M, boxes.box_M4, *flags, self.frame_N2):
            found.update(np.ascontiguousarray(each).tobytes())
        return found.hexdigest()

    def names(self) -> dict[str, int]:
        """Return how many boxes, without groups, there are of each category that has some."""
        single_M = self.boxes.label_M[~self.boxes.crowd_M]
        counts = np.bincount(single_M, minlength=len(self.categories)).tolist()
        return {n: count for n, count in zip(self.categories, counts, strict=True) if count}

    def of_image(self, index: int) -> slice:
        """Return where an image's boxes are."""
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def resized(self, index: int, *, shorter: int, longest: int) -> tuple[int, int]:
        """Return the height and width of an image whose shorter side becomes `shorter`.

        Args:
            index: of the image.
            shorter: in pixels.
            longest: that the other side may be; the image becomes smaller where it would be longer.
        """
        width, height = self.frame_N2[index].tolist()
        scale = min(shorter / min(width, height), longest / max(width, height))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def tested(self, index: int, *, shorter: int, longest: int) -> DrawnImage:
        """Return an image as a detector is tested on it: alone, so that no other changes it."""
        height, width = self.resized(index, shorter=shorter, longest=longest)
        return DrawnImage(index, height, width, (height, width))

    def __getitem__(self, draw: DrawnImage) -> dict[str, Any]:
        """Return an image uint8 [3, H, W] with its boxes [N, 4], or the reason why it is not there.

        A group (crowd) is no box to train on. Boxes are left, top, right, bottom, in its pixels.
        """
        try:
            pixels = self.images.pixels(draw.index)
        except (ValueError, OSError) as error:
            return {"error": one_line(str(error))}
        image_CHW = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        if tuple(image_CHW.shape[1:]) != (draw.height, draw.width):
            size = (draw.height, draw.width)
            image_CHW = F.interpolate(image_CHW[None], size, mode="bilinear", antialias=True)[0]
        inside = self.of_image(draw.index)
        kept = ~self.boxes.crowd_M[inside]
        box_N4 = torch.from_numpy(self.boxes.box_M4[inside][kept])
        frame_2 = torch.from_numpy(self.frame_N2[draw.index])
        scale_2 = torch.tensor([draw.width, draw.height], dtype=torch.float64) / frame_2
        box_N4 = torch.cat([box_N4[:, :2], box_N4[:, :2] + box_N4[:, 2:]], 1) * scale_2.repeat(2)
        if draw.flip:
            image_CHW = image_CHW.flip(2)
            box_N4 = torch.stack(
                [draw.width - box_N4[:, 2], box_N4[:, 1], draw.width - box_N4[:, 0], box_N4[:, 3]],
                1,
            )
        return {
            "image": image_CHW,
            "padded": draw.padded,
            "boxes": box_N4.float(),
            "labels": torch.from_numpy(1 + self.boxes.label_M[inside][kept]),  # 0: background
            "size": (draw.height, draw.width),
            "seed": draw.seed,
        }


class BatchOrder:
    """The batches of one rank, as the sampler of a DataLoader: a list of `DrawnImage` each.

    An epoch is a permutation by (seed, epoch); what makes no whole batch at its end is left out.
    Wide images are with wide ones, as in detectron2: less of a batch is padding.

    Args:
        images: the set.
        batch_size: images of a batch on all ranks.
        shorter: the shorter sides, in pixels, one of which is drawn for each image.
        longest: that the other side may be.
        seed: of all random numbers.
        start: the first batch.
        stop: the one after the last.
        rank: this process.
        world_size: number of processes; each gets the next equal part of every batch.
    """

    def __init__(
        self,
        images: DetectionSet,
        *,
        batch_size: int,
        shorter: Sequence[int],
        longest: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._images, self._batch_size = images, batch_size
        self._shorter, self._longest, self._seed = shorter, longest, seed
        self._range = range(start, stop)
        part = batch_size // world_size
        self._own = slice(rank * part, (rank + 1) * part)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[list[DrawnImage]]:
        epoch, order_N = -1, np.empty(0, np.int64)
        batches = len(self._images) // self._batch_size
        for number in self._range:
            if number // batches != epoch:
                epoch = number // batches
                order_N = self._epoch(epoch)
            first = number % batches * self._batch_size
            yield self._batch(order_N[first : first + self._batch_size].tolist(), epoch)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the images of an epoch, batch after batch."""
        random = np.random.default_rng([self._seed, epoch])
        order_N = random.permutation(len(self._images))
        width_N, height_N = self._images.frame_N2[order_N].T
        groups = [order_N[width_N > height_N], order_N[width_N <= height_N]]
        whole = [each[: len(each) // self._batch_size * self._batch_size] for each in groups]
        rest_N = np.concatenate([e[len(w) :] for e, w in zip(groups, whole, strict=True)])
        order_N = np.concatenate([*whole, rest_N])[
            : len(order_N) // self._batch_size * self._batch_size
        ]
        return random.permutation(order_N.reshape(-1, self._batch_size)).ravel()

    def _batch(self, indices: list[int], epoch: int) -> list[DrawnImage]:
        drawn = []
        for index in indices:
            random = np.random.default_rng([self._seed, epoch, index])
            shorter = int(random.choice(self._shorter))
            height, width = self._images.resized(index, shorter=shorter, longest=self._longest)
            flip, seed = bool(random.random() < 0.5), int(random.integers(2**62))
            drawn.append(DrawnImage(index, height, width, (height, width), flip, seed))
        padded = tuple(_padded(max(each.padded[side] for each in drawn)) for side in (0, 1))
        return [replace(each, padded=padded) for each in drawn[self._own]]


def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return padded images uint8 [B, 3, H, W] and the rest as `targets`; or the first `error`."""
    for each in samples:
        if "error" in each:
            return each
    images_BCHW = torch.zeros(len(samples), 3, *samples[0]["padded"], dtype=torch.uint8)
    for image_CHW, each in zip(images_BCHW, samples, strict=True):
        height, width = each["size"]
        image_CHW[:, :height, :width] = each.pop("image")
    return {"images": images_BCHW, "targets": samples}


def to_device(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return a batch's images, channels-last, and its targets on a device.

    Raises:
        ValueError: an image could not be read.
    """
    if "error" in batch:
        raise ValueError(batch["error"])
    images_BCHW = batch["images"].to(device, non_blocking=True)
    targets = [
        {n: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for n, v in t.items()}
        for t in batch["targets"]
    ]
    return images_BCHW.contiguous(memory_format=torch.channels_last), targets


def _padded(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def _category(found: Facts, numbers: dict[Any, str], location: str) -> str:
    """Return the name of a box's category, which has the same number everywhere."""
    number = found.get("category_id")
    name = found.get("category")
    name = str(number if name is None else name)
    if number is not None and numbers.setdefault(number, name) != name:
        raise ValueError(
            f"{location}: category {number} is called {one_line(numbers[number])} and "
            f"{one_line(name)}; expected one name for each."
        )
    return name


def _box(found: Facts, facts: Facts, images: AnnotatedImages) -> tuple[float, float, float, float]:
    try:
        x, y, w, h = (float(side) for side in found["bbox"])
        if np.isfinite([x, y, w, h]).all():
            return x, y, w, h
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"{images.location}: {one_line(str(facts.get('file', 'an image')))} has the box "
        f"{one_line(str(found.get('bbox')))[:60]}; expected [x, y, width, height] in pixels."
    )
