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

    named = without_absolute_paths(dict(record))
    if out:
        durable.replace_json(out, named)  # a kill loses none of what took hours
    else:
        print(json.dumps(named, indent=1))
