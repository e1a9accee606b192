"""Labels of two shard sets, and draws of a class-balanced share of those for training.

A draw depends on the seed and the stable ids alone, as `tools.select`'s does: not on the shards,
their order, or the encoder. With one seed a larger share holds a smaller one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.overlap import shared_images
from shards.layout import ShardSet
from shards.one_line import few
from shards.survey import rows_of


@dataclass(frozen=True)
class LabelledSet:
    """Ids and classes of the samples of a shard set, in the order of its tars."""

    shard_set: ShardSet
    id_N: Tensor
    """Stable ids, int64."""
    class_N: Tensor
    """Class numbers, int64: those of `label_K`; -1 without a label."""
    label_K: Tensor
    """Labels that occur, in increasing order: the classes."""

    @classmethod
    def read(cls, shard_set: ShardSet) -> LabelledSet:
        """Read the tables of a shard set."""
        pairs = [
            (row.id, row.label)
            for shard in shard_set.manifest.shards
            for row in rows_of(shard_set, shard)
        ]
        id_N, label_N = torch.tensor(pairs, dtype=torch.int64).unbind(1)
        label_K = label_N[label_N >= 0].unique()
        found = cls(shard_set, id_N, label_N, label_K)
        return cls(shard_set, id_N, found.numbers()[label_N], label_K)

    @property
    def classes(self) -> int:
        """Number of classes that occur."""
        return len(self.label_K)

    def numbers(self) -> Tensor:
        """Return the class number of each label; -1 of one that does not occur, and of label -1."""
        of_label = torch.full((len(self.shard_set.manifest.classes) + 1,), -1)
        of_label[self.label_K] = torch.arange(len(self.label_K))
        return of_label

    def draw(self, share: float, *, seed: int) -> Tensor:
        """Return the mask [N] of a share of the samples of every class.

        Raises:
            ValueError: a class would have none.
        """
        count_K = torch.bincount(self.class_N[self.class_N >= 0], minlength=self.classes)
        drawn_K = (count_K.double() * share).round().long()
        if int(drawn_K.min()) < 1:
            least = int(count_K.argmin())
            name = self.shard_set.manifest.classes[int(self.label_K[least])]
            count = int(count_K[least])
            raise ValueError(
                f"labels={share:g} of the {count:,} images of class {name!r} in "
                f"{self.shard_set.root} are none. Give {1 / count:.2g}, one image, or "
                "more; or a larger training set."
            )
        drawn_N = torch.zeros(len(self.class_N), dtype=torch.bool)
        labelled_N = self.class_N >= 0
        drawn_N[labelled_N] = some_of_each_class(
            self.class_N[labelled_N], self.id_N[labelled_N], drawn_K, seed=seed
        )
        return drawn_N


def some_of_each_class(class_N: Tensor, id_N: Tensor, some_K: Tensor, *, seed: int) -> Tensor:
    """Return the mask [N] of random rows: some_K of each class, or all that it has.

    The order in which the rows came does not matter.

    Args:
        class_N: class numbers, 0 to K - 1.
        id_N: stable ids.
        some_K: rows of each class.
        seed: decides which.
    """
    return place_in_class(class_N, id_N, seed=seed) < some_K[class_N]


def place_in_class(class_N: Tensor, id_N: Tensor, *, seed: int) -> Tensor:
    """Return the place [N] of each row, from 0, in a random order of its class.

    The order in which the rows came does not matter. For the arguments see `some_of_each_class`.
    """
    generator = torch.Generator().manual_seed(seed)
    row_N = shuffled_by_class(class_N, id_N.argsort(stable=True), generator)
    count_K = class_N.bincount()
    first_N = (count_K.cumsum(0) - count_K)[class_N[row_N]]
    place_N = torch.empty_like(row_N)
    place_N[row_N] = torch.arange(len(row_N), device=class_N.device) - first_N
    return place_N


def shuffled_by_class(class_N: Tensor, row_N: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows [N] sorted by class, within a class in random order.

    Args:
        class_N: class numbers.
        row_N: the rows in an order that is always the same, such as that of their ids.
        generator: of the random numbers, on the CPU.
    """
    row_N = row_N[torch.randperm(len(row_N), generator=generator).to(row_N.device)]
    return row_N[class_N[row_N].argsort(stable=True)]


def refuse_other_classes(train: ShardSet, test: ShardSet) -> None:
    """Refuse a test set with classes that the training set does not name.

    Raises:
        ValueError: both have classes, and one of the test set's is none of the other's.
    """
    here, there = test.manifest.classes, Counter(train.manifest.classes)
    strange = [name for name in here if there[name] != 1]  # of two of a name, which one is it?
    if there and strange and here != train.manifest.classes:
        raise ValueError(
            f"{test.root} has classes that {train.root} lacks, or names twice ({few(strange, 3)}), "
            "so nothing that is learned there can name them. Give two splits of one data set, or "
            "shard the test set without these classes."
        )


def in_classes_of(train: ShardSet, test: ShardSet, label_N: Tensor) -> Tensor:
    """Return labels of a test set as the training set numbers its classes, by their names.

    Args:
        train: has all classes of the other set; see `refuse_other_classes`.
        test: whose labels they are.
        label_N: -1 where there is none.
    """
    if train.manifest.classes == test.manifest.classes:
        return label_N
    number = {name: label for label, name in enumerate(train.manifest.classes)}
    of_label = [*(number[name] for name in test.manifest.classes), -1]  # the last is of label -1
    return torch.tensor(of_label, device=label_N.device)[label_N]


def read_pair(train: ShardSet | None, test: ShardSet, what: str) -> LabelledSet:
    """Return the samples to train on, if classes can be learned from them and asked for.

    Args:
        train: of a trial.
        test: of a trial.
        what: is refused otherwise, in words.

    Raises:
        ValueError: a set is missing or unlabelled, or their classes do not suit.
    """
    if train is None:
        raise ValueError(f"{what} needs a labelled training set; name one with --train DIR.")
    for shard_set in (train, test):
        if not shard_set.manifest.classes:
            raise ValueError(
                f"{shard_set.root} has no labels, and {what} needs those of the training and of "
                "the test set. Name labelled sets with --train DIR and --test DIR."
            )
    refuse_other_classes(train, test)
    known = LabelledSet.read(train)
    if known.classes < 2:
        count = "no label" if not known.classes else "a single class"
        raise ValueError(
            f"the images of {train.root} have {count}, and {what} needs 2 classes or more. Give "
            "another --train DIR."
        )
    asked_K = in_classes_of(train, test, LabelledSet.read(test).label_K)
    if not torch.isin(asked_K, known.label_K).any():
        raise ValueError(
            f"no image of {test.root} is of one of the {known.classes} classes of {train.root}. "
            "Give two splits of one data set."
        )
    return known


def trained_on_too(train: ShardSet, test: ShardSet, what: str) -> Iterator[str]:
    """Yield a remark if images are in both sets.

    Args:
        train: what is learned from.
        test: what is asked about.
        what: is not of held-out images then, such as "what k-NN says".
    """
    same = f"{what} is not of held-out images"
    if train.manifest == test.manifest:
        yield f"{test.root} is trained on too: {same}"
        return
    for line in filter(None, shared_images([test], train)):
        yield f"{line} too: {same}"
