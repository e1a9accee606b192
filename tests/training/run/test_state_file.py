"""Nested state in a safetensors file: what went in comes out, and nothing runs on the way."""

import json
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from training.run import state_file


def dumps(state: Any) -> bytes:
    return b"".join(state_file.pieces(state))


def test_everything_that_an_optimizer_holds_comes_back():
    layers = [nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)]
    model = nn.Sequential(*layers)
    model = model.to(memory_format=torch.channels_last)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.step()
    state = optimizer.state_dict()
    found = state_file.loads(dumps(state))
    assert found["param_groups"] == state["param_groups"]
    assert isinstance(found["param_groups"][0]["betas"], tuple)
    assert found["state"].keys() == state["state"].keys()
    for index, moments in state["state"].items():
        for name, expected in moments.items():
            assert torch.equal(found["state"][index][name], expected)
            assert found["state"][index][name].stride() == expected.stride()
            assert found["state"][index][name].dtype == expected.dtype


def plain(state: Any) -> Any:
    """Tensors as what can be compared."""
    if isinstance(state, torch.Tensor):
        return state.dtype, state.shape, state.tolist()
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(plain(value) for value in state)
    return state


@pytest.mark.parametrize(
    "state",
    [
        None,
        torch.tensor(7, dtype=torch.uint8),
        {},
        [1, (2.5, "three", [None, True])],
        {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(3), 3: float("inf")},
        {"empty": torch.empty(0, 4), "bf16": torch.randn(3).bfloat16()},
    ],
)
def test_nested_state_comes_back(state: Any):
    assert plain(state_file.loads(dumps(state))) == plain(state)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def test_the_library_reads_what_is_written_and_every_tensor_is_aligned():
    state = {str(dtype): torch.arange(3).to(dtype) for dtype in reversed(DTYPES)}
    content = dumps(state)
    found = safetensors.torch.load(content)
    assert found.keys() == state.keys()
    for name, expected in state.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name].double(), expected.double())
    size = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8 : 8 + size])
    assert size % 8 == 0
    for name, expected in state.items():
        assert fields[name]["data_offsets"][0] % expected.element_size() == 0


def test_tensors_are_not_copied_to_be_written():
    tensor = torch.zeros(4)
    _, piece = state_file.pieces({"a": tensor})
    tensor[0] = 1.0
    assert bytes(piece) == tensor.numpy().tobytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_order_of_dimensions_is_kept(order: tuple[int, ...]):
    tensor = torch.arange(24.0).view(2, 3, 4).permute(order)
    found = state_file.loads(dumps([tensor]))[0]
    assert torch.equal(found, tensor) and found.stride() == tensor.stride()


def test_a_method_s_file_has_its_own_names():
    content = dumps({"encoder.network.conv1.weight": torch.ones(1)})
    assert set(safetensors.torch.load(content)) == {"encoder.network.conv1.weight"}


def test_what_is_not_plain_is_refused_where_it_is():
    with pytest.raises(TypeError, match=r"found complex at .loader.angle"):
        dumps({"loader": {"angle": 1j}})


def header(described: Any, **tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save(tensors, metadata={"tree": json.dumps(described)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 64,
        b"\xff" * 64,
        pickle.dumps({"a": 1}),
        safetensors.torch.save({"a": torch.ones(2)}),  # no tree
        header({"tensor": "a"}),  # not there
        header({"dict": [[[], 1]]}),  # a key that is none
        header({"dict": 3}),
        header({"other": []}),
        header({"tensor": "a", "stride": [1]}, a=torch.ones(2, 2)),
        header({"tensor": "a", "stride": "no"}, a=torch.ones(2, 2)),
    ],
)
def test_other_bytes_are_a_value_error(content: bytes):
    with pytest.raises(ValueError, match="no state of a run"):
        state_file.loads(content)


def test_a_copy_is_one():
    state = {"a": [torch.ones(2)], "b": 3}
    copy = state_file.to_host(state)
    state["a"][0].zero_()
    assert copy["a"][0].tolist() == [1, 1] and copy["b"] == 3
