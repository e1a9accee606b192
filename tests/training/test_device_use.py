"""What a device says of itself has the names that its readers ask for."""

import pytest
import torch

from training.device_use import utilization


def test_a_gpu_s_use_is_a_share_and_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 40)
    assert utilization(torch.device("cuda")) == {"gpu_utilization": 0.4}
    assert utilization(torch.device("cpu")) == {}
