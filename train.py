"""Pretrain an image encoder from many views.

    accelerate launch train.py --config recipes/sample_s2r2.yaml
    accelerate launch train.py --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

The same command again continues the run, bit for bit on the CPU, from its last checkpoint.
`python train.py --help` explains every setting.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import chain, repeat

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from evaluation import geometry, retrieval
from evaluation.suite import Suite
from pipeline.finish import MEAN, STD
from pipeline.loader import Loader
from pipeline.profile import profile
from pipeline.selfcheck import check_decoder, check_finish
from pipeline.tuning import default_threads, float_type
from pipeline.unreadable import Unreadable
from shards.health.watch import Watch
from shards.layout import open_shards
from training import allocator, machine_settings
from training.bottleneck import Bottleneck
from training.collapse import Collapse
from training.command import run_command
from training.figures import memory_gib, over_ranks, utilization
from training.guard import refuse_bad_weights
from training.header import header
from training.launch import (
    check_accumulation,
    check_processes,
    follow_launcher,
    meet_again,
    restart,
)
from training.memory_forecast import forecast, refuse
from training.memory_pass import fill, share_buffers
from training.monitor import Monitor, records
from training.run import checkpoint, dump, failure, quarantine, run_folder
from training.run.agreement import Agreement
from training.run.origin import commit, versions
from training.run.stop import TIME, Stop
from training.run.watchdog import Watchdog
from training.run.writer import Writer
from training.schedule import learning_rate
from training.settings import Settings, parse
from training.state import State, open_data
from training.step import Step
from training.stopwatch import Stopwatch

DAMAGE = "what is trained on is not what was written; python -m tools.verify"


def main() -> None:
    """Train one run, and leave a word in its folder if it ends otherwise than it should."""
    follow_launcher()
    allocator.limit_arenas()
    settings = parse()
    run, limit = settings.config.run, settings.config.hang_seconds
    ranks = {
        "rank": int(os.environ.get("RANK", "0")),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }
    found: list[str] = []
    with failure.reported(run, rank=ranks["rank"]) as place:
        with Watchdog(run, place, limit=limit, **ranks):
            try:
                pretrain(settings, place, **ranks)
            except Unreadable as error:
                whole = open_shards(settings.config.shards)
                if error.root != whole.root:
                    raise
                if not settings.config.max_bad_samples:
                    more = "or let this run leave it out, with --max_bad_samples"
                    raise ValueError(f"{error}; {more}") from error
                search(place)
                found = quarantine.extend(run, whole, limit=settings.config.max_bad_samples)
                if not found:
                    raise
                sys.stderr.write(f"warning: left out from now on: {'; '.join(found)} ({error})\n")
        if found:
            restart()


def pretrain(settings: Settings, place: failure.Phase, *, rank: int, world_size: int) -> None:
    """Train one run, from its configuration to its last evaluation.

    Args:
        settings: what was asked for.
        place: is kept up to date.
        rank: this process, as the launcher counts them.
        world_size: number of processes.
    """
    # ── config ──────────────────────────────────────────────────────────────────────────────────
    config = settings.config
    check_processes(world_size)
    check_accumulation()
    batch_size_per_rank = config.batch_size_per_rank(world_size)
    taken = rank == 0 and run_folder.take(config.run)  # before anything in it is read
    run_folder.check(config.run, settings)
    shard_set, left_out = quarantine.without(config.run, open_shards(config.shards), rank=rank)
    test = open_shards(config.evaluation_test) if config.evaluation_test else None
    train = open_shards(config.evaluation_train) if config.evaluation_train else None
    queries = open_shards(config.evaluation_queries) if config.evaluation_queries else None
    references = open_shards(config.evaluation_references) if config.evaluation_references else None

    # ── processes and devices ───────────────────────────────────────────────────────────────────
    precision = config.precision()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before its first product
        torch.use_deterministic_algorithms(True, warn_only=True)
    # An evaluation may take longer than NCCL's ten minutes; what hangs, the watchdog ends.
    timeout = timedelta(days=1) if config.hang_seconds else timedelta(hours=1)
    place.enter("meeting of the ranks")
    meet_again(cpu=not config.on_gpu, timeout=timeout)
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=precision,
        log_with=list(config.trackers) or None,
        project_dir=config.run,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timeout),
            DistributedDataParallelKwargs(find_unused_parameters=config.method.trains_part),
        ],
    )
    place.enter("preparation", patience=10)
    device = accelerator.device
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if device.type == "cpu":
        torch.set_num_threads(default_threads(ranks_here))  # the launcher may have left just one
    machine = f"{device.type}, {precision}"
    stop = Stop()

    # ── data ────────────────────────────────────────────────────────────────────────────────────
    saved = checkpoint.newest(config.run) if rank == 0 else None
    if world_size > 1:
        (saved,) = broadcast_object_list([saved])
    tuning, tuning_source = machine_settings.resolve(
        config,
        shard_set,
        device=device,
        batch_size_per_rank=batch_size_per_rank,
        ranks_per_node=ranks_here,
        continued=saved is not None,
    )
    if world_size > 1:
        tuning, tuning_source = broadcast_object_list([tuning, tuning_source])
    make_loader = partial(
        Loader,
        shard_set,
        config.groups,
        batch_size_per_rank=batch_size_per_rank,
        rank=rank,
        world_size=world_size,
        device=device,
        dtype=float_type(device, config.autocast()),
        shuffle_buffer=config.shuffle_buffer,
        tuning=tuning,
        searching=partial(search, place),
    )
    data = open_data(
        make_loader,
        saved,
        seed=config.seed,
        rank=rank,
        reshape=config.reshape_data,
        left_out=left_out,
    )
    loader, course = data.loader, data.course
    total_steps = course.total_steps(
        steps=config.steps, epochs=config.epochs, steps_per_epoch=len(loader)
    )
    warmup_steps = round(config.warmup_epochs * len(loader))
    if warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_epochs={config.warmup_epochs:g} are {warmup_steps} steps, but the run has "
            f"{total_steps}; the learning rate would never reach its peak. Shorten the warm-up."
        )
    evaluate_steps = (
        max(1, round(config.evaluate_every * len(loader))) if config.evaluate_every else 0
    )
    watch = Watch(shard_set, rank=rank, world_size=world_size, enabled=config.check_shards)
    suite = None
    if test is not None:
        suite = Suite(
            test=test,
            train=train,
            group=config.views,
            device=device,
            autocast=config.autocast(),
            rank=rank,
            world_size=world_size,
            tuning=tuning,
            queries=queries,
            references=references,
            neighbours=config.evaluation_neighbours,
            temperature=config.evaluation_temperature,
        )
    unheard: list[str] = []
    if rank == 0:
        run_folder.prepare(config.run, settings, taken=taken)
        checkpoint.clean(config.run)
        unheard = failure.unheard(config.run)
        machine_settings.write(config.run / machine_settings.NAME, tuning)
    accelerator.wait_for_everyone()
    place.prepared = True
    failure.keep_stderr(config.run, rank)

    # ── method and optimizer ────────────────────────────────────────────────────────────────────
    train_step = Step(config, accelerator)
    method = train_step.method
    budget = None
    if config.check_memory:
        foretell = partial(forecast, config, method, loader, ranks_here=ranks_here)
        budget = foretell()
        refuse(
            budget,
            lambda size: foretell(batch_size_per_rank=size),
            batch_size=config.batch_size,
            world_size=world_size,
        )

    # ── resume ──────────────────────────────────────────────────────────────────────────────────
    state = State(train_step, loader, accelerator.scaler, rank)
    step, seconds = 0, 0.0
    torch.manual_seed(config.seed + rank)  # ranks drop different units, if any
    if saved is not None:
        run_folder.check_continues(saved, saved.world_size if data.anew else world_size, machine)
        state.restore(saved, data)
        step, seconds = saved.step, saved.seconds

    ranks = Agreement(values=3, timeout=timeout)
    writer = Writer(
        config.run,
        rank=rank,
        facts={
            "world_size": world_size,
            "machine": machine,
            "course": asdict(course),
            "commit": commit(),
            "versions": versions(),
            "config": settings.resolved,
        },
        keep=config.keep_checkpoints,
        keep_every=config.keep_every,
    )

    # ── monitor and evaluation ──────────────────────────────────────────────────────────────────
    if config.trackers:
        flat = {name: str(value) for name, value in settings.flat().items()}
        accelerator.init_trackers("viewrank", config=flat)
    monitor = Monitor(config.run, main=rank == 0, step=step, total_steps=total_steps)
    if config.self_check and device.type == "cuda":
        monitor.say(check_decoder(shard_set, device=device, tuning=tuning))
        if tuning.finish == "fused":
            check_finish(config.groups, device=device, dtype=loader.dtype)
    stages = profile(loader, seconds=config.profile_seconds) if config.profile_seconds else None
    verdict = Bottleneck(loader, stages)
    collapses = Collapse(after=max(100, warmup_steps))
    rows = header(config, loader, precision, total_steps, tuning_source)
    if budget is not None:
        rows["memory"] = budget.describe()
    if stages is not None:
        rows["profile"] = str(stages)
    monitor.header(rows)
    if saved is not None:
        monitor.say(f"continuing from step {step:,}: {saved.root}")
    for line in unheard:
        monitor.say(line)
    if left_out:
        monitor.say(f"without the {left_out} samples in {config.run / quarantine.NAME}")
    if data.anew:
        monitor.say(
            f"with other batches: epoch {course.epoch} begins anew, of {len(loader):,} steps of "
            f"{config.batch_size} samples; what was seen of it is seen again"
        )

    def report_damage() -> None:
        for text in watch.news():  # on any rank: each looks at shards of its own
            sys.stderr.write(f"warning: {text}: {DAMAGE} {shard_set.tar_place} --repair true\n")

    def record() -> None:
        lap = pace.lap(step=step, wait=loader.wait_seconds(), host=loader.host_seconds())
        images_per_second = lap.steps * config.batch_size / lap.seconds
        seconds_left = (total_steps - step) * lap.seconds / lap.steps
        if config.max_seconds is not None:
            seconds_left = max(0.0, min(seconds_left, config.max_seconds - pace.seconds))
        figures = {
            "epoch": round(course.epoch_at(step, len(loader)), 4),
            "loss": over_ranks(accelerator, output.loss.detach(), "mean"),
            "batch_ap": retrieval.view_average_precision(output.z_VAD).mean().item(),
            "learning_rate": rate,
            "images_per_second": images_per_second,
            "views_per_second": images_per_second * sum(group.count for group in config.groups),
            "data_wait": lap.data_wait,
            "loader_host": lap.loader_host,
            "memory_gib": memory_gib(device),
            "seconds": pace.seconds,
            "seconds_left": seconds_left,
        }
        variance, dimension = (value.item() for value in geometry.spread(output.z_VAD))
        figures["batch_dimension"] = dimension
        figures |= utilization(device)
        if skipped:
            figures["skipped_steps"] = skipped
        if in_a_row:
            monitor.say(
                f"step {step:,}: the gradient is not finite, so it changed nothing; {in_a_row} in "
                f"a row, {skipped} in all; after {config.max_skipped_steps} in a row the run ends"
            )
        report_damage()
        if damaged := over_ranks(accelerator, torch.tensor(watch.found, device=device), "sum"):
            figures["damaged_files"] = damaged
        figures |= {name: value.item() for name, value in output.metrics.items()}
        monitor.step({"step": step} | figures)
        accelerator.log(figures, step=step)
        news = verdict.update(data_wait=lap.data_wait, step_seconds=lap.seconds / lap.steps)
        V, A, _ = output.z_VAD.shape
        collapsed = collapses.update(
            step,
            batch_ap=figures["batch_ap"],
            chance=retrieval.chance(views=V, samples=A),
            variance=variance,
            dimension=dimension,
        )
        for line in filter(None, (news, collapsed)):
            monitor.say(line)

    def evaluate(*, final: bool) -> None:
        if suite is None:
            return
        share_buffers(method)
        with config.uncompiled():
            figures = suite.run(method, probe=final)
        allocator.give_back()
        monitor.evaluation({"step": step, "evaluation": "final" if final else "online"} | figures)
        accelerator.log(figures, step=step)

    # ── loop ────────────────────────────────────────────────────────────────────────────────────
    late = config.max_seconds is not None and seconds >= config.max_seconds
    reason = TIME if late else 0
    batches = chain.from_iterable(repeat(loader)) if step < total_steps and not late else ()
    begin, pace = step, Stopwatch(step=step, seconds=seconds)
    place.enter("data", step=step, patience=10)  # the pipeline is built, and its buffer filled
    with monitor, loader, watch:
        for batch in batches:
            place.enter("memory", patience=10)
            if (request := method.memory_due(step)) is not None:
                fill(method, request, config, loader)
                allocator.give_back()
            rate = learning_rate(
                step, peak=config.learning_rate, warmup_steps=warmup_steps, total_steps=total_steps
            )
            place.enter("step", patience=10 if step == begin else 1)  # compiling takes long
            output = train_step(
                batch.views,
                id_B=batch.id_B,
                learning_rate=rate,
                progress=(step + 1) / total_steps,
            )
            step += 1

            late = config.max_seconds is not None and pace.seconds >= config.max_seconds
            wish = stop.wish(out_of_time=late and rank == 0)
            reason, *told = ranks.exchange([wish, *writer.told()])
            for news in writer.heed(told):
                monitor.say(news) if rank == 0 else sys.stderr.write(f"{news}\n")
            last = reason != 0 or step == total_steps
            save_due = last or step % config.checkpoint_every == 0
            evaluate_due = not last and evaluate_steps > 0 and step % evaluate_steps == 0
            if save_due or evaluate_due or step % config.log_every == 0:
                # The host waits for the device here and nowhere else: before the clock is stopped.
                skipped, in_a_row = train_step.guard.counts()
                if in_a_row >= config.max_skipped_steps:
                    raise dump.given_up(
                        config.run,
                        in_a_row=in_a_row,
                        step=step,
                        rank=rank,
                        world_size=world_size,
                        method=method,
                        batch=batch,
                    )
                if save_due:
                    refuse_bad_weights(train_step.parameters, step)
                record()
            monitor.advance(step)
            with pace.paused():
                # Saved after the evaluation: a run killed in between makes it up.
                if evaluate_due:
                    place.enter("evaluation", patience=10)
                    evaluate(final=False)
                place.enter("checkpoint", step=step, patience=10)
                if save_due:
                    writer.save(
                        step=step, seconds=pace.seconds, parts=state.parts(), agreement=ranks
                    )
                if last and writer.settle(ranks) != step:
                    raise OSError(
                        errno.EIO,
                        f"step {step:,} could not be saved; earlier checkpoints are untouched. "
                        "Free space and run the same command again",
                        str(config.run),
                    )
            if last:
                break
            place.enter("data", step=step)

    # ── finish ──────────────────────────────────────────────────────────────────────────────────
    place.enter("finish", patience=math.inf)  # begun anew, it would take as long again
    report_damage()
    if watch.checked < watch.total:
        monitor.say(f"the run ended after {watch.checked:,} of {watch.total:,} shards were checked")
    if reason not in (0, TIME):
        name = signal.Signals(reason).name
        monitor.say(f"{name}: saved step {step:,} in {config.run}; the same command continues it")
        _leave(accelerator, 128 + reason)
    if reason == TIME:
        monitor.say(
            f"stopped at step {step:,} after {config.max_seconds:g} s, as --max_seconds says"
        )
    path = config.run / run_folder.ENCODER
    if rank == 0:
        facts = {"size": config.views.size, "mean": MEAN, "std": STD, "step": step}
        run_folder.export(config.run, method.encoder, facts)
    if not any(r["step"] == step and r.get("evaluation") == "final" for r in records(config.run)):
        evaluate(final=True)
    if rank == 0:
        monitor.say(
            f"finished: encoder in {path}; evaluate it with python -m tools.evaluate {config.run}"
        )
        failure.clear(config.run)
    _leave(accelerator, 0)


def search(place: failure.Phase) -> None:
    """Say that all of the shard set is read, for which the other ranks wait."""
    place.enter(failure.SEARCH, patience=math.inf)


def _leave(accelerator: Accelerator, code: int) -> None:
    accelerator.end_training()
    sys.exit(code)


def _later_rank() -> bool:
    """Whether an error needs no second report: before the ranks meet, all find the same."""
    return os.environ.get("RANK", "0") != "0" and not dist.is_initialized()


if __name__ == "__main__":
    run_command(main, silent=_later_rank)
