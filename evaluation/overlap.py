"""What evaluated sets have in common: images with other sets, and classes with each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evaluation.features import Features
from shards.layout import ShardSet
from shards.one_line import few
from shards.survey import contents_of


def shared_images(sets: Sequence[ShardSet], other: ShardSet) -> list[str]:
    """Return a line for each set that says how many of its images another one has; "" for none.

    By the hashes in the tables: no image is read, and what is held in memory are the hashes of
    `sets`, not those of `other`, which is read once.

    Args:
        sets: whose images are looked for.
        other: where they are looked for.
    """
    wanted = {content for each in sets for content in contents_of(each)}
    known = {content for content in contents_of(other) if content in wanted}
    found = []
    for each in sets:
        shared = sum(content in known for content in contents_of(each)) if known else 0
        line = f"{shared:,} of the {len(each):,} images of {each.root} are in {other.root}"
        found.append(line if shared else "")
    return found


def unknown_classes(train: Features, test: Features, train_set: ShardSet) -> list[str]:
    """Return a remark on test samples of classes that the training set lacks."""
    labels = train.label_N.unique()
    strange_N = (test.label_N >= 0) & ~torch.isin(test.label_N, labels)
    if not bool(strange_N.any()):
        return []
    missing = test.label_N[strange_N].unique().tolist()
    classes = train_set.manifest.classes
    which = few((classes[label] for label in missing if label < len(classes)), 3)
    classes_text = "a class" if len(missing) == 1 else f"{len(missing)} classes"
    return [
        f"{int(strange_N.sum()):,} test samples are of {classes_text} without a sample in "
        f"{train_set.root} ({which}): each counts as wrong"
    ]
