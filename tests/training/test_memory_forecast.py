"""The memory budget, against counting by hand, other ways of counting, and real steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from model.encoder import SmallResNet
from model.method import JointEmbedding, Method, Output, QKIteration
from model.objective import NTXent, Objective, SmoothAP
from pipeline.loader import Loader
from tests.conftest import MakeShardSet
from training import free_memory, memory_forecast
from training.config import Config
from training.free_memory import cgroups_free
from training.memory_forecast import (
    FULL,
    GIB,
    SPARE,
    MemoryForecast,
    _Alive,
    forecast,
    loader_bytes,
    refuse,
)
from training.settings import parse

MIB = 2**20
V, S = 3, 32
FLAGS = f"--shards x --run r --steps 1 --views.count {V} --views.size {S} --device cpu"


def configured(*more: str) -> Config:
    return parse([*FLAGS.split(), "--mixed_precision", "no", *more]).config


@pytest.fixture
def loader(make_shard_set: MakeShardSet) -> Loader:
    return Loader(make_shard_set(64), configured().groups, batch_size_per_rank=16)


def joint(objective: Objective | None = None, width: int = 8) -> JointEmbedding:
    method = JointEmbedding(
        encoder=SmallResNet(width=width),
        objective=objective or SmoothAP(),
        hidden_size=16,
        embedding_size=8,
    )
    return method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class ThreeExponentials(Method):
    """Each saves its result, so four are alive at worst: these, and a gradient."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # without the encoder and projector of a real method
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        del id_B
        x = views[0] * self.scale  # saves the views, which the loader holds anyway
        for _ in range(3):
            x = x.exp()
        return Output(loss=x.sum(), z_VAD=x.new_zeros(()))  # the result itself would stay alive

    def embed(self, views_VBCHW: Tensor) -> Tensor:
        return views_VBCHW


class AllScores(Objective):
    """N × N scores and their exponentials, all at once."""

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        del gallery_views, samples
        z_ND = z_VAD.flatten(0, 1)
        return (z_ND @ z_ND.T).exp().sum()


class Mined(Objective):
    """How many scores it looks at depends on their values."""

    def loss(self, z_VAD: Tensor, gallery_views: int, samples: slice) -> Tensor:
        del gallery_views, samples
        z_ND = z_VAD.flatten(0, 1)
        S_QG = z_ND @ z_ND.T
        return S_QG[S_QG > 0].sum()


def test_what_is_alive_at_worst_is_what_a_hand_counts(loader: Loader) -> None:
    found = forecast(configured(), ThreeExponentials(), loader)
    views = 4 * 16 * V * S * S * 3
    assert not found.unknown
    assert 4 * views <= found.activations <= 4 * views + 64  # and a few scalars
    assert found.objective == 0


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 4), ("sgd", 3), ("lars", 3)])
def test_the_model_is_weights_gradients_and_optimizer(
    loader: Loader, optimizer: str, copies: int
) -> None:
    method = joint()
    method.extra = nn.Linear(100, 100).requires_grad_(False)  # a running copy
    frozen = 4 * 10_100
    trained = sum(4 * p.numel() for p in method.parameters()) - frozen
    buffers = sum(b.nbytes for b in method.buffers())
    found = forecast(configured("--optimizer", optimizer), method, loader)
    assert found.model == copies * trained + frozen + buffers


def test_a_memory_that_is_yet_to_be_filled_is_counted(loader: Loader) -> None:
    def needed(keys: int) -> int:
        method = QKIteration(encoder=SmallResNet(width=8), embedding_size=64, keys=keys)
        found = forecast(configured(), method, loader)
        assert not found.unknown
        return found.total

    # Of both, the chunks that are looked at are as large: bfloat16 embeddings and int64 ids remain.
    assert needed(300_000) - needed(100_000) == pytest.approx(200_000 * (64 * 2 + 8), rel=0.02)


@pytest.mark.parametrize("batch_size", [16, 40])
def test_activations_are_what_autograd_saves_and_little_more(
    loader: Loader, batch_size: int
) -> None:
    method = joint()
    found = forecast(configured(), method, loader, batch_size_per_rank=batch_size)
    views = torch.randn(batch_size, V, S, S, 3).permute(1, 0, 4, 2, 3)
    not_counted = {t.data_ptr() for t in (*method.parameters(), *method.buffers(), views)}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        method((views,))
    total = sum(storage.nbytes() for storage in saved.values())
    assert total <= found.activations + found.objective <= 1.1 * total


