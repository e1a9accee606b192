"""What a step waits for on its host: operators of the CPU alone, and the loader without a step.

`feeding` says whether a step is fed. If it is not, this names the cause, for the same cases:

    operators     reading, drawing and reckoning, by DALI's executor without a GPU: what the GPU
                  waits for, if it takes longer than a step (benchmarks.host_operators)
    loader        all of it and the GPU's own work, but no step that the GPU has to do beside it;
                  by the share of the JPEGs that the decoding engine takes, and by threads

One of the loader is among what comes first: if the decoding engine is idle in it, no other shares
are tried, here or in other stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median

from benchmarks import host_operators
from benchmarks.gpu import material
from benchmarks.gpu.box import BoxedMeasurement, Row, Sizes
from benchmarks.gpu.feeding import THREADS, VIT, Words, cases, loads, words_of
from benchmarks.gpu.loading import alone
from training.command_line import UNUSED
from training.settings import parse
from training.throughput import Workload


def measurements(place: Sizes) -> Sequence[BoxedMeasurement]:
    """Return all of them, the most telling first."""
    photos = replace(material.make_photos(place), first=not place.rehearsal)
    found = [photos, material.make_stl10(place, "raw")]
    every = cases(place)
    for threads, (name, words) in product(place.of(THREADS[::-1], (1,)), every.items()):
        work = partial(operators, place, words, threads)
        asked = f"operators, {name}, {threads} threads"
        found.append(BoxedMeasurement(asked, work, place.of(8.0, 2.0)))
    name = place.of(VIT, "rehearsal")
    shares = loads(place)[: place.of(None, 1)]
    for number, (load, threads) in enumerate(product(shares, place.of(THREADS[::-1], (1,)))):
        work = partial(loader, place, every[name], load, threads)
        asked = f"loader, {name}, {load:g} of the decoding engine, {threads} threads"
        first = number == 0 and not place.rehearsal
        found.append(BoxedMeasurement(asked, work, place.of(13.0, 2.0), first=first))
    return found


def operators(place: Sizes, words: Words, threads: int) -> Row:
    """Return what the operators of the CPU take, which run one after the other.

    Args:
        place: where and how large.
        words: train.py's, of the case.
        threads: of DALI's pool, for the work inside an operator.
    """
    config = parse([*words_of(words), "--run", "unused", *UNUSED]).config
    found = host_operators.measure(
        config.groups,
        config.shards,
        config.batch_size,
        seconds=place.of(2.0, 0.2),
        threads=threads,
    )
    return {
        "threads": threads,
        "batch_size": config.batch_size,
        **found,
        "samples_per_second": 1000 * config.batch_size / found["ms"],
    }


def loader(place: Sizes, words: Words, load: float, threads: int) -> Row:
    """Return the figures of a loader that nothing but its own work keeps busy.

    Args:
        place: where and how large.
        words: train.py's, of the case.
        load: share of the JPEGs that the decoding engine takes.
        threads: of the pipeline.
    """
    tuning = ["--tuning.hw_decoder_load", str(load), "--tuning.threads", str(threads)]
    config = parse([*words_of([*words, *tuning]), "--run", "unused", *UNUSED]).config
    with Workload(config).loader(config.tuning) as batches:
        runs, used = alone(batches, seconds=place.of(2.0, 0.2), repeats=place.of(2, 1))
    ms = median(1000 * run.seconds_a_batch for run in runs)
    return {
        "threads": threads,
        "hw_decoder_load": load,
        "batch_size": config.batch_size,
        "ms": ms,
        "samples_per_second": 1000 * config.batch_size / ms,
        "host_ms_a_batch": median(1000 * run.host / run.batches for run in runs),
        "decoding_engine_use": used,
    }
