"""Train recipes under one budget, over several seeds, and compare what they learned and cost.

    python -m tools.compare recipes/cifar10_cpu_{s2r2,simclr}.yaml --seconds 150 --seeds 0 1 2 \
        --out runs/cmp
    python -m tools.compare recipes/cifar10_cpu_{s2r2,simclr}.yaml --seconds 40 --out runs/search \
        --vary learning_rate=1e-3,2e-3,4e-3 --best_by knn_top1 -- --evaluation_test data/val

Every run is a train.py of its own, one after the other, in OUT/runs. Words after -- are flags of
train.py for all runs. The same command again continues, even in the middle of a run.
OUT/comparison.json holds all results, .md the table, .png the chart.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from pipeline import dali
from shards import durable
from shards.layout import ShardSet, open_shards
from tools.compare import chart
from tools.compare.budget import Budget
from tools.compare.result_tables import (
    ENOUGH,
    RESULT,
    figure_of,
    figures_of,
    labels,
    markdown,
    share_of_budget,
    show,
)
from tools.compare.variants import Variant, check_terms, variants
from training import installed
from training.command_line import Repeated, Rest, run_function
from training.terminal import literal_console

if TYPE_CHECKING:
    from tools.compare.cluster import Cluster
    from tools.compare.plan import Plan

LOCK = ".lock"  # in OUT
Term = Literal["encoder", "weights", "shards", "evaluation", "precision", "policy"]


def main(
    *recipes: Path,
    out: Path,
    seconds: float | None = None,
    image_views: int | None = None,
    seeds: Sequence[int] = (0,),
    vary: Repeated | None = None,
    vary_where_known: bool = False,
    allow_differences: list[Term] | None = None,
    best_by: str | None = None,
    against: str | None = None,
    evaluate: str | None = None,
    points: int = 6,
    processes: int = 1,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: int = 0,
    add: list[Path] | None = None,
    redraw: bool = False,
    more: Rest,
) -> None:
    """Train recipes under one budget and compare them.

    Flags of train.py for all runs follow --, at the end.

    Args:
        recipes: YAML files.
        out: folder of the comparison and of its runs.
        seconds: training seconds of each run.
        image_views: instead of --seconds: number of samples times views that the encoder is shown
            in each run.
        seeds: one run for each.
        vary: KEY=VALUE,VALUE: a setting and its values, such as
            method.objective.temperature=0.05,0.1. May be repeated; all combinations are trained.
        vary_where_known: vary a setting only in the recipes that have it; by default the others
            are refused.
        allow_differences: terms in which the recipes may differ, besides views, batch, method and
            optimizer.
        best_by: print the best variant of each recipe by this figure, such as knn_top1 or
            linear_top1, as flags; "FIGURE on SET" for one of several --sets.
        against: show by how much each variant differs from this one, by its name in the table; by
            default, with two seeds or more, from the best.
        evaluate: evaluate each run besides, and the random encoders, by these flags of
            tools.evaluate: "--protocol few_shot", with the protocols' settings, or "--sets DIR
            DIR". Their figures get columns of their own.
        points: number of evaluations in a run, the last included.
        processes: number of processes of each run, one for each GPU.
        engine: this machine, one run after the other, or a Ray cluster, several at a time: each
            machine must see OUT and the data under the same paths.
        ray_address: address of a cluster, such as auto; by default, a local cluster is started.
        cpus_per_run: cores of a run on a Ray cluster.
        gpus_per_run: GPUs of a run on a Ray cluster.
        add: comparison.json of earlier parts of this comparison, or of other machines: the finished
            runs in it are not trained again.
        redraw: only write tables and chart again, from OUT's JSON.
        more: flags of train.py.
    """
    console = literal_console()
    if best_by is not None:
        _check_figure(best_by)
    if redraw:
        record = _read(out)
        _check_against(against, record)
        _report(record, out, console, best_by, against)
        return
    budget = Budget(seconds=seconds, image_views=image_views)
    _refuse(recipes, seeds, points)
    _refuse_engine(engine, ray_address, cpus_per_run, gpus_per_run, processes)
    installed.require(dali.PACKAGE)  # every run would fail alike
    words = _words(evaluate)
    compared = variants(recipes, vary or [], more, where_known=vary_where_known)
    plan = _planned(
        compared,
        against,
        allow_differences or [],
        out=out,
        seeds=seeds,
        budget=budget,
        points=points,
        processes=processes,
        more=more,
        evaluate=words,
    )
    if not chart.available():
        console.print("no chart: matplotlib is missing; uv pip install matplotlib, then --redraw")
    cluster = None
    if engine == "ray":
        from tools.compare.cluster import Cluster

        cluster = Cluster(ray_address, cpus=cpus_per_run, gpus=gpus_per_run)
        console.print(f"{cluster.at_once} runs at a time on the Ray cluster")
    record, failed = _trained(plan, add or [], console, cluster)
    _report(record, out, console, best_by, against)
    if failed:
        sys.exit(1)


def _refuse(recipes: Sequence[Path], seeds: Sequence[int], points: int) -> None:
    """Refuse what makes no comparison."""
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or points < 1:
        raise ValueError(
            f"seeds={list(seeds)} and points={points}; give different seeds, none negative, and 1 "
            "point or more."
        )
    if not recipes:
        raise ValueError("no recipe to train; name one or more YAML files, such as recipes/*.yaml.")


def _refuse_engine(engine: str, address: str | None, cpus: int, gpus: int, processes: int) -> None:
    """Refuse what the engine cannot do."""
    if engine == "local" and (address, cpus, gpus) != (None, 1, 0):
        raise ValueError("ray_address, cpus_per_run and gpus_per_run are for --engine ray.")
    if cpus < 1 or gpus < 0 or (engine == "ray" and processes != 1):
        raise ValueError(
            f"cpus_per_run={cpus}, gpus_per_run={gpus}, processes={processes}; give 1 core or "
            "more, and on a Ray cluster one process a run."
        )


def _words(evaluate: str | None) -> list[str]:
    """Return the flags of tools.evaluate, after reading them."""
    if not evaluate:
        return []
    from tools.compare import further_evaluations  # imports torch, which --help does without

    return further_evaluations.flags(evaluate)


def _planned(
    compared: list[Variant], against: str | None, allowed: Sequence[str], **values: Any
) -> Plan:
    """Return the plan of a comparison that is fair, and that its data allow.

    Args:
        compared: what is compared.
        against: the variant that the others are compared with, if one is named.
        allowed: terms in which they may differ.
        values: the plan's other fields.
    """
    from tools.compare.plan import Plan  # imports torch, which --help does without

    _check_against(
        against, {"variants": [{"name": v.name, "recipe_name": v.recipe.stem} for v in compared]}
    )
    differences = check_terms(compared, allowed)
    sets = _check_data(compared, values["processes"])
    return Plan(
        compared=compared,
        allowed=differences,
        samples={root: len(shard_set) for root, shard_set in sets.items()},
        digests={root: shard_set.manifest.digest() for root, shard_set in sets.items()},
        command=shlex.join(["python", "-m", "tools.compare", *sys.argv[1:]]),
        **values,
    )


def _check_figure(name: str) -> None:
    """Refuse a figure that does not rank encoders: of which more is not better."""
    # Here and not above: it imports torch, which --help does without.
    from evaluation.figures import FAMILIES, NAMES, more_is_better

    if not more_is_better(figure_of(name)):
        known = ", ".join(filter(more_is_better, NAMES))
        more = [each.replace("#", "10") for each in FAMILIES]
        raise ValueError(
            f"--best_by {name} does not say which is better; expected {known}, or with any "
            f"share of the labels {', '.join(filter(more_is_better, more))}"
        )


def _check_against(against: str | None, record: dict[str, Any]) -> None:
    """Refuse what is no variant's name in the table."""
    known = labels(record).values()
    if against is not None and against not in known:
        raise ValueError(f"--against {against} is none of the variants: {', '.join(known)}.")


