"""The records and evaluations of a run, for its monitor and trackers, and its warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluation import geometry, retrieval
from evaluation.suite import FROZEN, ONLINE, Suite
from model.method import Output
from shards.health.watch import Watch
from training import allocator
from training.bottleneck import Bottleneck
from training.collapse import Collapse
from training.config import Config
from training.device_use import memory_gib, utilization
from training.memory_pass import share_buffers
from training.monitor import Monitor, records
from training.processes import Processes
from training.schedule import EPOCH_DIGITS, Moment, Schedule
from training.step import Step
from training.stopwatch import Stopwatch
from training.trackers import Trackers


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Makes the records of a run and hands them to its monitor and its trackers."""

    config: Config
    processes: Processes
    schedule: Schedule
    train_step: Step
    suite: Suite | None
    monitor: Monitor
    trackers: Trackers
    stopwatch: Stopwatch
    watch: Watch
    bottleneck: Bottleneck
    collapse: Collapse
    _said: set[str] = field(default_factory=set)
    """Remarks on evaluations; each is said once."""

    def record(
        self, step: int, output: Output, *, learning_rate: float, skipped: int, in_a_row: int
    ) -> None:
        """Record a step; the host waits for the device.

        Args:
            step: number of updates done.
            output: of the method at this step.
            learning_rate: of this step.
            skipped: steps so far that changed nothing.
            in_a_row: how many of them are the latest ones.
        """
        loader, config = self.bottleneck.loader, self.config
        lap = self.stopwatch.lap(step=step, wait=loader.wait_seconds(), host=loader.host_seconds())
        images_per_second = lap.steps * config.batch_size / lap.seconds
        seconds, seconds_per_step = self.stopwatch.seconds, lap.seconds / lap.steps
        figures: dict[str, float] = {
            "epoch": round(self.schedule.epoch_at(step), EPOCH_DIGITS),
            "loss": self._over_ranks(output.loss.detach(), "mean"),
            "batch_ap": retrieval.view_average_precision(output.z_VAD).mean().item(),
            "learning_rate": learning_rate,
            "images_per_second": images_per_second,
            "views_per_second": images_per_second * sum(group.count for group in config.groups),
            "data_wait": lap.data_wait,
            "loader_host": lap.loader_host,
            "memory_gib": memory_gib(self.processes.device),
            "seconds": seconds,
            "seconds_left": self.schedule.seconds_left(
                step, seconds=seconds, seconds_per_step=seconds_per_step
            ),
        }
        variance, dimension = (value.item() for value in geometry.spread(output.z_VAD))
        figures["batch_dimension"] = dimension
        figures |= utilization(self.processes.device)
        if skipped:
            figures["skipped_steps"] = skipped
        if in_a_row:
            self.monitor.say(
                f"step {step:,}: the gradient is not finite, so it changed nothing; {in_a_row} in "
                f"a row, {skipped} in all; after {config.max_skipped_steps} in a row the run ends"
            )
        figures |= self._damage()
        figures |= {name: value.item() for name, value in output.metrics.items()}
        self.monitor.step({"step": step} | figures)
        with self.stopwatch.paused():
            self.trackers.log({"step": step} | figures)
        V, A, _ = output.z_VAD.shape
        collapsed = self.collapse.update(
            step,
            batch_ap=figures["batch_ap"],
            chance=retrieval.chance(views=V, samples=A),
            variance=variance,
            dimension=dimension,
        )
        bound = self.bottleneck.update(data_wait=lap.data_wait, step_seconds=seconds_per_step)
        self.say(filter(None, (bound, collapsed)))

    def evaluate(self, step: int, *, final: bool) -> None:
        """Evaluate the encoder, if the run has sets for that; `final` adds the linear probe."""
        if self.suite is None:
            return
        method = self.train_step.method
        share_buffers(method)
        with self.config.uncompiled():
            found = self.suite.run(method, FROZEN if final else ONLINE)
        allocator.give_back()
        kind = "final" if final else "online"
        record = {"step": step, "evaluation": kind} | found.figures
        self.monitor.evaluation(record)
        self.say(line for line in found.remarks if line not in self._said)
        self._said.update(found.remarks)
        self.trackers.log(record)

    def last_evaluation(self, step: int, seconds: float) -> Moment:
        """Return when the run was last evaluated, up to where it goes on; rank 0 knows.

        Args:
            step: where it goes on.
            seconds: training time so far.
        """
        if self.suite is None:  # none is made up
            return Moment(step, seconds)
        found, moments = Moment(epoch=0.0), dict[int, Moment]()
        for record in records(self.config.run) if self.processes.first else ():
            then = record["step"]
            if "loss" in record:
                moments[then] = Moment(then, record["seconds"], record["epoch"])
            elif "evaluation" in record and then <= step:
                found = moments.get(then, Moment(then, seconds))
        return found

    def evaluate_at_end(self, step: int) -> None:
        """Make the final evaluation, unless the run has it: it was cut off after that."""
        if not any(_is_final(record, step) for record in records(self.config.run)):
            with self.monitor:
                self.evaluate(step, final=True)

    def say(self, lines: Iterable[str]) -> None:
        """Show lines to people."""
        for line in lines:
            self.monitor.say(line)

    def report_damage(self) -> None:
        """Warn of shards that differ from what was written; each rank watches some of them."""
        shard_set = self.bottleneck.loader.shard_set
        for found in self.watch.news():
            sys.stderr.write(
                f"warning: {found}: what is trained on is not what was written; python -m "
                f"tools.verify {shard_set.tar_folder} --repair true\n"
            )

    def _damage(self) -> dict[str, float]:
        self.report_damage()
        found = torch.tensor(self.watch.found, device=self.processes.device)
        damaged = self._over_ranks(found, "sum")
        return {"damaged_files": damaged} if damaged else {}

    def _over_ranks(self, value: Tensor, reduction: str) -> float:
        """Return the sum or mean of a scalar over all ranks."""
        reduced: Any = self.processes.accelerator.reduce(value, reduction=reduction)
        return reduced.item()


def _is_final(record: dict[str, Any], step: int) -> bool:
    return record["step"] == step and record.get("evaluation") == "final"
