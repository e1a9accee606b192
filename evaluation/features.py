"""Features of a frozen encoder: h [N, F] for a labelled image set, with labels and sample ids."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from shards.layout import PRESENT

ROWS = 8192  # of features that are looked at together


class ImageBatch(Protocol):
    """A batch of un-augmented images, as `pipeline.images` yields them."""

    @property
    def image_BCHW(self) -> Tensor:
        """Images [B, C, H, W] on the encoder's device, normalised, channels-last."""
        ...

    @property
    def label_B(self) -> Tensor:
        """Labels [B], int64; -1 where the sample has none."""
        ...

    @property
    def id_B(self) -> Tensor:
        """Stable sample ids [B], int64."""
        ...

    @property
    def category_BK(self) -> Tensor | None:
        """Which categories are there [B, K], uint8; None where the set names none."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of N samples, all on one device.

    Args:
        h_NF: features [N, F], float32: N * F * 4 bytes (0.4 GiB for 50,000 samples at F = 2048).
        label_N: labels [N], int64; -1 where the sample has none.
        id_N: stable sample ids [N], int64.
        category_NK: of a multi-label set, uint8 [N, K]: what `shards.layout` has for each category,
            0 absent, 1 present, more: the sample does not count for it.
    """

    h_NF: Tensor
    label_N: Tensor
    id_N: Tensor
    category_NK: Tensor | None = None

    def __post_init__(self) -> None:
        N = len(self.h_NF)
        if self.h_NF.ndim != 2 or self.label_N.shape != (N,) or self.id_N.shape != (N,):
            raise ValueError(
                f"Features need h [N, F], label [N] and id [N], found {list(self.h_NF.shape)}, "
                f"{list(self.label_N.shape)} and {list(self.id_N.shape)}."
            )
        category_NK = self.category_NK
        if category_NK is not None and (category_NK.ndim != 2 or len(category_NK) != N):
            raise ValueError(
                f"Features of {N} samples need categories [{N}, K], found "
                f"{list(category_NK.shape)}."
            )

    def __len__(self) -> int:
        return len(self.h_NF)

    def labelled(self) -> "Features":
        """Return only the rows that have a label: what every evaluation of labels begins with.

        Raises:
            ValueError: a feature is not finite.
        """
        self.refuse_broken()
        return self.rows(self.label_N >= 0)

    def annotated(self) -> tuple["Features", Tensor]:
        """Return only the rows that count for some category, and their categories [N, K].

        Raises:
            ValueError: there are no such rows, or a feature is not finite.
        """
        self.refuse_broken()
        if self.category_NK is None:
            raise ValueError(f"The {len(self)} samples are not of a multi-label set.")
        keep_N = (self.category_NK <= PRESENT).any(dim=1)
        if not bool(keep_N.any()):
            raise ValueError(f"None of the {len(self)} samples has annotations of categories.")
        return self.rows(keep_N), self.category_NK[keep_N]

    def rows(self, keep_N: Tensor) -> "Features":
        """Return only the rows where the mask [N] is true."""
        if bool(keep_N.all()):
            return self  # without a copy, which may be all the memory there is
        category_NK = self.category_NK
        return Features(
            h_NF=self.h_NF[keep_N],
            label_N=self.label_N[keep_N],
            id_N=self.id_N[keep_N],
            category_NK=None if category_NK is None else category_NK[keep_N],
        )

    def refuse_broken(self, what: str = "samples") -> None:
        """Refuse features that are not finite.

        Args:
            what: they are of, in the plural.

        It is noticed here and not in `embed`, because here all ranks hold the same rows: where one
        rank stops, all of them do.

        Raises:
            ValueError: a feature is not finite.
        """
        refuse_broken(self.h_NF, what)


def refuse_broken(h_NF: Tensor, what: str) -> None:
    """Refuse features, or embeddings, that are not finite; see `Features.refuse_broken`."""
    broken = sum(int((~part.isfinite().all(dim=1)).sum()) for part in h_NF.split(ROWS))
    if broken:
        raise ValueError(
            f"{broken} of {len(h_NF)} {what} have features that are not finite: training has "
            "diverged, or the encoder overflows in float16 (evaluate in bfloat16 or float32)."
        )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode, then each back into the mode it was in."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        # Part by part: a frozen batch norm inside a training encoder must stay frozen.
        for part, mode in training.items():
            part.training = mode


