"""Pretrain an image encoder from many views.

    python train.py --config recipes/sample_s2r2.yaml
    python train.py --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

With several processes `accelerate launch` starts it: docs/guides/launching.md.
The same command again continues the run, bit for bit on the CPU, from its last checkpoint.
`python train.py --help` explains every setting.
"""

from __future__ import annotations

from training import installed  # first: it answers imports that fail

# isort: split
import math
import sys
from dataclasses import replace
from itertools import chain

import torch

from pipeline import dali
from pipeline.profile import profile_that_lasts
from shards.health.watch import Watch
from training import allocator, exported, launcher_options, memory_forecast, weights
from training.bottleneck import Bottleneck
from training.collapse import Collapse
from training.command import run_command
from training.config import SHARD_SETS
from training.data import ShardSets, check_device, open_data, open_suite
from training.guard import refuse_bad_weights
from training.header import header, news
from training.launch import follow_launcher, is_later_rank
from training.memory_pass import fill
from training.monitor import Monitor
from training.processes import Processes, rank_and_world_size
from training.recorder import Recorder
from training.run import dump, equal_ranks, failure, run_folder
from training.run.agreement import Agreement
from training.run.begin import begin, newest_checkpoint, open_writer
from training.run.stop import TIME, Stop
from training.run.supervise import supervised
from training.schedule import Moment, Schedule
from training.settings import Settings, parse
from training.state import State
from training.step import Step
from training.stopwatch import Stopwatch
from training.trackers import Trackers


def main() -> None:
    """Train one run; if it ends badly, its folder says how."""
    follow_launcher()
    allocator.limit_arenas()
    settings = weights.recorded(parse())
    installed.require(dali.PACKAGE)  # which is imported when it is first used
    with supervised(settings.config) as phase:
        pretrain(settings, phase)


