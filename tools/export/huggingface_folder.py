"""A folder as the Hugging Face Hub has them, which timm and transformers read.

config.json         the architecture, its arguments, and the preparation of images
model.safetensors   the weights under timm's names
README.md           the model card
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import nextafter
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from pipeline.graph import scaled_shorter
from shards import durable
from tools.export.architecture import of_timm
from tools.export.file_format import FOLDER, NO_PROJECTOR, FileFormat, Reader, write_tensors
from tools.export.model_card import card
from tools.export.subject import Subject

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


class HuggingFaceFolder(FileFormat):
    """A folder to upload as it is."""

    endings = FOLDER
    usual_ending = ".huggingface"

    def refusal(self, subject: Subject) -> str | None:
        """See `FileFormat.refusal`."""
        if subject.projector:
            return NO_PROJECTOR
        if of_timm(subject) is None:
            return "timm, by which transformers reads it too, has no network with these weights"
        return None

    def save(self, converted: Subject, path: Path, facts: Mapping[str, Any]) -> None:
        """See `FileFormat.save`."""
        text = json.dumps(config(converted), indent=2)
        durable.replace(path / CONFIG, [text.encode(), b"\n"])
        write_tensors(path / WEIGHTS, converted, facts, format="pt")  # as transformers wants it
        durable.replace(path / CARD, [card(converted, facts).encode()])

    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """See `FileFormat.readers`."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        wrapped = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()

        def run(images_NCHW: Tensor) -> Tensor:
            return wrapped(images_NCHW).pooler_output

        name, arguments = _read_by_timm(path, subject)
        network = timm.create_model(name, pretrained=True, **arguments)
        return {"transformers": run, "timm": network.eval()}

    def usage(self, path: Path, subject: Subject) -> list[str]:
        """See `FileFormat.usage`."""
        name, arguments = _read_by_timm(path, subject)
        more = "".join(f", {argument}={value!r}" for argument, value in arguments.items())
        return [
            f"network = timm.create_model({name!r}, pretrained=True{more})",
            f"network = transformers.AutoModel.from_pretrained({str(path)!r})",
        ]


def _read_by_timm(path: Path, subject: Subject) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments by which the installed timm reads a folder."""
    if tuple(map(int, re.findall(r"\d+", timm.__version__)[:3])) >= (1, 0, 31):
        return f"local-dir:{path}", {}
    # Before, it takes a safetensors file for a pickle, but in a folder alone.
    known = of_timm(subject)
    assert known is not None, "not refused"
    architecture, arguments = known
    return architecture, {**arguments, "pretrained_cfg": published(path / WEIGHTS, subject)}


def published(path: Path, subject: Subject) -> dict[str, Any]:
    """Return what timm has to know of weights in a file, preparation of images included.

    It stands for what timm knows of the architecture's first tag, and leaves nothing of that.
    """
    return {"file": str(path), **config(subject)["pretrained_cfg"]}


def config(subject: Subject) -> dict[str, Any]:
    """Return the content of config.json.

    timm's own writer would repeat what it knows of the published weights of this architecture:
    their tag, licence, papers and preparation, which are not those of these.
    """
    known = of_timm(subject)
    assert known is not None, "not refused"
    architecture, arguments = known
    several_sizes = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    own = getattr(subject.encoder.network, "pretrained_cfg", {})
    prepared = {
        "input_size": [3, subject.size, subject.size],
        "fixed_input_size": bool(own.get("fixed_input_size")) and not several_sizes,
        "interpolation": subject.facts["interpolation"],
        "crop_pct": crop_share(subject.size),
        "crop_mode": "center",
        "mean": list(subject.normalisation.mean),
        "std": list(subject.normalisation.std),
        "num_classes": 0,
        "custom_load": False,
    }
    # Where timm puts another classifier, or takes images of other channels.
    prepared |= {
        "first_conv": own.get("first_conv", "conv1"),
        "classifier": own.get("classifier", "fc"),
    }
    if license := subject.facts.get("license"):
        prepared["license"] = license
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": subject.encoder.feature_size,
        # Both libraries give the number of classes themselves.
        "model_args": {n: value for n, value in arguments.items() if n != "num_classes"},
        "pretrained_cfg": prepared,
    }


def crop_share(size: int) -> float:
    """Return the share of the shorter side, by which timm scales, that leaves ours.

    timm rounds down, so that a quotient a trifle too large would lose a pixel.
    """
    shorter = scaled_shorter(size)
    share = size / shorter
    return share if int(size / share) == shorter else nextafter(share, 0.0)
