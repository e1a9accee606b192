"""The learning rate against PyTorch's own schedulers."""

import pytest
import torch

from training.schedule import learning_rate


@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (5, 20), (20, 20)])
def test_it_is_pytorchs_linear_warmup_then_cosine(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedules: list[torch.optim.lr_scheduler.LRScheduler] = []
    if warmup:
        schedules.append(
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=max(1, warmup - 1))
        )
    schedules.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - warmup)))
    milestones = [warmup] if warmup else []
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones)
    for step in range(total):
        ours = learning_rate(step, peak=2.0, warmup_steps=warmup, total_steps=total)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_it_ends_at_zero_and_stays_there() -> None:
    for step in (10, 11, 500):
        assert learning_rate(step, peak=1.0, warmup_steps=2, total_steps=10) == pytest.approx(0)