def pretrain(settings: Settings, phase: failure.Phase) -> None:
    """Train one run, from its configuration to its last evaluation.

    Args:
        settings: what was asked for.
        phase: is kept up to date, for those who watch this process.
    """
    # ── config ──────────────────────────────────────────────────────────────────────────────────
    config, (rank, world_size) = settings.config, rank_and_world_size()
    launcher_options.refuse(world_size)
    settings.check_data(*SHARD_SETS)
    config.batch_size_per_rank(world_size)  # refuses what does not divide
    taken = rank == 0 and run_folder.take(config.run)  # before anything in it is read
    run_folder.check(config.run, settings)
    sets = ShardSets.open(config, rank=rank)

    # ── processes ───────────────────────────────────────────────────────────────────────────────
    processes = Processes.meet(config, phase)
    equal_ranks.refuse_differences(settings, sets, processes)
    stop = Stop()

    # ── data ────────────────────────────────────────────────────────────────────────────────────
    saved = newest_checkpoint(config.run, processes)
    data = open_data(config, sets, saved, processes, phase)
    loader = data.loader
    schedule = Schedule(config, data.since, steps_per_epoch=len(loader))
    watch = Watch(sets.train, loader.own_shards() if config.check_shards else [])
    suite = open_suite(config, sets, data, processes)
    killed = begin(settings, saved, data, processes, phase, taken=taken)

    # ── method ──────────────────────────────────────────────────────────────────────────────────
    begun = weights.begin(config, config.method) if saved is None else []
    train_step = Step(config, processes.accelerator)
    method = train_step.method
    memory = memory_forecast.check(config, method, loader, processes)

    # ── resume ──────────────────────────────────────────────────────────────────────────────────
    state = State(train_step, loader, processes.accelerator.scaler, rank)
    step, seconds = 0, 0.0
    torch.manual_seed(config.seed + rank)  # ranks drop different units, if any
    if saved is not None:
        state.restore(saved, data)
        step, seconds = saved.step, saved.seconds
    agreement, saving = (Agreement(values=n, timeout=processes.timeout) for n in (4, 2))
    writer = open_writer(settings, data, processes)

    # ── monitor ─────────────────────────────────────────────────────────────────────────────────
    monitor = Monitor(config.run, main=processes.first, step=step, total_steps=schedule.total_steps)
    trackers = Trackers(settings, processes, phase, step=step)
    check_device(config, sets, data, say=monitor.say)
    stages = profile_that_lasts(loader, seconds=config.profile_seconds)
    monitor.header(header(config, data, processes, schedule, memory, stages))
    stopwatch = Stopwatch(step=step, seconds=seconds)
    recorder = Recorder(
        config=config,
        processes=processes,
        schedule=schedule,
        train_step=train_step,
        suite=suite and replace(suite, progress=monitor.evaluating),
        monitor=monitor,
        trackers=trackers,
        stopwatch=stopwatch,
        watch=watch,
        bottleneck=Bottleneck(loader, stages),
        collapse=Collapse(after=max(100, schedule.warmup_steps)),
    )
    recorder.say(chain(begun, news(config, sets, data, suite, saved, killed)))
    evaluated = processes.from_first(recorder.last_evaluation(step, seconds))

    # ── loop ────────────────────────────────────────────────────────────────────────────────────
    reason, first = TIME if schedule.out_of_time(seconds) else 0, step
    over = schedule.over(step, seconds)
    phase.enter("data", step=step, patience=10)  # the pipeline is built, and its buffer filled
    with monitor, loader, watch:
        for batch in () if over else loader.endless():
            phase.enter("memory", patience=10)
            if (keys := method.memory_due(step)) is not None:
                fill(method, keys, config, loader)
                allocator.give_back()
            phase.enter("step", patience=10 if step == first else 1)  # compiling takes long
            learning_rate = schedule.rate(step, seconds)
            progress = schedule.progress(step + 1, seconds)
            output = train_step(
                batch.views, id_B=batch.id_B, learning_rate=learning_rate, progress=progress
            )
            step += 1
            now = stopwatch.seconds if processes.first else 0.0  # one clock counts
            request = stop.request(out_of_time=schedule.out_of_time(now))
            mine = [request, int(1e6 * now), *writer.status()]
            reason, microseconds, *statuses = agreement.exchange(mine)
            seconds = max(seconds, microseconds / 1e6)
            for line in writer.advance(statuses):
                monitor.say(line) if processes.first else sys.stderr.write(f"{line}\n")

            due = schedule.due(step, since=evaluated, seconds=seconds, leaving=reason != 0)
            if due.record:  # the host waits for the device here and nowhere else
                if processes.first:
                    run_folder.check_there(config.run)
                skipped, in_a_row = train_step.guard.counts()
                if in_a_row >= config.max_skipped_steps:
                    found = {"step": step, "in_a_row": in_a_row}
                    raise dump.given_up(config.run, processes, method, batch, **found)
                if due.save:
                    refuse_bad_weights(train_step.parameters, step)
                counts = {"skipped": skipped, "in_a_row": in_a_row}
                recorder.record(step, output, learning_rate=learning_rate, **counts)
            monitor.advance(step, schedule.progress(step, seconds))
            with stopwatch.paused():
                if due.evaluation:  # before saving: a run killed in between makes it up
                    phase.enter("evaluation", patience=10)
                    recorder.evaluate(step, final=False)
                    evaluated = Moment(step, seconds)
                phase.enter("checkpoint", step=step, patience=10)
                if due.save:
                    writer.save(step, stopwatch.seconds, state.parts(), saving)
                if due.last:
                    writer.finish(step, saving)
            if due.last:
                break
            phase.enter("data", step=step)

    # ── finish ──────────────────────────────────────────────────────────────────────────────────
    phase.enter("finish", patience=math.inf)  # started again, it would take as long again
    recorder.report_damage()
    if not over and watch.checked < watch.total:
        monitor.say(f"the run ended after {watch.checked:,} of {watch.total:,} shards were checked")
    if reason not in (0, TIME):
        monitor.say(stop.message(reason, step, config.run))
        processes.leave(128 + reason, last=trackers.finish)
    if reason == TIME and schedule.total_steps is not None:
        limit = f"{config.max_seconds:g} s, as --max_seconds says"
        monitor.say(f"stopped at step {step:,} after {limit}")
    if processes.first:
        exported.export(settings, sets.train, method.encoder, step=step)
    stop.end_at_once()  # the same command makes the evaluation
    recorder.evaluate_at_end(step)
    if processes.first:
        recorder.say(exported.usage(config.run))
        failure.clear(config.run)
    processes.leave(0, last=trackers.finish)


if __name__ == "__main__":
    run_command(main, silent=is_later_rank)
