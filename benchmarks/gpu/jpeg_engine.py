"""The GPU's own decoder of JPEGs: whether it is at work, which DALI does not say."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path


def decoding_engine_use() -> float | None:
    """Return the share of the last moments in which it decoded; none where it cannot be asked."""
    with suppress(Exception):  # no NVML, no such engine, or errors of NVML's own
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        return pynvml.nvmlDeviceGetJpgUtilization(device)[0] / 100
    return None


def is_idle(out: Path) -> bool:
    """Return whether `host_side` asked it for images and found that it decoded none.

    What the engine does not take the GPU's cores decode, without a word.

    Args:
        out: folder of the results.
    """
    path = out / "host_side.json"
    rows = json.loads(path.read_text())["rows"].values() if path.exists() else ()
    uses = [row["decoding_engine_use"] for row in rows if "decoding_engine_use" in row]
    known = [use for use in uses if use is not None]
    return bool(known) and max(known) == 0
