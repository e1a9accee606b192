"""Pretrain an image encoder from many views.

    accelerate launch train.py --config recipes/sample_s2r2.yaml
    accelerate launch train.py --config recipes/stl10_s2r2.yaml --views.count 8 --batch_size 512

The same command again continues the run, bit for bit on the CPU, from its last checkpoint.
`python train.py --help` explains every setting.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from evaluation import retrieval
from evaluation.suite import Suite
from pipeline.finish import MEAN, STD
from pipeline.loader import Loader
from pipeline.profile import profile
from pipeline.selfcheck import check_decoder, check_finish
from pipeline.tuning import default_threads, float_type
from shards.layout import open_shards
from shards.watch import Watch
from training import checkpoint, folder, tuned
from training.budget import forecast, refuse
from training.command import run_command
from training.header import header
from training.launch import check_accumulation, check_processes
from training.memory import fill, share_buffers
from training.monitor import Monitor, records
from training.pace import Pace
from training.schedule import learning_rate
from training.settings import parse
from training.step import Step
from training.stop import TIME, Stop
from training.verdict import Verdict

GIB = 2**30
DAMAGE = "what is trained on is not what was written; python -m tools.verify"


def main() -> None:
    """Train one run, from its configuration to its last evaluation."""
    # ── config ──────────────────────────────────────────────────────────────────────────────────
    settings = parse()
    config = settings.config
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    check_processes(world_size)
    check_accumulation()
    batch_size_per_rank = config.batch_size_per_rank(world_size)
    shard_set = open_shards(config.shards)
    test = open_shards(config.evaluation_test) if config.evaluation_test else None
    train = open_shards(config.evaluation_train) if config.evaluation_train else None
    queries = open_shards(config.evaluation_queries) if config.evaluation_queries else None
    references = open_shards(config.evaluation_references) if config.evaluation_references else None
    folder.check(config.run, settings)

    # ── processes and devices ───────────────────────────────────────────────────────────────────
    precision = config.precision()
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=precision,
        log_with=list(config.trackers) or None,
        project_dir=config.run,
        # An evaluation may take longer than the ten minutes that NCCL waits.
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=1)),
            DistributedDataParallelKwargs(find_unused_parameters=config.method.trains_part),
        ],
    )
    device, rank = accelerator.device, accelerator.process_index
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if device.type == "cpu":
        torch.set_num_threads(default_threads(ranks_here))  # the launcher may have left just one
    machine = f"{device.type}, {precision}"
    stop = Stop()

    # ── data ────────────────────────────────────────────────────────────────────────────────────
    saved = checkpoint.newest(config.run)
    tuning, tuning_source = tuned.resolve(
        config,
        shard_set,
        device=device,
        batch_size_per_rank=batch_size_per_rank,
        ranks_per_node=ranks_here,
        continued=saved is not None,
    )
    if world_size > 1:
        tuning, tuning_source = broadcast_object_list([tuning, tuning_source])
    loader = Loader(
        shard_set,
        config.groups,
        batch_size_per_rank=batch_size_per_rank,
        rank=rank,
        world_size=world_size,
        device=device,
        seed=config.seed,
        dtype=float_type(device, config.autocast()),
        shuffle_buffer=config.shuffle_buffer,
        tuning=tuning,
    )
    total_steps = config.total_steps(len(loader))
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
        )
    if rank == 0:
        folder.prepare(config.run, settings)
        tuned.write(config.run / tuned.NAME, tuning)

    # ── method and optimizer ────────────────────────────────────────────────────────────────────
    train_step = Step(config, accelerator)
    method, optimizer = train_step.method, train_step.optimizer
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
    step, seconds = 0, 0.0
    torch.manual_seed(config.seed + rank)  # ranks drop different units, if any
    if saved is not None:
        folder.check_continues(saved, world_size, machine)
        method.load_state_dict(saved.method())
        states, own = saved.optimizer(), saved.rank(rank)
        optimizer.load_state_dict(states["optimizer"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(states["scaler"])
        loader.load_state_dict(own["loader"])
        checkpoint.set_random_state(own["random"])
        step, seconds = saved.step, saved.seconds

    def save() -> None:
        scaler = accelerator.scaler
        checkpoint.save(
            config.run,
            step=step,
            seconds=pace.seconds,
            method=method.state_dict(),
            optimizer={
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
            rank_state={"loader": loader.state_dict(), "random": checkpoint.random_state()},
            rank=rank,
            world_size=world_size,
            machine=machine,
            keep=config.keep_checkpoints,
            barrier=accelerator.wait_for_everyone,
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
    verdict = Verdict(loader, stages)
    rows = header(config, loader, precision, total_steps, tuning_source)
    if budget is not None:
        rows["memory"] = budget.describe()
    if stages is not None:
        rows["profile"] = str(stages)
    monitor.header(rows)
    if saved is not None:
        monitor.say(f"continuing from step {step:,}: {saved.root}")

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
            "epoch": round(step / len(loader), 4),
            "loss": _over_ranks(accelerator, output.loss.detach(), "mean"),
            "batch_ap": retrieval.view_average_precision(output.z_VAD).mean().item(),
            "learning_rate": rate,
            "images_per_second": images_per_second,
            "views_per_second": images_per_second * sum(group.count for group in config.groups),
            "data_wait": lap.data_wait,
            "loader_host": lap.loader_host,
            "memory_gib": _memory_gib(device),
            "seconds": pace.seconds,
            "seconds_left": seconds_left,
        }
        figures |= _utilization(device)
        report_damage()
        if damaged := _over_ranks(accelerator, torch.tensor(watch.found, device=device), "sum"):
            figures["damaged_files"] = damaged
        figures |= {name: value.item() for name, value in output.metrics.items()}
        monitor.step({"step": step} | figures)
        accelerator.log(figures, step=step)
        news = verdict.update(data_wait=lap.data_wait, step_seconds=lap.seconds / lap.steps)
        if news is not None:
            monitor.say(news)

    def evaluate(*, final: bool) -> None:
        if suite is None:
            return
        share_buffers(method)
        figures = suite.run(method, probe=final)
        monitor.evaluation({"step": step, "evaluation": "final" if final else "online"} | figures)
        accelerator.log(figures, step=step)

    # ── loop ────────────────────────────────────────────────────────────────────────────────────
    late = config.max_seconds is not None and seconds >= config.max_seconds
    reason = TIME if late else 0
    bad_steps = torch.zeros((), device=device)  # counted on the device, read with the next record
    batches = chain.from_iterable(repeat(loader)) if step < total_steps and not late else ()
    pace = Pace(step=step, seconds=seconds)
    with monitor, loader, watch:
        for batch in batches:
            if (request := method.memory_due(step)) is not None:
                fill(method, request, config, loader)
            rate = learning_rate(
                step, peak=config.learning_rate, warmup_steps=warmup_steps, total_steps=total_steps
            )
            output = train_step(
                batch.views,
                id_B=batch.id_B,
                learning_rate=rate,
                progress=(step + 1) / total_steps,
            )
            bad_steps += ~output.loss.detach().isfinite()
            step += 1

            late = config.max_seconds is not None and pace.seconds >= config.max_seconds
            reason = stop.after_step(out_of_time=late)
            last = reason != 0 or step == total_steps
            save_due = last or step % config.checkpoint_every == 0
            if save_due or step % config.log_every == 0:
                # The host waits for the device here and nowhere else.
                if save_due:  # a gradient that was not finite shows in the weights
                    finite = torch.stack(
                        [p.detach().isfinite().all() for p in train_step.parameters]
                    )
                    bad_steps += ~finite.all()
                _refuse_bad_steps(_over_ranks(accelerator, bad_steps, "sum"), step)
                record()
            monitor.advance(step)
            with pace.paused():
                # Saved after the evaluation: a run killed in between makes it up.
                if not last and evaluate_steps and step % evaluate_steps == 0:
                    evaluate(final=False)
                if save_due:
                    save()
            if last:
                break

    # ── finish ──────────────────────────────────────────────────────────────────────────────────
    report_damage()
    if watch.checked < watch.total:
        monitor.say(f"the run ended after {watch.checked:,} of {watch.total:,} shards were checked")
    if reason > 0:
        name = signal.Signals(reason).name
        monitor.say(f"{name}: saved step {step:,} in {config.run}; the same command continues it")
        _leave(accelerator, 128 + reason)
    if reason == TIME:
        monitor.say(
            f"stopped at step {step:,} after {config.max_seconds:g} s, as --max_seconds says"
        )
    if not any(r["step"] == step and r.get("evaluation") == "final" for r in records(config.run)):
        evaluate(final=True)
    if rank == 0:
        facts = {"size": config.views.size, "mean": MEAN, "std": STD, "step": step}
        path = folder.export(config.run, method.encoder, facts)
        monitor.say(
            f"finished: encoder in {path}; evaluate it with python -m tools.evaluate {config.run}"
        )
    _leave(accelerator, 0)


def _refuse_bad_steps(bad_steps: float, step: int) -> None:
    """Stop before anything is saved if a loss was not finite; alike on every rank."""
    if bad_steps:
        raise ValueError(
            f"loss or weights were not finite in {bad_steps:.0f} of the steps up to {step}; "
            "nothing was saved since. Lower --learning_rate, raise --warmup_epochs, set "
            "--clip_gradient_norm 1, or use --mixed_precision bf16 instead of fp16; then start a "
            "new --run."
        )


def _over_ranks(accelerator: Accelerator, value: torch.Tensor, reduction: str) -> float:
    """Return the sum or mean of a scalar over all ranks; waits for the device."""
    reduced: Any = accelerator.reduce(value, reduction=reduction)
    return reduced.item()


def _memory_gib(device: torch.device) -> float:
    """Return the memory in use: of the device, DALI's buffers included, or of this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _utilization(device: torch.device) -> dict[str, float]:
    """Return the share of the last second in which the GPU computed, where it can be asked."""
    if device.type == "cuda":
        with suppress(Exception):  # NVML has errors of its own, on MIG slices for one
            return {"gpu_utilization": torch.cuda.utilization(device) / 100}
    return {}


def _leave(accelerator: Accelerator, code: int) -> None:
    accelerator.end_training()
    sys.exit(code)


def _later_rank() -> bool:
    """Whether an error needs no second report: before the ranks meet, all find the same."""
    return os.environ.get("RANK", "0") != "0" and not dist.is_initialized()


if __name__ == "__main__":
    run_command(main, silent=_later_rank)
