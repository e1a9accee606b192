"""The device memory that a training step needs, computed before the first one.

    loader       DALI's buffers and the finished views, by a formula: see `loader_bytes`
    model        weights, gradients, optimizer, running copies: counted
    activations  the most that forward and backward hold  ┐ followed through a step on fake
    objective    the part of it that the objective adds   ┘ tensors of the real shapes

Fake tensors have shapes but no data. A step of any batch is followed in a few tenths of a second; a
real one of 2 or 3 images takes 15 to 40 times as long on the CPU. Nothing is extrapolated. Weights,
batch-norm statistics and random numbers stay as they are. The forecast sees what each operator
returns, until it is freed. It does not see the scratch memory of a kernel, so part of the memory
stays unplanned: `MemoryForecast.usable`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.method import JointEmbedding, Method
from model.method.method import large
from model.objective import Objective
from pipeline.loader import Loader
from training.config import Config
from training.free_memory import free_bytes
from training.processes import Processes

GIB = 2**30
# Not planned with: kernels' scratch, libraries' buffers, gaps between tensors. On the CPU training
# took 0.2 to 0.4 GiB more than forecast for any batch (benchmarks/results/memory-budget-cpu.json).
FULL, SPARE = 0.95, 0.4 * GIB
STATES = {"adamw": 2, "sgd": 1, "lars": 1}  # what an optimizer keeps, in sizes of the weights
# Steps that the host is ahead of a GPU at most, about: it waits only to record one, and a step that
# is compiled or captured costs it hardly anything.
AHEAD, AHEAD_EAGER = 8, 2
LONGER = 1.5  # an image's longer side by its shorter one, where only that is known


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that one rank needs on its device, and those that it may have."""

    loader: int
    model: int
    activations: int
    objective: int
    capacity: int
    unknown: str = ""
    """Why activations and objective are not known, if they are not; then they are 0."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.loader + self.model + self.activations + self.objective

    @property
    def usable(self) -> int:
        """The part of the capacity that may be planned with."""
        return max(0, round(min(FULL * self.capacity, self.capacity - SPARE)))

    def describe(self) -> str:
        """Return one line for the header."""
        names = ("loader", "model", "activations", "objective")
        parts = " + ".join(
            f"{name} {_gib(getattr(self, name))}" for name in names[: 2 if self.unknown else 4]
        )
        line = f"{parts} = {_gib(self.total)} of {_gib(self.capacity)} GiB"
        return line + (f"; a step's own is not known ({self.unknown})" if self.unknown else "")


def check(
    config: Config, method: Method, loader: Loader, processes: Processes
) -> MemoryForecast | None:
    """Return what this rank will need; None if the configuration does not ask for it.

    Args:
        config: of the run.
        method: on its device, not wrapped.
        loader: whose batches are trained on.
        processes: of the run.

    Raises:
        ValueError: the batch will not fit; with the largest that does.
    """
    if not config.check_memory:
        return None
    at_size = partial(forecast, config, method, loader, ranks_here=processes.on_this_machine)
    found = at_size()
    refuse(
        found,
        lambda size: at_size(batch_size_per_rank=size),
        batch_size=config.batch_size,
        world_size=processes.world_size,
        parts_of=config.micro_batch_size_per_rank(processes.world_size) or 1,
        divisible=isinstance(method, JointEmbedding) and config.micro_batch_size is None,
    )
    return found


def forecast(
    config: Config,
    method: Method,
    loader: Loader,
    *,
    ranks_here: int = 1,
    batch_size_per_rank: int | None = None,
) -> MemoryForecast:
    """Return what this rank will need, and has.

    Args:
        config: of the run.
        method: on its device, not wrapped. If its encoder is compiled, the uncompiled one is
            followed: an upper bound, since the compiler only saves intermediates.
        loader: whose batches are trained on.
        ranks_here: processes on this machine; on the CPU they share its memory.
        batch_size_per_rank: another than the loader's.
    """
    B = batch_size_per_rank or loader.batch_size_per_rank
    trained = _bytes(p for p in method.parameters() if p.requires_grad)
    held = _bytes(method.parameters()) + _bytes(method.buffers())
    copies = 1 + STATES[config.optimizer]
    copies += loader.world_size > 1  # what distributed data parallel averages gradients in
    unknown, activations, objective = "", 0, 0
    try:
        with config.uncompiled():
            part = min(B, config.micro_batch_size_per_rank(loader.world_size) or B)
            step, objective = _follow(method, loader, B, part, config.autocast())
        # Gradients are in the step, but counted with the model.
        activations = max(0, step - trained - objective)
    except Exception as error:  # a method of any kind, such as one whose shapes depend on values
        unknown = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    ahead = AHEAD if config.compile or config.capture_step else AHEAD_EAGER
    sharing = 1 if loader.device.type == "cuda" else ranks_here  # processes of this memory
    return MemoryForecast(
        loader=loader_bytes(loader, B, dropped=min(config.log_every, ahead)),
        model=held + copies * trained,
        activations=activations,
        objective=objective,
        capacity=held + free_bytes(loader.device) // sharing,
        unknown=unknown,
    )


def refuse(
    found: MemoryForecast,
    at: Callable[[int], MemoryForecast],
    *,
    batch_size: int,
    world_size: int,
    parts_of: int = 1,
    divisible: bool = False,
) -> None:
    """Refuse a batch that will not fit.

    Args:
        found: the forecast of this batch.
        at: the forecast of another number of samples on each rank.
        batch_size: samples a step over all ranks.
        world_size: number of ranks.
        parts_of: samples that a rank embeds at once, by which a batch has to be divisible.
        divisible: whether the method could embed it in parts.

    Raises:
        ValueError: the batch does not fit; the message has the largest that does.
    """
    if found.total <= found.usable:
        return
    smallest = 1 if world_size > 1 else 2  # samples are compared with others
    fitting, too_large = smallest - 1, batch_size // world_size
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if at(middle).total <= found.usable:  # of the first forecast: memory may be taken meanwhile
            fitting = middle
        else:
            too_large = middle
    if fitting >= parts_of:
        fitting -= fitting % parts_of
    if fitting >= smallest:
        remedy = f"The largest that fits: --batch_size {fitting * world_size}."
    else:
        remedy = (
            f"Not even {smallest * world_size} images fit: fewer views (--views.count), smaller "
            "ones (--views.size) or a smaller encoder may."
        )
    if divisible:
        remedy += " Or keep the batch, and embed it in parts: --micro_batch_size N."
    ranks = f" on each of {world_size} ranks" if world_size > 1 else ""
    raise ValueError(
        f"batch_size={batch_size} needs more memory{ranks} than there is: {found.describe()}, "
        f"of which {_gib(found.usable)} can be planned with. {remedy} --no_check_memory tries it."
    )


def loader_bytes(
    loader: Loader, batch_size_per_rank: int | None = None, *, dropped: int = AHEAD
) -> int:
    """Return the bytes of a loader's buffers on its device.

    With u the uint8 views of a batch (B · V · S · S · 3, summed over groups), d its decoded images
    and f its finished views:

        u · (prefetch + 1 in hand + 2 in work) + f · (1 trained on + 1 made) + d · 4

    and 4 u for supersampling's larger views. On a GPU, a u more for each batch that was dropped and
    waits for the device, 4 u each for the float32 scratch of the blur and of the views' means, and
    for resized crops one float32 image a sample that is small in one direction only. With
    `Tuning.finish="dali"` the finished views take the place of all u but those in work. A decode
    cache is all of the set, at the largest image's size: DALI takes that at once.

    DALI has a dropped batch back when the GPU has done all that was queued by then. A step that is
    compiled or recorded is queued faster than it is done, and the host waits for none before it
    records one.

    d is B images, with pairs 2 B, of the median shorter side by up to 1.5 times that. The 2 in work
    and the 4 d were found on the CPU (benchmarks/results/memory-loader-cpu.json), where DALI
    decodes ahead of the crops. The shuffle buffer is the page cache's and not counted, nor is the
    host's memory on a GPU.

    Args:
        loader: whose batches are trained on.
        batch_size_per_rank: another than the loader's.
        dropped: batches that wait for a GPU.
    """
    B = batch_size_per_rank or loader.batch_size_per_rank
    tuning, gpu = loader.tuning, loader.device.type == "cuda"
    statistics = loader.shard_set.manifest.statistics
    assert tuning.prefetch, "a filled Tuning"
    shorter = statistics.median_shorter_side
    longer = min(LONGER * shorter, max(statistics.max_width, statistics.max_height))
    images = 2 if loader.shard_set.manifest.partners else 1  # a pair is decoded whole
    total = images * 4 * B * 3 * shorter * longer
    for group in loader.groups:
        values = B * group.count * group.size**2 * 3
        waiting = values * (tuning.prefetch + 1 + (dropped if gpu else 0))
        if tuning.finish == "fused":
            total += waiting + 2 * values * loader.dtype.itemsize
        else:
            total += waiting * loader.dtype.itemsize
        total += 2 * values
        resampling, _ = group.resampling_for(loader.shard_set, loader.device)
        if resampling == "supersample":
            total += 4 * values
        if gpu:
            total += 8 * values
            if resampling == "resize":
                total += 12 * B * shorter * group.size
    if gpu and tuning.decode == "cache" and not loader.shard_set.manifest.raw:
        largest = statistics.max_width * statistics.max_height * 3
        total += images * len(loader.shard_set) * largest
    return round(total)


def _follow(
    method: Method, loader: Loader, B: int, part: int, autocast: torch.dtype | None
) -> tuple[int, int]:
    """Return the bytes of a step at worst, gradients included, and those of its objective.

    With `part` below B the step is taken in parts, as `training.gradient_cache` does.
    Collectives need no other rank: PyTorch has fake ones for fake tensors.
    """
    fake, alive = FakeTensorMode(allow_non_fake_inputs=True), _Alive()
    real = chain(method.named_parameters(), method.named_buffers())
    state: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in real}
    with fake:
        views = tuple(
            torch.empty(
                (part, group.count, group.size, group.size, 3),
                dtype=loader.dtype,
                device=loader.device,
            ).permute(1, 0, 4, 2, 3)
            for group in loader.groups
        )
        trained = [tensor for tensor in state.values() if tensor.requires_grad]
        alive.ignore((*state.values(), *views))
        precision = torch.autocast(loader.device.type, autocast, enabled=autocast is not None)
        with alive, alive.inside(method), torch.enable_grad():
            inputs: tuple[Any, ...] = (views,)
            if part < B:
                inputs = (views, None, _cached_gradient(method, state, views, B, precision))
            with precision:
                output = functional_call(method, state, inputs)
            gradients = torch.autograd.grad(output.loss, trained, allow_unused=True)
            del gradients
    return alive.peak, alive.objective


def _cached_gradient(
    method: Method, state: dict[str, Tensor], views: tuple[Tensor, ...], B: int, precision: Any
) -> Tensor:
    """Follow the first passage of gradient caching; return dL/dz of one part."""
    assert isinstance(method, JointEmbedding)
    with torch.no_grad(), precision:
        z_VPD = functional_call(method, state, (views,)).z_VAD
    z_VBD = z_VPD.new_empty(len(z_VPD), B, z_VPD.shape[-1]).requires_grad_()
    loss = method.compare(z_VBD, large_views=sum(map(len, large(views)))).loss
    return torch.autograd.grad(loss, z_VBD)[0][:, : views[0].shape[1]]


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.objective = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def ignore(self, tensors: tuple[Tensor, ...]) -> None:
        """Leave these out, and what shares their memory; they must live as long as this."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    @contextmanager
    def inside(self, method: nn.Module) -> Iterator[None]:
        """Record the bytes that the method's objectives add while they run."""
        begin, outside = 0, 0

        def enter(*_: Any) -> None:
            nonlocal begin, outside
            begin, outside, self.peak = self.bytes, self.peak, self.bytes

        def leave(*_: Any) -> None:
            self.objective = max(self.objective, self.peak - begin)
            self.peak = max(self.peak, outside)

        handles = []
        for module in method.modules():
            if isinstance(module, Objective):
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # its address; PyTorch's own weak references use it
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, partial(self._forget, key, storage.nbytes())).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2g}"


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
