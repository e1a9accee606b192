"""What each of two processes does for test_gather, and the inputs that it shares with the test."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from methods import MAKE, batch, made
from torch import Tensor, nn

from model.gather import gather, gather_equal_rows, gather_rows, own_samples
from model.method import JointEmbedding, Method, SwAV
from model.objective import Objective
from model.sync_batch_norm import synchronise
from tests.host_waits import HostWaits
from training.gradient_cache import backward_in_parts

WORLD_SIZE = 2
ROWS = {0: 3, 1: 5}  # of each rank, for gather_rows


def views_VAC() -> Tensor:
    """Three views of eight samples, different in every row."""
    return torch.randn(3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def encoder() -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(6, 4, dtype=torch.float64)


def rows_of(rank: int, dtype: torch.dtype) -> Tensor:
    return (10 * rank + torch.arange(2 * ROWS[rank]).unflatten(0, (-1, 2))).to(dtype)


def own_queries(z_VBD: Tensor, z_VAD: Tensor) -> Tensor:
    """Return a loss of some queries in a gallery; the mean over queries is a mean over ranks."""
    return (z_VBD.flatten(0, 1) @ z_VAD.flatten(0, 1).T).logsumexp(-1).mean()


def gather_without_gradient(z_VBD: Tensor) -> Tensor:
    """The common idiom: gather detached, put the own part back. Its gradient is 1/world size."""
    parts = [torch.empty_like(z_VBD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z_VBD.detach().contiguous())
    parts[dist.get_rank()] = z_VBD
    return torch.cat(parts, dim=1)


def prepared(name: str) -> Method:
    """Return a method whose queues are full, with batch norms that do not couple samples."""
    method = made(name).eval()
    if isinstance(method, SwAV):
        method.steps.fill_(5)
        method.queue_TLD.copy_(F.normalize(torch.ones(2, 8, 5).cumsum(1).cumsum(2).sin(), dim=-1))
    return method


def method_step(
    name: str, rank: int | None, *, batch_norm: bool = False
) -> tuple[float, list[Tensor], dict[str, Tensor]]:
    """Return loss, gradients and state after a step of one rank's part, or of the whole batch.

    With `batch_norm` it trains, over the statistics of the whole batch.
    """
    method, views = prepared(name), batch(0)
    if batch_norm:
        method.train()
        if rank is not None:
            synchronise(method)
    if rank is not None:
        views = tuple(group.chunk(WORLD_SIZE, dim=1)[rank] for group in views)
    output = method(views)
    output.loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    loss = output.loss.detach()
    if rank is not None:
        for tensor in (loss, *gradients):
            dist.all_reduce(tensor)
            tensor /= WORLD_SIZE
    method.after_step(0.5)
    return loss.item(), gradients, method.state_dict()


def norms() -> nn.Module:
    """Return a network with batch norms of images and of rows."""
    torch.manual_seed(6)
    network: Any = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(80, 7)).append(nn.BatchNorm1d(7, eps=1e-3, momentum=0.3))
    network.append(nn.Linear(7, 4))
    network.append(nn.BatchNorm1d(4, affine=False))
    for layer in network.children():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return network.double()


def compiled(network: Any) -> Any:
    synchronise(network)
    network.compile(backend="aot_eager")
    return network


def norm_steps(
    rank: int | None, network: nn.Module
) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
    """Return outputs and gradients of the inputs of a rank, the gradients of weights, the state."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    output = gradient = torch.empty(0)
    for _ in range(2):  # running statistics move twice
        images = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=generator)
        images = images.add_(torch.arange(8.0)[:, None, None, None])  # ranks have other means
        own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        part = images[own].contiguous(memory_format=torch.channels_last).requires_grad_()
        output = network(part)
        (output.square() * weight[own]).sum(1).mean().backward()
        assert part.grad is not None
        gradient = part.grad
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if rank is not None:
        gradient = gradient / WORLD_SIZE  # a mean over fewer samples
        for each in gradients:
            dist.all_reduce(each)
            each /= WORLD_SIZE
    return output.detach(), gradient, gradients, network.state_dict()


class Synchronised:
    """As much of `accelerate.Accelerator` as gradient caching asks for."""

    def autocast(self) -> Any:
        return nullcontext()

    def no_sync(self, model: Any) -> Any:
        return model.no_sync()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def cached_step(rank: int) -> tuple[float, list[Tensor]]:
    """Return loss and gradients of gradient caching, one sample at a time, under PyTorch's DDP."""
    method = prepared("S2R2")
    assert isinstance(method, JointEmbedding)
    views = tuple(group.chunk(WORLD_SIZE, dim=1)[rank] for group in batch(0))
    model = nn.parallel.DistributedDataParallel(method)
    output = backward_in_parts(method, model, Synchronised(), views, samples=1)
    loss = output.loss.detach()
    dist.all_reduce(loss)
    return loss.item() / WORLD_SIZE, [p.grad for p in method.parameters() if p.grad is not None]


def work(rank: int, folder: str, objectives: list[type[Objective]]) -> None:
    """Run one rank and leave what it found in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE
    )
    x_VBC = views_VAC().chunk(WORLD_SIZE, dim=1)[rank]
    found: dict[str, Any] = {}

    def step(name: str, loss_of: Any) -> None:
        model = encoder()
        loss = loss_of(model(x_VBC))
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        for gradient in gradients:  # averaged, as distributed data parallel does
            assert gradient is not None
            dist.all_reduce(gradient)
            gradient /= WORLD_SIZE
        found[name] = loss.item(), *gradients

    for Each in objectives:
        objective = Each()
        step(Each.__name__, lambda z_VBD, of=objective: of(gather(z_VBD)))
        idiom = f"{Each.__name__}, idiom"
        step(
            f"{Each.__name__}, own",
            lambda z_VBD, of=objective: of(
                gather(z_VBD), gallery_views=2, samples=own_samples(z_VBD.shape[1])
            ),
        )
        step(idiom, lambda z_VBD, of=objective: of(gather_without_gradient(z_VBD)))
    for name in MAKE:
        found[f"method {name}"] = method_step(name, rank)
        found[f"method {name}, batch norm"] = method_step(name, rank, batch_norm=True)
    found["batch norm"] = norm_steps(rank, synchronise(norms()))
    network = synchronise(norms())
    with HostWaits() as waits:
        norm_steps(rank, network)
    found["host waits"] = waits.operators, waits.found
    found["compiled batch norm"] = norm_steps(rank, compiled(norms()))
    found["cached"] = cached_step(rank)
    step("own queries", lambda z_VBD: own_queries(z_VBD, gather(z_VBD)))

    z_VBD = torch.full((2, 3, 4), 1.0 + rank, dtype=torch.bfloat16).requires_grad_()
    z_VAD = gather(z_VBD)
    (z_VAD * (1 + 2**-10 * rank)).sum().backward()
    found["half precision"] = z_VAD.detach(), z_VBD.grad

    for dtype in (torch.float32, torch.int64, torch.bool):
        found[f"rows {dtype}"] = gather_rows(rows_of(rank, dtype))
    found["equal rows"] = gather_equal_rows(10 * rank + torch.arange(4))
    found["labels"] = gather_rows(rows_of(rank, torch.int64)[:, 0])
    found["none on rank 0"] = gather_rows(rows_of(rank, torch.float32)[: 0 if rank == 0 else None])
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