def test_a_larger_batch_is_foretold_from_smaller_ones(loader: Loader) -> None:
    at = [forecast(configured(), joint(), loader, batch_size_per_rank=b) for b in (8, 16, 64)]
    slope = (at[1].activations - at[0].activations) / 8
    assert at[2].activations == pytest.approx(at[1].activations + 48 * slope, rel=0.1)


def test_the_objective_counts_every_rank_s_embeddings_and_no_more(loader: Loader) -> None:
    for batch_size in (16, 32):
        found = forecast(configured(), joint(AllScores()), loader, batch_size_per_rank=batch_size)
        scores = 4 * (V * batch_size) ** 2
        assert found.objective == pytest.approx(2 * scores, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_on_a_gpu_smooth_ap_counts_its_kernels_memory_and_no_scores(precision: Any) -> None:
    peaks = []
    for A in (8192, 16384):  # of a GPU that need not be there
        with FakeTensorMode(), torch.no_grad(), _Alive() as alive:
            z_VAD = torch.empty(4, A, 128, device="cuda")
            SmoothAP(precision=precision).value_and_gradient(z_VAD, 4, slice(0, A), grad=True)
        peaks.append(alive.peak)
    assert 4 * z_VAD.numel() < peaks[1] < 8 * 4 * z_VAD.numel() < 4 * (4 * A) ** 2
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.01)


@pytest.mark.parametrize("objective", [SmoothAP(), NTXent()])
def test_nothing_is_changed_by_looking(loader: Loader, objective: Objective) -> None:
    config, method = configured(), joint(objective)
    method.projector.network.append(nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    state = torch.get_rng_state()
    assert not forecast(config, method, loader).unknown
    assert torch.equal(torch.get_rng_state(), state)
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in method.parameters())
    assert not any(module._forward_hooks for module in method.modules())
    assert loader.step == 0


def test_mixed_precision_halves_most_of_it(loader: Loader) -> None:
    full, half = (
        forecast(configured("--mixed_precision", precision), joint(), loader).activations
        for precision in ("no", "bf16")
    )
    assert 0.45 * full < half < 0.7 * full


def test_what_depends_on_values_is_said_to_be_unknown(loader: Loader) -> None:
    found = forecast(configured(), joint(Mined()), loader)
    assert "a step's own is not known (DynamicOutputShape" in found.describe()
    assert found.total == found.loader + found.model > 0
    assert not any(module._forward_hooks for module in joint(Mined()).modules())


def test_the_header_has_one_line() -> None:
    budget = MemoryForecast(
        loader=round(0.9 * GIB),
        model=round(0.2 * GIB),
        activations=round(11.4 * GIB),
        objective=round(0.3 * GIB),
        capacity=round(139.8 * GIB),
    )
    assert budget.describe() == (
        "loader 0.9 + model 0.2 + activations 11.4 + objective 0.3 = 12.8 of 139.8 GiB"
    )


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_refusal_names_the_largest_batch_that_fits(loader: Loader, world_size: int) -> None:
    method, config = joint(), configured()

    def at(batch_size_per_rank: int) -> MemoryForecast:
        return forecast(config, method, loader, batch_size_per_rank=batch_size_per_rank)

    budget = replace(at(32), capacity=round(SPARE + at(21).total))
    with pytest.raises(ValueError) as refused:
        refuse(budget, at, batch_size=32 * world_size, world_size=world_size)
    message = str(refused.value)
    assert f"batch_size={32 * world_size} needs more memory" in message
    assert budget.describe() in message
    assert f"--batch_size {21 * world_size}." in message
    assert at(21).total <= budget.usable < at(22).total
    refuse(replace(at(21), capacity=budget.capacity), at, batch_size=21, world_size=1)
    with pytest.raises(ValueError, match=rf"--batch_size {20 * world_size}\."):
        refuse(budget, at, batch_size=32 * world_size, world_size=world_size, parts_of=4)
    assert "micro_batch_size" not in message
    with pytest.raises(ValueError, match=r"keep the batch, .*--micro_batch_size N\."):
        refuse(budget, at, batch_size=32, world_size=1, divisible=True)


@pytest.mark.parametrize("world_size", [1, 4])
def test_where_nothing_fits_the_views_are_to_blame(world_size: int) -> None:
    def at(batch_size_per_rank: int) -> MemoryForecast:
        return MemoryForecast(0, GIB, batch_size_per_rank * GIB, 0, capacity=GIB)

    with pytest.raises(ValueError, match=r"Not even \d images fit: fewer views \(--views.count\)"):
        refuse(at(64), at, batch_size=64 * world_size, world_size=world_size)


