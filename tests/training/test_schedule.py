"""The learning rate against PyTorch's own schedulers; steps and epochs agree after a reshape."""

import pytest
import torch

from training.schedule import EpochStart, learning_rate, reshaped


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


def test_a_run_that_never_changes_counts_plainly() -> None:
    since = EpochStart()
    assert since.total_steps(steps=None, epochs=2.5, steps_per_epoch=10) == 25
    assert since.total_steps(steps=7, epochs=None, steps_per_epoch=10) == 7
    assert since.epoch_at(15, 10) == 1.5
    assert since.seed(3) == 3


@pytest.mark.parametrize(("within", "epoch"), [(0, 4), (3, 4), (5, 5)])
def test_the_epoch_that_is_not_done_begins_again(within: int, epoch: int) -> None:
    loader = {"epoch": 4, "step": within, "samples": 42, "world_size": 2, "batch_size_per_rank": 4}
    since = reshaped(20 + within, loader)
    assert since == EpochStart(step=20 + within, epoch=epoch)
    # From there to the end, every epoch that is left has all its steps.
    total = since.total_steps(steps=None, epochs=7, steps_per_epoch=3)
    assert total == 20 + within + 3 * (7 - epoch)
    assert since.epoch_at(total, 3) == 7
    assert since.seed(3) != 3
