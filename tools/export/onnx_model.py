"""An ONNX model, which onnxruntime and others run without Python or PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shards import durable
from tools.export.architecture import described
from tools.export.file_format import FileFormat, Reader
from tools.export.subject import Subject
from tools.export.torch_program import traced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto

INPUT = "images"
_LARGEST = 2**31  # bytes of a file that protobuf can hold
_AXES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Graph:
    """A model of ONNX, and the sizes of images that it takes."""

    model: ModelProto
    sizes: tuple[int, ...]


class OnnxModel(FileFormat):
    """An .onnx file, with the facts in its metadata_props, each as JSON."""

    endings = (".onnx",)
    usual_ending = ".onnx"

    def refusal(self, subject: Subject) -> str | None:
        """See `FileFormat.refusal`."""
        found = sum(each.nbytes for each in subject.network.state_dict().values())
        if found >= _LARGEST:
            return f"its weights have {found / 2**30:.1f} GiB, and an ONNX file holds 2"
        return None

    def convert(self, subject: Subject) -> Graph:
        """See `FileFormat.convert`."""
        found = traced(subject)
        free = _AXES if len(found.sizes) > 1 else {0: "batch"}
        with _quiet(), torch.no_grad():
            try:
                made = torch.onnx.export(
                    found.program,
                    dynamo=True,
                    input_names=[INPUT],
                    output_names=[subject.facts["output"]],
                    dynamic_shapes=(free,),
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(
                    f"PyTorch cannot write {described(subject)} as ONNX ({reason}). --to "
                    "torch_export writes a program that PyTorch runs without the network's code."
                ) from None
        assert made is not None, "dynamo=True returns a program"
        return Graph(made.model_proto, found.sizes)

    def save(self, converted: Graph, path: Path, facts: Mapping[str, Any]) -> None:
        """See `FileFormat.save`."""
        import onnx

        model = converted.model
        onnx.helper.set_model_props(model, {name: json.dumps(each) for name, each in facts.items()})
        onnx.checker.check_model(model)
        durable.replace(path, [model.SerializeToString()])

    def readers(self, path: Path, subject: Subject) -> dict[str, Reader]:
        """See `FileFormat.readers`."""
        import onnxruntime

        del subject
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images_NCHW: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {INPUT: images_NCHW.numpy()})[0])

        return {"onnxruntime": run}

    def sizes(self, converted: Graph, subject: Subject) -> tuple[int, ...]:
        """See `FileFormat.sizes`."""
        del subject
        return converted.sizes

    def usage(self, path: Path, subject: Subject) -> list[str]:
        """See `FileFormat.usage`."""
        del subject
        return [
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            f"[features] = session.run(None, {{{INPUT!r}: images}})  # float32 [N, 3, H, W]",
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling of its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, before, strict=True):
                each.setLevel(level)