def test_a_twentieth_of_a_large_device_is_left_alone() -> None:
    assert MemoryForecast(0, 0, 0, 0, capacity=100 * GIB).usable == round(FULL * 100 * GIB)
    assert MemoryForecast(0, 0, 0, 0, capacity=GIB).usable == round(GIB - SPARE)
    assert MemoryForecast(0, 0, 0, 0, capacity=MIB).usable == 0


def test_the_loader_s_formula_at_one_size(loader: Loader) -> None:
    views, images = 16 * V * S * S * 3, 16 * 32 * 32 * 3  # square images: no side is longer
    assert loader_bytes(loader) == 5 * views + 2 * 4 * views + 4 * images
    assert loader_bytes(loader, 32) == 2 * loader_bytes(loader)


def test_on_a_gpu_batches_wait_for_all_steps_that_the_host_is_ahead(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, method = configured(), joint()
    views, images = 16 * V * S * S * 3, 16 * 32 * 32 * 3
    monkeypatch.setattr(loader, "device", torch.device("cuda", 0))  # which need not be there
    monkeypatch.setattr(memory_forecast, "free_bytes", lambda _: 0)
    monkeypatch.setattr(memory_forecast, "_follow", lambda *_: (0, 0))
    for log_every, compiled, dropped in ((3, True, 3), (8, True, 8), (100, True, 8), (3, False, 2)):
        config = replace(config, log_every=log_every, compile=compiled)
        found = forecast(config, method, loader).loader
        assert found == (5 + dropped) * views + 2 * 4 * views + 8 * views + 4 * images


Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


def test_control_groups_of_version_2_are_read_up_to_the_root(tmp_path: Path, write: Write) -> None:
    write("own", "0::/job/step\n")
    for folder, limit in (("job", "8000"), ("job/step", "max")):
        write(f"fs/{folder}/memory.max", f"{limit}\n")
        write(f"fs/{folder}/memory.current", "5000\n")
        write(f"fs/{folder}/memory.stat", "anon 1\nactive_file 1000\ninactive_file 500\n")
    assert cgroups_free(tmp_path / "fs", tmp_path / "own") == [4500]


def test_control_groups_of_version_1_and_a_container_s_own_root(
    tmp_path: Path, write: Write
) -> None:
    write("own", "5:cpu,cpuacct:/\n4:memory:/docker/123\n0::/\n")
    write("fs/memory/memory.limit_in_bytes", "9000\n")
    write("fs/memory/memory.usage_in_bytes", "2000\n")
    write(
        "fs/memory/memory.stat",
        "active_file 1\ninactive_file 1\ntotal_active_file 300\ntotal_inactive_file 700\n",
    )
    assert cgroups_free(tmp_path / "fs", tmp_path / "own") == [8000]


def test_a_batch_in_parts_needs_less_than_the_whole(loader: Loader) -> None:
    whole = forecast(configured("--batch_size", "16"), joint(), loader)
    parts = forecast(configured("--batch_size", "16", "--micro_batch_size", "4"), joint(), loader)
    assert not parts.unknown and not whole.unknown
    assert parts.activations < whole.activations / 2


def test_without_control_groups_there_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cgroups_free(tmp_path, tmp_path / "own") == []
    monkeypatch.setattr(free_memory, "cgroups_free", lambda: [])
    assert free_memory.free_bytes(torch.device("cpu")) > 0


def test_this_machine_has_a_capacity(loader: Loader) -> None:
    one, two = (
        forecast(configured(), joint(), loader, ranks_here=ranks).capacity for ranks in (1, 2)
    )
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < two < one <= total


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_gpu_s_peak_is_within_a_quarter(make_shard_set: MakeShardSet, precision: str) -> None:
    device, config = torch.device("cuda", 0), configured("--mixed_precision", precision)
    loader = Loader(make_shard_set(64), config.groups, batch_size_per_rank=64, device=device)
    method = joint(width=32).to(device)
    found = forecast(config, method, loader)
    views = torch.randn(64, V, S, S, 3, device=device).permute(1, 0, 4, 2, 3)
    begin = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.autocast("cuda", config.autocast(), enabled=config.autocast() is not None):
        loss = F.relu(method((views,)).loss)
    loss.backward()
    peak = torch.cuda.max_memory_allocated(device) - begin
    gradients = sum(p.nbytes for p in method.parameters())
    assert found.activations + found.objective + gradients == pytest.approx(peak, rel=0.25)
