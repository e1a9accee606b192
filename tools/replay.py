"""Repeat a step whose gradient was not finite, and say where the first bad number appears.

    python -m tools.replay runs/mine/dumps/00000123-rank-0.safetensors
    python -m tools.replay runs/mine/dumps/00000123-rank-0.safetensors --mixed_precision no

A run that ends because of several such steps in a row leaves them in RUN/dumps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from training.command_line import run_function

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training.config import Config
    from training.run.dump import Dump

_IDS = 8  # sample ids that are shown


def main(
    dump: Path,
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = None,
) -> None:
    """Repeat a step that a run has dumped because its gradient was not finite.

    Args:
        dump: one of RUN/dumps/*.safetensors.
        device: where to compute; auto is the GPU if there is one.
        mixed_precision: another precision than the run's, to see whether it is the cause.
    """
    # Here and not above, so that --help takes no seconds.
    import torch

    from model.method import QKIteration
    from training.run import checkpoint, run_folder
    from training.run import dump as dumps
    from training.settings import parse

    if not dump.is_file():
        raise ValueError(f"{dump} is no file; give one of RUN/{dumps.FOLDER}/*.safetensors.")
    found, recipe = dumps.read(dump), dump.resolve().parent.parent / run_folder.CONFIG
    run_folder.read_config(recipe.parent)  # refuses a folder that is no run
    words = ["--config", str(recipe), "--device", device, "--trackers", "[]"]
    if mixed_precision is not None:
        words += ["--mixed_precision", mixed_precision]
    config = parse(words).config
    if isinstance(config.method, QKIteration):
        raise ValueError(f"{dump}: QKIteration compares with a memory that dumps do not hold.")
    where = torch.device("cuda" if config.on_gpu else "cpu")

    method: Any = config.method
    with checkpoint.fits(dump, f"{recipe}"):
        method.load_state_dict(found.method)
        _refuse_other_views(config, found)
    method = method.to(where).to(memory_format=torch.channels_last).train()
    views = tuple(group.to(where) for group in found.views)
    bad_modules: list[str] = []
    for name, module in method.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(_noting(name, bad_modules))
    autocast = torch.autocast(where.type, config.autocast(), enabled=config.autocast() is not None)
    with checkpoint.fits(dump, f"a step of {recipe}"):
        with autocast:
            loss = method(views, found.id_B.to(where)).loss
        loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    bad_gradients = [name for name, gradient in gradients.items() if not _finite(gradient)]
    bad_weights = [name for name, value in found.method.items() if not _finite(value)]

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan")
    table.add_column()
    rank = f"rank {found.rank} of {found.world_size}"
    table.add_row("step", f"{found.step:,}, {rank}, precision {config.precision()} on {where}")
    for position, group in enumerate(views):
        table.add_row(f"views {position}", _range(group))
    ids = ", ".join(str(int(i)) for i in found.id_B[:_IDS])
    table.add_row("sample ids", ids + (", …" if len(found.id_B) > _IDS else ""))
    table.add_row("weights", _count(bad_weights, len(found.method)))
    table.add_row("outputs", _count(bad_modules, sum(1 for _ in method.modules())))
    table.add_row("gradients", _count(bad_gradients, len(gradients)))
    table.add_row("loss", f"{loss.item():.6g}")
    console = Console(highlight=False)
    console.print(table)
    if bad_gradients or not _finite(loss.detach()):
        console.print("reproduced: this step's gradient is not finite")
    else:
        why = "; the other ranks' views take part in its loss" if found.world_size > 1 else ""
        console.print(f"not reproduced: loss and gradient are finite here{why}")


def _refuse_other_views(config: Config, found: Dump) -> None:
    """Refuse views that are not of the configuration's number and size."""
    wanted = [(group.count, 3, group.size, group.size) for group in config.groups]
    there = [(len(views), *views.shape[2:]) for views in found.views]
    if there != wanted:
        raise ValueError(f"it has views [V, C, H, W] of {there}; expected {wanted}")


def _noting(name: str, bad: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    """Return a forward hook that adds a module's name if its output is not finite."""
    from torch import Tensor

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not _finite(output) and name not in bad:
            bad.append(name)

    return hook


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _range(group: Tensor) -> str:
    shape, (low, high) = " × ".join(map(str, group.shape)), group.float().aminmax()
    return f"{shape}, {low:.3g} to {high:.3g}" + ("" if _finite(group) else ", NOT FINITE")


def _count(bad: list[str], total: int) -> str:
    """Return how many of them hold a bad number, and which is the first."""
    return f"{len(bad)} of {total} not finite, first {bad[0]}" if bad else "all finite"


if __name__ == "__main__":
    run_function(main)