def embed(
    encoder: nn.Module,
    batches: Iterable[ImageBatch],
    *,
    autocast: torch.dtype | None = None,
    samples: int | None = None,
) -> Features:
    """Run the encoder over labelled images and keep the features on its device.

    The features stay there in float32 (N * F * 4 bytes; twice that while they are put together, if
    their number is not known before). The encoder runs in eval mode; every module's mode is
    restored, also when a batch fails.

    Args:
        encoder: the network [B, C, H, W] -> h [B, F].
        batches: every sample exactly once.
        autocast: compute in this dtype (torch.bfloat16, torch.float16); None computes in float32.
        samples: number of samples in all batches, if it is known.

    Returns:
        Features in the order of the batches.

    Raises:
        ValueError: there are no batches, or the encoder does not return [B, F].
    """
    h, label, ids, category = [], [], [], []
    h_NF, done = None, 0
    with eval_mode(encoder), torch.inference_mode():
        for batch in batches:
            device = batch.image_BCHW.device.type
            with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
                h_BF: Tensor = encoder(batch.image_BCHW)
            if h_BF.ndim != 2:
                raise ValueError(
                    f"The encoder returned {list(h_BF.shape)}, expected features [B, F]: pool and "
                    "flatten its last feature map."
                )
            if samples is None:
                h.append(h_BF.float())
            else:
                if h_NF is None:
                    with torch.inference_mode(False):
                        h_NF = torch.empty(samples, h_BF.shape[1], device=h_BF.device)
                h_NF[done : done + len(h_BF)] = h_BF
            done += len(h_BF)
            # Copies: a loader may hand out the same memory again for the next batch.
            label.append(batch.label_B.to(h_BF.device, torch.int64, copy=True))
            ids.append(batch.id_B.to(h_BF.device, torch.int64, copy=True))
            if batch.category_BK is not None:
                category.append(batch.category_BK.to(h_BF.device, copy=True))
    if not label:
        raise ValueError("There are no images to evaluate on: the loader gave no batch.")
    # Outside of inference mode, so that the results are normal tensors: autograd may use them.
    return Features(
        h_NF=torch.cat(h) if h_NF is None else h_NF[:done],
        label_N=torch.cat(label),
        id_N=torch.cat(ids),
        category_NK=torch.cat(category) if category else None,
    )


def number_classes(train: Features, test: Features) -> tuple[Tensor, Features, Features]:
    """Number the classes of train 0 to K - 1, drop rows without a label, and relabel both sets.

    Returns:
        The original labels [K] in increasing order, then train and test labelled by class number;
        -1 for a test sample of a class that train lacks, as in a small part of a set: no class
        that a classifier names is right for it.

    Raises:
        ValueError: a set has no labels, train has a single class, test has none of train's
            classes, the two feature sizes differ, or features are not finite.
    """
    for name, features in (("train", train), ("test", test)):
        if not bool((features.label_N >= 0).any()):
            raise ValueError(
                f"None of the {len(features)} {name} samples is labelled (all are -1), but "
                "this figure needs labels. Choose a labelled split, or skip it."
            )
    if train.h_NF.shape[1] != test.h_NF.shape[1]:
        raise ValueError(
            f"Train features have size {train.h_NF.shape[1]}, test features "
            f"{test.h_NF.shape[1]}: compute both with the same encoder."
        )
    train, test = train.labelled(), test.labelled()
    label_K, train_class_N = train.label_N.unique(return_inverse=True)
    if len(label_K) < 2:
        raise ValueError(
            f"All {len(train)} labelled train samples have the label {int(label_K[0])}; "
            "classification needs 2 classes or more. Was a sorted set cut short?"
        )
    known_N = torch.isin(test.label_N, label_K)
    if not bool(known_N.any()):
        raise ValueError(
            f"Test has none of the {len(label_K)} classes of train, {int(label_K[0])} to "
            f"{int(label_K[-1])}. Use two splits of one data set, with the same label names."
        )
    test_class_N = torch.searchsorted(label_K, test.label_N).masked_fill(~known_N, -1)
    return (
        label_K,
        replace(train, label_N=train_class_N),
        replace(test, label_N=test_class_N),
    )
