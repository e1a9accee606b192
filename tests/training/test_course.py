"""Steps and epochs agree, whatever the batches were before."""

import pytest

from training.course import Course, reshaped


def test_a_run_that_never_changes_counts_plainly() -> None:
    course = Course()
    assert course.total_steps(steps=None, epochs=2.5, steps_per_epoch=10) == 25
    assert course.total_steps(steps=7, epochs=None, steps_per_epoch=10) == 7
    assert course.epoch_at(15, 10) == 1.5
    assert course.seed(3) == 3


@pytest.mark.parametrize(("within", "epoch"), [(0, 4), (3, 4), (5, 5)])
def test_the_epoch_that_is_not_done_begins_anew(within: int, epoch: int) -> None:
    loader = {"epoch": 4, "step": within, "samples": 42, "world_size": 2, "batch_size_per_rank": 4}
    course = reshaped(20 + within, loader)
    assert course == Course(step=20 + within, epoch=epoch)
    # From there to the end, every epoch that is left has all its steps.
    total = course.total_steps(steps=None, epochs=7, steps_per_epoch=3)
    assert total == 20 + within + 3 * (7 - epoch)
    assert course.epoch_at(total, 3) == 7
    assert course.seed(3) != 3
