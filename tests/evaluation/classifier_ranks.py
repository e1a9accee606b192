"""What each of two processes does for test_classifier, and what it shares with one alone."""

import torch
import torch.distributed as dist
from torch import Tensor

from evaluation.classifier import Classifier, ClassifierStep, Rates
from model.encoder import SmallResNet

WORLD_SIZE = 2


def encoder() -> SmallResNet:
    torch.manual_seed(5)
    return SmallResNet(width=4)


def batches(steps: int, *, B: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(6)
    found = []
    for _ in range(steps):
        image_BCHW = torch.randn(B, 3, 16, 16, generator=generator)
        image_BCHW = image_BCHW + torch.arange(float(B))[:, None, None, None]  # ranks differ
        class_B = torch.randint(0, 3, (B,), generator=generator)
        found.append((image_BCHW.to(memory_format=torch.channels_last), class_B))
    return found


def trained(
    rates: Rates,
    *,
    trains_encoder: bool,
    batch_norm: bool = False,
    rank: int | None = None,
) -> dict[str, Tensor]:
    """Return the weights and statistics after all steps, of a rank's part or of whole batches."""
    classifier = Classifier(
        encoder(),
        classes=3,
        heads=len(rates.heads),
        trains_encoder=trains_encoder,
        batch_norm=batch_norm,
    )
    step = ClassifierStep(classifier, rates, world_size=1 if rank is None else WORLD_SIZE)
    for number, (image_BCHW, class_B) in enumerate(batches(rates.steps)):
        own = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        step(image_BCHW[own], class_B[own], step=number)
    return {name: value.clone() for name, value in classifier.state_dict().items()}


WHOLE = Rates(heads=(0.3,), encoder=0.1, steps=4, weight_decay=0.01)
HEADS = Rates(heads=(0.1, 1.0), steps=4)


def work(rank: int, folder: str) -> None:
    """Run one rank and leave what it found in `folder`."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE)
    found = {
        "whole": trained(WHOLE, trains_encoder=True, rank=rank),
        "heads": trained(HEADS, trains_encoder=False, batch_norm=True, rank=rank),
    }
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
