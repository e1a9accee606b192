"""The GPU's own decoder of JPEGs: whether it is at work, which DALI does not say."""

from __future__ import annotations

from contextlib import suppress


def decoding_engine_use() -> float | None:
    """Return the share of the last moments in which it decoded; none where it cannot be asked."""
    with suppress(Exception):  # no NVML, no such engine, or errors of NVML's own
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        return pynvml.nvmlDeviceGetJpgUtilization(device)[0] / 100
    return None
