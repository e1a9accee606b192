"""What every format can do: refuse what it cannot hold, write, and read as other programs do."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shards import durable
from tools.export.subject import Subject
from training.run import state_file

FOLDER = ("",)
"""The endings of a format that is a folder."""
NO_PROJECTOR = "it holds the weights of a library's network, which has no projector"
Reader = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W] → features [N, F], as another program computes them."""


class FileFormat(ABC):
    """A form in which an encoder is written for other programs."""

    endings: tuple[str, ...]
    """Which a file's name may have, or `FOLDER`."""
    usual_ending: str
    """Of the name that it gets unless another is given."""

    @abstractmethod
    def refusal(self, subject: Subject) -> str | None:
        """Return why this format cannot hold a network; None if it can."""

    def convert(self, subject: Subject) -> Any:
        """Return what `save` writes: what takes long is done once.

        Raises:
            ValueError: the network is not such as the format can describe.
        """
        return subject

    @abstractmethod
    def save(self, converted: Any, path: Path, facts: Mapping[str, Any]) -> None:
        """Write, or write again.

        Args:
            converted: of `convert`.
            path: a file, or a folder that exists.
            facts: what is to be said of the encoder in it.
        """

    @abstractmethod
    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """Return, by their names, the programs that read what was written.

        Args:
            path: which was written; nothing else of the subject's weights is used.
            subject: says which architecture they have.
        """

    def sizes(self, converted: Any, subject: Subject) -> tuple[int, ...]:
        """Return the sizes of images, in pixels, that the check is made with."""
        del converted
        return (subject.size,)

    @abstractmethod
    def usage(self, path: Path, subject: Subject) -> list[str]:
        """Return lines of Python that read it."""


def write_tensors(path: Path, subject: Subject, facts: Mapping[str, Any], **more: str) -> None:
    """Write the encoder's weights as a safetensors file, each fact in its metadata as JSON.

    Args:
        path: of the file.
        subject: whose weights are written.
        facts: about it.
        more: metadata that are written as they are.
    """
    metadata = {name: json.dumps(value) for name, value in facts.items()} | more
    durable.replace(path, state_file.safetensors_file(subject.tensors(), metadata))
