"""Repeat a step whose gradient was not finite, and say where the first bad number appears.

    python -m tools.replay runs/mine/dumps/00000123-rank-0.safetensors
    python -m tools.replay runs/mine/dumps/00000123-rank-0.safetensors --mixed_precision no

RUN/dumps holds such steps, of a run that has ended because of several of them in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from model.method import QKIteration
from training.command import run_command
from training.run import dump, run_folder
from training.settings import parse

_IDS = 8


def main() -> None:
    """Repeat one dumped step."""
    arguments = ArgumentParser(
        prog="python -m tools.replay",
        description="Repeat a step that a run has dumped because its gradient was not finite.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    arguments.add_argument("dump", type=Path, help="One of RUN/dumps/*.safetensors.")
    arguments.add_argument("--device", type=Literal["auto", "cpu", "gpu"], default="auto")
    arguments.add_argument(
        "--mixed_precision",
        type=Literal["auto", "no", "bf16", "fp16"] | None,
        help="Another precision than the run's: is it the cause?",
    )
    options = arguments.parse_args()
    path: Path = options.dump
    if not path.is_file():
        raise ValueError(f"{path} is no file; give one of RUN/{dump.FOLDER}/*.safetensors.")
    found, run = dump.read(path), path.resolve().parent.parent
    words = [
        "--config",
        str(run / run_folder.CONFIG),
        "--device",
        options.device,
        "--trackers",
        "[]",
    ]
    if options.mixed_precision is not None:
        words += ["--mixed_precision", options.mixed_precision]
    config = parse(words).config
    if isinstance(config.method, QKIteration):
        raise ValueError(f"{path}: QKIteration compares with a memory that dumps do not hold.")
    device = torch.device("cuda" if config.on_gpu else "cpu")

    method: Any = config.method
    try:
        method.load_state_dict(found.method)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} are not those of {run / run_folder.CONFIG}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    method = method.to(device).to(memory_format=torch.channels_last).train()
    views = tuple(group.to(device) for group in found.views)
    bad_modules: list[str] = []
    for name, module in method.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(_noting(name, bad_modules))
    with torch.autocast(device.type, config.autocast(), enabled=config.autocast() is not None):
        loss = method(views, found.id_B.to(device)).loss
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    bad_gradients = [name for name, gradient in gradients.items() if not _finite(gradient)]
    bad_weights = [name for name, value in found.method.items() if not _finite(value)]

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan")
    table.add_column()
    whole = f"rank {found.rank} of {found.world_size}"
    table.add_row("step", f"{found.step:,}, {whole}, precision {config.precision()} on {device}")
    for position, group in enumerate(views):
        shape = " × ".join(map(str, group.shape))
        low, high = group.float().aminmax()
        note = "" if _finite(group) else ", NOT FINITE"
        table.add_row(f"views {position}", f"{shape}, {low:.3g} to {high:.3g}{note}")
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


def _noting(name: str, bad: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not _finite(output) and name not in bad:
            bad.append(name)

    return hook


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _count(bad: list[str], total: int) -> str:
    """Return how many of them hold a bad number, and which is the first."""
    return f"{len(bad)} of {total} not finite, first {bad[0]}" if bad else "all finite"


if __name__ == "__main__":
    run_command(main)
