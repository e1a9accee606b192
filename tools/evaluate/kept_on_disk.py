"""Where protocols that train keep their state, and what they found: a folder for each trial.

    RUN/evaluations/fine_tuning-3f2a9c0d51e7/
        trial.json                     what it is of
        NAME.000004.rank-0.safetensors the newest save of a rank
        found.json                     written last: the figures; then the states are removed

A folder's name is a digest of all that the figures depend on, so another setting finds no state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.protocol import Evaluation
from shards import durable
from training.run import state_file

FACTS, FOUND, LOCK = "trial.json", "found.json", ".lock"
Agree = Callable[[int], int]
"""The smallest of a number over all ranks; it waits for all of them."""


class KeptOnDisk:
    """Implements `evaluation.protocol.Kept`.

    Args:
        parent: folder of all trials, which need not exist; None keeps nothing after this process.
        protocol: its name.
        facts: all that the figures depend on, as JSON has it.
        rank: this process.
        agree: how the ranks agree.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self,
        parent: Path | None,
        protocol: str,
        facts: Mapping[str, Any],
        *,
        rank: int = 0,
        agree: Agree = lambda number: number,
    ) -> None:
        text = json.dumps(facts, sort_keys=True, indent=1)
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="viewrank-") if parent is None else None
        )
        top = Path(self._temporary.name) if self._temporary else parent
        assert top is not None
        self._root = top / f"{protocol}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._rank, self._agree = rank, agree
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if rank == 0:
                own = f"{os.getpid()}.partial"  # another command may do so at once
                durable.replace(self._root / FACTS, [text.encode(), b"\n"], suffix=own)
        except OSError as error:  # such as of a run that others may only read
            error.strerror = (
                f"{error.strerror}. Protocols that train keep their state there; name a folder of "
                "your own with --keep DIR"
            )
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands out of the folder; rank 0 does it for all.

        Raises:
            ValueError: another command makes the same evaluation.
        """
        if self._temporary or self._rank > 0:
            yield
            return
        taken = (
            f"another command makes the same evaluation, in {self._root}. Wait for it to end: this "
            "one then shows what it found."
        )
        with durable.alone(self._root / LOCK, taken):
            yield

    @property
    def folder(self) -> Path:
        """A folder for files of this rank alone."""
        folder = self._root / f"rank-{self._rank}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def results(self) -> Path | None:
        """A folder for files that rank 0 hands out beside the figures; None if nothing lasts."""
        return None if self._temporary else self._root

    def load(self, name: str) -> Any:
        """Return the state of the newest save that all ranks completed; None if there is none."""
        newest = self._agree(max(self._saves(name), default=-1))
        if newest < 0:
            return None
        return state_file.loads(durable.read(self._path(name, newest)))

    def save(self, name: str, state: Any) -> None:
        """Save nested state; the one before stays until all ranks have saved theirs."""
        number = self._agree(max(self._saves(name), default=-1)) + 1
        durable.replace(self._path(name, number), state_file.pieces(state))
        self._agree(number)
        for each in self._saves(name):
            if each != number:
                self._path(name, each).unlink()

    def found(self) -> Evaluation | None:
        """Return what an earlier command found out; None if it did not end."""
        path = self._root / FOUND
        there = path.exists() if self._rank == 0 else True
        if not self._agree(int(there)):
            return None
        return Evaluation(**json.loads(durable.read(path)))

    def finish(self, found: Evaluation) -> None:
        """Write down what was found out, and remove the states."""
        if self._rank == 0:
            durable.replace_json(self._root / FOUND, asdict(found))
        self._agree(0)
        for path in self._root.glob(f"*.rank-{self._rank}.safetensors"):
            path.unlink()
        shutil.rmtree(self._root / f"rank-{self._rank}", ignore_errors=True)

    def _path(self, name: str, number: int) -> Path:
        return self._root / f"{name}.{number:06d}.rank-{self._rank}.safetensors"

    def _saves(self, name: str) -> list[int]:
        pattern = rf"{re.escape(name)}\.(\d{{6,}})\.rank-{self._rank}\.safetensors"
        found = (re.fullmatch(pattern, path.name) for path in self._root.iterdir())
        return [int(match[1]) for match in found if match]
