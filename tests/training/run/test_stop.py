"""Signals: the first is obeyed after a step; a second Ctrl-C, and what comes late, at once."""

import os
import signal
from collections.abc import Iterator

import pytest

from training.run.stop import SIGNALS, TIME, Stop


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_the_first_signal_is_asked_for_and_goes_before_the_time() -> None:
    stop = Stop()
    assert stop.request(out_of_time=False) == 0
    assert stop.request(out_of_time=True) == TIME
    send(signal.SIGUSR1)
    send(signal.SIGTERM)
    assert stop.request(out_of_time=True) == signal.SIGUSR1


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_ends_at_once_whatever_came_before(first: signal.Signals) -> None:
    stop = Stop()
    send(first)
    if first != signal.SIGINT:
        send(signal.SIGINT)
    assert stop.request(out_of_time=False) == first
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_after_the_last_checkpoint_a_signal_ends_the_process(number: signal.Signals) -> None:
    Stop().end_at_once()
    with pytest.raises(SystemExit) as early:
        send(number)
    late = Stop()
    send(number)  # after the last step asked
    with pytest.raises(SystemExit) as noted:
        late.end_at_once()
    assert early.value.code == noted.value.code == 128 + number
