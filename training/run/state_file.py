"""Nested state in one safetensors file: tensors, beside JSON that says where they belong.

Reading it runs no code, whoever wrote it: there are no pickles. State is made of dicts with keys of
any plain kind, lists and tuples; its leaves are tensors, numbers, strings, booleans and None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

_TREE = "tree"
_MALFORMED = (safetensors.SafetensorError, LookupError, TypeError, ValueError, RecursionError)


def pieces(tree: Any) -> list[memoryview]:
    """Return nested state as a safetensors file, piece by piece.

    All pieces but the first are the memory of the tensors themselves, which is not copied again.
    The format is https://huggingface.co/docs/safetensors: the header's length in 8 bytes, the
    header, the tensors.

    Raises:
        TypeError: it holds something that is neither a tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_describe(tree, "", tensors))
    return safetensors_file(tensors, {_TREE: described})


def safetensors_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[memoryview]:
    """Return tensors as a safetensors file, piece by piece; the same ones give the same bytes.

    safetensors' own writer puts the metadata in another order each time.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    found, end = [], 0
    # The widest first, so that each begins at a multiple of its own width.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        piece = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        begin, end = end, end + piece.nbytes
        header[name] = {"dtype": _dtype_name(tensor.dtype), "shape": list(tensor.shape)}
        header[name]["data_offsets"] = [begin, end]
        found.append(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *found]


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """Return what safetensors calls it, as it says itself."""
    content = safetensors.torch.save({"": torch.empty(0, dtype=dtype)})
    return json.loads(content[8:])[""]["dtype"]


def loads(content: bytes) -> Any:
    """Return what `pieces` was given, its tensors with the strides that they had, on the CPU.

    Raises:
        ValueError: these are not the bytes of such a file.
    """
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        return _restore(json.loads(header["__metadata__"][_TREE]), tensors)
    except _MALFORMED as error:
        raise ValueError(f"no state of a run ({' '.join(str(error).split())})") from error


def to_host(tree: Any) -> Any:
    """Copy nested state to host memory.

    From a GPU the copies are under way when this returns, in order with the work already given to
    the current stream: wait for an event of that stream before reading them.
    """
    if isinstance(tree, Tensor):
        tree = tree.detach()
        pinned = tree.is_cuda
        copy = torch.empty_like(tree, device="cpu", pin_memory=pinned)
        return copy.copy_(tree, non_blocking=pinned)
    if isinstance(tree, dict):
        return {key: to_host(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(to_host(value) for value in tree)
    return tree


def _describe(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = name.removeprefix(".")
        if name in tensors:  # {"a": {"b": …}, "a.b": …}
            name += f"#{len(tensors)}"
        tensors[name] = tree.contiguous()
        # An optimizer goes through a parameter and its moments side by side, in memory's order.
        stride = {} if tree.is_contiguous() else {"stride": list(tree.stride())}
        return {"tensor": name, **stride}
    if isinstance(tree, dict):
        pairs = [[key, _describe(value, f"{name}.{key}", tensors)] for key, value in tree.items()]
        return {"dict": pairs}
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [_describe(v, f"{name}.{i}", tensors) for i, v in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"found {type(tree).__name__} at {name or 'the top'} of a run's state")


def _restore(described: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        tensor = tensors[described["tensor"]]
        if "stride" not in described:
            return tensor
        # The strides of a permutation of the dimensions, and nothing that reaches beyond.
        order = sorted(range(tensor.ndim), key=lambda d: -described["stride"][d])
        if sorted(order) != list(range(tensor.ndim)):
            raise KeyError("stride")
        permuted = tensor.permute(order).contiguous()
        return permuted.permute([order.index(d) for d in range(tensor.ndim)])
    if "dict" in described:
        return {key: _restore(value, tensors) for key, value in described["dict"]}
    if "tuple" in described:
        return tuple(_restore(value, tensors) for value in described["tuple"])
    return [_restore(value, tensors) for value in described["list"]]