def _trained(
    plan: Plan, add: Sequence[Path], console: Console, cluster: Cluster | None
) -> tuple[dict[str, Any], bool]:
    """Train what is missing; return the record, and whether a run failed."""
    from tools.compare.comparison import Comparison
    from tools.compare.earlier import Earlier
    from tools.compare.run import Stopped

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    with _locked(plan.out):
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, stop) for number in signals}
        try:
            comparison = Comparison(plan, console, Earlier(add, plan), cluster)
            comparison.run()
            return comparison.write(), bool(comparison.errors)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            console.print(f"{name}: the same command continues {plan.out}", soft_wrap=True)
            sys.exit(128 + stopped.number)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _check_data(compared: list[Variant], processes: int) -> dict[str, ShardSet]:
    """Refuse shard sets and batches that no run can use; return the sets by their paths."""
    from training.config import SHARD_SETS  # imports torch, which --help does without

    sets: dict[str, ShardSet] = {}
    for variant in compared:
        settings = variant.resolved
        if settings["evaluation_test"] is None:
            raise ValueError(
                f"{variant.recipe} names no evaluation_test, so there is nothing to compare. Give "
                "a held-out shard set: -- --evaluation_test DIR."
            )
        for name in SHARD_SETS:
            root = settings[name]
            if root is not None and root not in sets:
                sets[root] = open_shards(root)
        size, samples = settings["batch_size"], len(sets[settings["shards"]])
        if size % processes or size > samples:
            raise ValueError(
                f"{variant.name}: batch_size={size} needs to divide by {processes} processes and "
                f"to be at most the {samples} samples of {settings['shards']}."
            )
    return sets


