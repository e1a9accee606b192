"""A run that is looked at again and again: what takes long is done when there is something new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from evaluation.left_out import leaving_out
from tools.report import run_facts
from tools.report.configuration import changes
from tools.report.insight import Insight, before_training, insight, training_views
from tools.report.page import RunPart
from training import exported
from training.run import checkpoint
from training.trained import locate, recipe


class WatchedRun:
    """A run, and what is known of it already.

    Args:
        path: its folder, or one of its checkpoints.
        name: for people.
        samples: see `insight.insight`.
        beside_random: whether the weights that it began with are evaluated.
        device: auto, cpu or gpu.
    """

    def __init__(
        self, path: Path, name: str, *, samples: int, beside_random: bool, device: str
    ) -> None:
        self._path, self._name = path, name
        self._run, _ = locate(path)  # refuses what is no run
        self._samples, self._beside_random, self._device = samples, beside_random, device
        self._insight, self._seen = Insight(), ""
        self._sheet = ""
        self._before: Mapping[str, float] = {}
        self._remarks: list[str] = []
        self._probed: bool | None = None
        """Whether `_before` has the linear probe; None: there is nothing yet."""

    def part(self, say: Callable[[str], object]) -> RunPart:
        """Return what the page says of the run now.

        Args:
            say: is told what is being done.
        """
        part = RunPart(run_facts.read(self._run, self._name))
        with leaving_out("settings beside the defaults", part.remarks):
            part.changes = list(changes(part.facts.saved))
        if not self._sheet:
            with leaving_out("views", part.remarks):
                say(f"{self._name}: views")
                self._sheet = training_views(recipe(self._run, device=self._device).config)
        newest = self._newest()
        if newest != self._seen or self._insight.step is None:  # there was none, or it has gone
            self._insight = insight(
                self._path,
                samples=self._samples,
                device=self._device,
                say=lambda text: say(f"{self._name}: {text}"),
            )
            self._seen = newest
        # The first evaluation shows that there will be something to stand beside it.
        if self._beside_random and part.facts.figures and self._probed != part.facts.final:
            with leaving_out("figures of the weights that it began with", part.remarks):
                self._evaluate_before(part, say)
        part.sheet, part.insight, part.before = self._sheet, self._insight, self._before
        part.remarks += self._remarks
        return part

    def _evaluate_before(self, part: RunPart, say: Callable[[str], object]) -> None:
        def progress(what: str, done: int, total: int) -> None:
            say(f"{self._name}: before training: {what}, {done / total:.0%}")

        self._before, self._remarks = before_training(
            recipe(self._run, device=self._device).config, probe=part.facts.final, progress=progress
        )
        self._probed = part.facts.final

    def _newest(self) -> str:
        """Return the name of the newest checkpoint or of the export, without reading it."""
        saved = checkpoint.complete(self._run)
        return str(saved[-1] if saved else (self._run / exported.NAME).exists())
