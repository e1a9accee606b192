"""The JSON of a measurement: into a file, or shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards import durable


def write(record: Mapping[str, Any], out: Path | None) -> None:
    """Write what was measured.

    Args:
        record: with its surroundings and its command.
        out: the file; None prints it.
    """
    from training.surroundings import without_absolute_paths  # here: it imports torch

    text = json.dumps(without_absolute_paths(dict(record)), indent=1) + "\n"
    if out:
        durable.replace(out, [text.encode()])  # a kill loses none of what took hours
    else:
        print(text)
