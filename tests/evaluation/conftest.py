"""One thread: these tensors are small, and on a busy machine threads only wait for each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")  # of each file: a command that one calls sets its own
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
