"""Encoders: sizes, and that a batch of views is encoded as its views are, one by one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.models
from torch import nn

from model.encoder import Encoder, ResNet, SmallResNet
from model.encoder.small_resnet import _Pointwise
from model.method import JointEmbedding
from model.method.method import encode
from model.objective import NTXent, SmoothAP
from model.projector import Projector

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("encoder", "feature_size"),
    [
        (ResNet(depth=18), 512),
        (ResNet(depth=50, stem="small"), 2048),
        (SmallResNet(), 256),
    ],
)
def test_features_have_the_announced_size(encoder: Encoder, feature_size: int) -> None:
    assert encoder.feature_size == feature_size
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, feature_size)


def test_a_resnets_features_are_torchvisions() -> None:
    torch.manual_seed(0)
    ours = ResNet(depth=18, zero_init_residual=False).eval()
    theirs = torchvision.models.resnet18(weights=None).eval()
    missing = theirs.load_state_dict(ours.network.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"} and not missing.unexpected_keys
    theirs.fc = torch.nn.Sequential()  # pyright: ignore[reportAttributeAccessIssue]
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


def test_the_small_stem_keeps_the_resolution() -> None:
    small, large = ResNet(stem="small"), ResNet(stem="large")
    images = torch.randn(1, 3, 32, 32)

    def size_after_stem(encoder: ResNet) -> torch.Size:
        network = encoder.network
        return network.maxpool(network.relu(network.bn1(network.conv1(images)))).shape[-2:]

    assert size_after_stem(small) == (32, 32) and size_after_stem(large) == (8, 8)


def test_the_small_resnet_has_about_one_million_parameters() -> None:
    assert 1.15e6 < sum(p.numel() for p in SmallResNet().parameters()) < 1.25e6


def test_views_are_encoded_as_one_by_one_without_a_copy() -> None:
    V, B = 3, 4
    views_VBCHW = torch.randn(B, V, 8, 8, 3).permute(1, 0, 4, 2, 3)  # as the loader lays them out
    seen: list[torch.Tensor] = []

    def network(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        return rows.flatten(1).cumsum(1)[:, :5]

    z_VBD = encode(network, views_VBCHW)
    assert seen[0].data_ptr() == views_VBCHW.data_ptr()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    for v in range(V):
        for b in range(B):
            alone = network(views_VBCHW[v, b][None])[0]
            assert torch.allclose(z_VBD[v, b], alone, atol=1e-5)


@pytest.mark.parametrize("objective", [SmoothAP(), NTXent()])
def test_joint_embedding_ranks_all_view_groups_together(objective) -> None:
    torch.manual_seed(0)
    method = JointEmbedding(encoder=SmallResNet(width=4), objective=objective, hidden_size=16)
    method.eval()  # batch norm apart, rows do not influence each other
    groups = torch.randn(2, 5, 3, 24, 24), torch.randn(3, 5, 3, 16, 16)
    output = method(groups)
    z_VAD = torch.stack([method.projector(method.encoder(view)) for g in groups for view in g])
    assert torch.allclose(output.z_VAD, z_VAD, atol=1e-5)
    assert output.loss.item() == pytest.approx(objective(z_VAD).item(), abs=1e-5)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert not output.z_VAD.requires_grad


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_projector_has_as_many_layers_as_asked_for(layers: int) -> None:
    projector = Projector(feature_size=6, hidden_size=7, embedding_size=5, layers=layers)
    assert sum(isinstance(m, torch.nn.Linear) for m in projector.modules()) == layers
    assert projector(torch.randn(4, 6)).shape == (4, 5)


def test_the_strided_shortcut_is_a_strided_convolution() -> None:
    torch.manual_seed(0)
    ours = _Pointwise(6, 10, 2).double()
    theirs = nn.Conv2d(6, 10, 1, stride=2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    one, other = (images.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(ours(one), theirs(other))
    ours(one).square().sum().backward()
    theirs(other).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_a_narrow_network_does_not_corrupt_memory() -> None:
    """With PyTorch's own strided shortcut every third of these ends by a signal, on a Xeon."""
    program = (
        "import torch; from model.encoder import SmallResNet\n"
        "net = SmallResNet(width=4).to(memory_format=torch.channels_last)\n"
        "for _ in range(40):\n"
        "    x = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)\n"
        "    net(x).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