def _read(out: Path) -> dict[str, Any]:
    path = out / RESULT
    if not path.exists():
        raise ValueError(f"{path} does not exist; --redraw draws what a comparison has written.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); the comparison's own command, without --redraw, writes "
            "it again from the runs."
        ) from None


def _report(
    record: dict[str, Any], out: Path, console: Console, best_by: str | None, against: str | None
) -> None:
    """Print the tables, and write them and the chart."""
    drawn = None
    if chart.available() and any("final" in run for run in record["runs"]):
        chart.draw(record, out / "comparison.png")
        drawn = "comparison.png"
    text = markdown(record, drawn, against)
    durable.replace(out / "comparison.md", [text.encode()])
    if console.is_terminal:
        show(record, console, against)
    else:
        print(text)
    files = [RESULT, "comparison.md", *([drawn] if drawn else [])]
    console.print(f"in {out}: {', '.join(files)}", soft_wrap=True)
    for line in best(record, best_by) if best_by else ():
        console.print(line, soft_wrap=True)


def best(record: dict[str, Any], figure: str) -> list[str]:
    """Return the flags of the best variant of each recipe, by the mean of a figure over seeds."""
    lines = []
    for recipe in dict.fromkeys(variant["recipe"] for variant in record["variants"]):
        means: dict[str, float] = {}
        flags: dict[str, list[str]] = {}
        for variant in record["variants"]:
            runs = [r for r in record["runs"] if r["variant"] == variant["name"] and "final" in r]
            whole = [run for run in runs if share_of_budget(run) >= ENOUGH]
            known = [of[figure] for run in whole if figure in (of := figures_of(run))]
            # A variant that lacks a seed, or a part of the budget, cannot be the best.
            if variant["recipe"] == recipe and len(known) == len(record["seeds"]):
                means[variant["name"]] = sum(known) / len(known)
                flags[variant["name"]] = variant["flags"]
        if not means:
            lines.append(f"{recipe}: no variant has {figure} with every seed and the whole budget")
            continue
        name = max(means, key=lambda name: means[name])
        command = shlex.join(["--config", recipe, *flags[name]])
        lines.append(f"{command}  # {figure} {means[name]:.4f}, the best of {len(means)}")
    return lines


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the folder: a second comparison in it would train the same runs."""
    out.mkdir(parents=True, exist_ok=True)
    taken = f"another comparison is running in {out}. Wait for it, or give another --out."
    with durable.alone(out / LOCK, taken):
        yield


if __name__ == "__main__":
    run_function(main)
