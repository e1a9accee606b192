"""The result of a comparison: means and deviations over seeds, for a terminal and in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from tools.compare.difference_columns import difference_columns
from tools.compare.load import DISTURBED
from tools.compare.prediction import TITLE, prediction_columns
from tools.compare.rendering import TableColumn, markdown_table, terminal_table
from tools.compare.table_row import Spread, TableRow
from training.paired_difference import best_of

RESULT = "comparison.json"
RANDOM = "random encoder"
# What the encoder learned: {figure: heading}. Accuracies are in percent; more is better.
LEARNED = {
    "knn_top1": "k-NN %",
    "linear_top1": "linear %",
    "multi_label_knn_map": "k-NN mAP %",
    "multi_label_map": "probe mAP %",
    "view_map": "view mAP %",
    "label_map": "label mAP %",
    "copy_map": "copy µAP %",
    "copy_z_map": "copy µAP by z %",
    "effective_dimension": "dim.",
}
# What that cost: {figure: heading}.
COST = {
    "steps": "steps",
    "image_views": "image views",
    "seconds": "seconds",
    "images_per_second": "images/s",
    "memory_gib": "GiB",
    "data_wait": "waiting %",
}
SETTINGS = {
    "method": "method",
    "objective": "objective",
    "views": "views",
    "batch_size": "batch",
    "optimizer": "optimizer",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "warmup_epochs": "warm-up",
}
ENOUGH = 0.95
"""Share of the budget that a run must have had to be the best."""


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of the sample (n - 1), which one value does not have."""
    return mean(values), stdev(values) if len(values) > 1 else None


def main_figure(record: Mapping[str, Any]) -> str:
    """Return the figure that rows are sorted by and the chart shows; see `main_of`."""
    return main_of(set().union(*(run.get("final", ()) for run in record["runs"])))


def main_of(figures: Collection[str]) -> str:
    """Return the most telling figure: k-NN if labels or categories, else copies, else views."""
    best = ("knn_top1", "multi_label_knn_map", "copy_map")
    return next((name for name in best if name in figures), "view_map")


def labels(record: Mapping[str, Any]) -> dict[str, str]:
    """Return {name of a variant: its label}, without the words that all begin with."""
    stems = {variant["name"]: variant["recipe_name"] for variant in record["variants"]}
    if len(stems) == 1:
        return {name: name for name in stems}
    if len(set(stems.values())) == 1:
        return {name: name[len(stem) :].lstrip("-") for name, stem in stems.items()}
    words = [stem.split("_") for stem in stems.values()]
    same, most = 0, min(map(len, words)) - 1  # each keeps a word
    while same < most and len({each[same] for each in words}) == 1:
        same += 1
    begin = len("".join(f"{word}_" for word in words[0][:same]))
    return {name: name[begin:] for name in stems}


def rows(record: Mapping[str, Any]) -> list[TableRow]:
    """Return a row for each variant, the best first, and the random encoder last."""
    names, main, headings = labels(record), main_figure(record), learned(record)
    found = [_row(record, variant, names[variant["name"]]) for variant in record["variants"]]
    found.sort(key=lambda row: -row.figures.get(main, (-1.0,))[0])
    random: dict[str, list[dict[str, float]]] = {}
    for each in record["random"]:
        known = random.setdefault(each["variant"], [])
        if "figures" in each:
            known.append(each["figures"] | each.get("evaluated", {}))
    for name, figures in random.items():
        label = RANDOM if len(random) == 1 else f"{RANDOM} of {names[name]}"
        found.append(TableRow(label, _spreads(figures, headings), fair=True, trained=False))
    return found


def columns(found: Sequence[TableRow], figures: Mapping[str, str]) -> list[TableColumn]:
    """Return the columns of these figures, except those without any value."""
    kept: list[TableColumn] = []
    fair = {i: row.by_seed for i, row in enumerate(found) if row.trained and row.fair}
    # A figure that lacks a seed, as its evaluation failed, has another mean than the others'.
    of_seeds = max((len(each) for of in fair.values() for each in of.values()), default=0)
    wished = ranked(figures)
    for name, heading in figures.items():
        known = [row.figures.get(name) for row in found]
        if not any(known):
            continue
        best = None
        if name in wished:
            of_all = {i: of[name] for i, of in fair.items() if len(of.get(name, ())) == of_seeds}
            best = best_of(of_all)
        kept.append(TableColumn(heading, [_text(name, v) if v else "" for v in known], best))
    return kept


def learned(record: Mapping[str, Any]) -> dict[str, str]:
    """Return {figure: heading} of what an encoder learned, with what `--evaluate` has asked for."""
    from evaluation.figures import is_share, name_of  # imports torch, which --help does without

    found = dict(LEARNED)
    for each in (*record["runs"], *record["random"]):
        for name in each.get("evaluated", ()):
            figure, on, where = name.partition(" on ")
            unit = " %" if is_share(figure) else ""
            short = LEARNED.get(figure, f"{name_of(figure)}{unit}")
            found.setdefault(name, f"{short}{on}{where}")
    return {name: text for name, text in found.items() if not figure_of(name).endswith("_ci")}


def ranked(figures: Mapping[str, str]) -> dict[str, str]:
    """Return those of {figure: heading} by which encoders are ranked: of these more is better."""
    from evaluation.figures import more_is_better  # imports torch, which --help does without

    return {name: text for name, text in figures.items() if more_is_better(figure_of(name))}


def figure_of(name: str) -> str:
    """Return the figure of FIGURE, or of FIGURE on SET."""
    return name.partition(" on ")[0]


def settings_columns(record: Mapping[str, Any]) -> tuple[str, list[TableColumn]]:
    """Return a line of the settings that all variants share, and columns of the others."""
    found = [variant["settings"] for variant in record["variants"]]
    alike, apart = [], []
    for name, heading in SETTINGS.items():
        values = [each[name] for each in found]
        cells = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
        if len(set(cells)) > 1:
            apart.append(TableColumn(heading, cells))
        elif cells[0]:
            alike.append(f"{heading} {cells[0]}")
    return f"alike: {', '.join(alike)}" if alike else "", apart


def title(record: Mapping[str, Any]) -> str:
    """Return what was compared, in a line."""
    budget, seeds = record["budget"], len(record["seeds"])
    if "seconds" in budget:
        length = f"{budget['seconds']:g} s of training"
    else:
        length = f"{views_text(budget['image_views'])} image views"
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return f"{length} each, {over}"


def subtitle(record: Mapping[str, Any]) -> str:
    """Return what all had in common, in a line."""
    agreed, around = record["agreed"], record["surroundings"]
    encoder = (agreed.get("encoder") or {}).get("class_path", "").rpartition(".")[2]
    where = around.get("gpu") or f"{around['cores']} CPU cores"
    test = agreed.get("evaluation", {}).get("test")
    parts = [encoder, agreed.get("shards"), test and f"evaluated on {test}", where]
    return ", ".join(str(part) for part in parts if part)


def notes(record: Mapping[str, Any], found: Sequence[TableRow]) -> list[str]:
    """Return the remarks below the table."""
    said = [note for row in found for note in row.notes]
    failed = [each for each in record["random"] if "error" in each]
    said += [f"{RANDOM}, seed {each['seed']}: {each['error']}" for each in failed]
    for name, texts in record["allowed"].items():
        said.append(f"not alike, as --allow_differences says: {name}: {'; '.join(texts)}")
    counts = {v["views_of_first_group"] for v in record["variants"]}
    if len(counts) > 1:
        listed = ", ".join(map(str, sorted(counts)))
        said.append(
            f"view mAP and dim. are of each recipe's own number of views ({listed}): compare them "
            "between equal numbers only"
        )
    said += _places(record)
    if any(not row.trained for row in found):
        said.append(f"{RANDOM}: the weights that the runs of these seeds began with")
    return said


def _places(record: Mapping[str, Any]) -> list[str]:
    """Return where, when and by which commit the runs were trained.

    Nothing if one commit trained all of them on the machine that the title names.
    """
    days: dict[tuple[str, str], list[str]] = {}
    for run in record["runs"]:
        if "final" in run:
            made_on = run.get("made_on") or record["surroundings"]  # older versions said it for all
            place = _machine(made_on), f"commit {str(made_on.get('commit'))[:7]}"
            days.setdefault(place, []).append(str(made_on.get("date"))[:10])
    if len(days) < 2 and all(where == _machine(record["surroundings"]) for where, _ in days):
        return []
    return [
        f"{len(each)} of {len(record['runs'])} runs: {where}, "
        f"{' to '.join(sorted({min(each), max(each)}))}, {commit}"
        for (where, commit), each in days.items()
    ]


def _machine(made_on: Mapping[str, Any]) -> str:
    cores, cpu = made_on.get("cores"), str(made_on.get("cpu"))
    return made_on.get("gpu") or (f"{cores} core{'s' * (cores != 1)} of {cpu}" if cores else cpu)


# ── for a terminal and for Markdown ───────────────────────────────────────────────────────────────


def show(record: Mapping[str, Any], console: Console, against: str | None = None) -> None:
    """Print the tables: learned and cost side by side if there is room, else below each other."""
    found = rows(record)
    gained, cost = columns(found, learned(record)), columns(found, COST)
    names = [f"{row.label}{row.marks}" for row in found]
    quiet = [not row.trained for row in found]
    console.print(Text(f"{title(record)}\n{subtitle(record)}", style="bold"))
    whole = terminal_table(names, quiet, [*gained, *cost])
    free = console.options.update(max_width=sys.maxsize)  # else the wish is cut
    if Measurement.get(console, free, whole).maximum <= console.width:
        console.print(whole)
    else:
        console.print(terminal_table(names, quiet, gained))
        trained = sum(row.trained for row in found)
        short = [TableColumn(c.heading, c.cells[:trained]) for c in cost]
        console.print(terminal_table(names[:trained], quiet[:trained], short))
    if differences := difference_columns(found, ranked(learned(record)), against):
        named, own, cells = differences
        console.print(Text(named, style="bold"))
        console.print(terminal_table(own, [False] * len(own), cells))
    alike, apart = settings_columns(record)
    if apart:
        own = list(labels(record).values())
        console.print(terminal_table(own, [False] * len(own), apart))
    if alike:
        console.print(alike, soft_wrap=True)
    if predicted := prediction_columns(record):
        console.print(Text(f"\n{TITLE}", style="bold"))
        console.print(terminal_table(predicted[0], [False] * len(predicted[0]), predicted[1]))
    for note in notes(record, found):
        console.print(note, soft_wrap=True)


def markdown(
    record: Mapping[str, Any], chart: str | None = None, against: str | None = None
) -> str:
    """Return the same as Markdown."""
    found = rows(record)
    names = [f"{row.label}{row.marks}" for row in found]
    alike, apart = settings_columns(record)
    parts = [
        f"**{title(record)}**  \n{subtitle(record)}",
        markdown_table(names, [*columns(found, learned(record)), *columns(found, COST)]),
    ]
    if differences := difference_columns(found, ranked(learned(record)), against):
        named, own, cells = differences
        parts += [f"**{named}**", markdown_table(own, cells)]
    if chart:
        parts.append(f"![accuracy against seconds and image views]({chart})")
    if apart:
        parts.append(markdown_table(list(labels(record).values()), apart))
    if predicted := prediction_columns(record):
        parts += [f"**{TITLE}**", markdown_table(*predicted)]
    said = [*([alike] if alike else []), *notes(record, found)]
    if said:
        parts.append("\n".join(f"- {note}" for note in said))
    parts.append(f"`{record['command']}`")
    return "\n\n".join(parts) + "\n"


def views_text(count: float) -> str:
    """Return a number of image views with three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def _row(record: Mapping[str, Any], variant: Mapping[str, Any], label: str) -> TableRow:
    mine = [run for run in record["runs"] if run["variant"] == variant["name"]]
    done = [run for run in mine if "final" in run]
    said, marks = [], ""
    short, disturbed = _short(done), {}
    if "seconds" in record["budget"]:  # image views cost as many steps beside other programs
        disturbed = _disturbed(done)
    for mark, shares, words in (
        ("†", short, "used {} of the budget"),
        ("‡", disturbed, "other programs took {} of the processor meanwhile"),
    ):
        if shares:
            marks += f" {mark}"
            which = words.format(", ".join(f"{s:.0%} (seed {seed})" for seed, s in shares.items()))
            said.append(f"{mark} {label}: {which}, so it is not in bold face")
    complete = len(done) == len(record["seeds"])
    if not complete:
        marks += f" ({len(done)} of {len(record['seeds'])})"
    said += [f"{label}, seed {run['seed']}: {run['error']}" for run in mine if "error" in run]
    figures = [figures_of(run) | {name: run[name] for name in COST} for run in done]
    values = _spreads(figures, {**learned(record), **COST})
    seeds = [run["seed"] for run in done]
    by_seed = {
        name: {seed: each[name] for seed, each in zip(seeds, figures, strict=True) if name in each}
        for name in values
    }
    fair = complete and not (short or disturbed)
    return TableRow(label, values, fair, by_seed=by_seed, marks=marks, notes=said)


def figures_of(run: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run's end and `--evaluate` found; of embeddings, what its end did.

    `--evaluate` may have come when its checkpoints were gone, and seen the encoder alone.
    """
    from evaluation.figures import OF_EMBEDDINGS  # imports torch, which --help does without

    later = run.get("evaluated", {})
    of_embeddings = [name for name in OF_EMBEDDINGS if name in run["final"]]
    return run["final"] | {name: later[name] for name in later if name not in of_embeddings}


def share_of_budget(run: Mapping[str, Any]) -> float:
    """Return how much of the budget a run had; until version 0.1.0 that was a forecast of steps."""
    return run.get("budget_used", run["steps"] / run.get("total_steps", run["steps"]))


def _short(done: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return {seed: share of the budget} of runs that had much less of it than it is."""
    shares = {run["seed"]: share_of_budget(run) for run in done}
    return {seed: share for seed, share in shares.items() if share < ENOUGH}


def _disturbed(done: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return {seed: share of the processor} of runs beside which other programs worked."""
    shares = {run["seed"]: run.get("other_programs") or 0.0 for run in done}
    return {seed: share for seed, share in shares.items() if share > DISTURBED}


def _spreads(figures: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, Spread]:
    known = {name: [f[name] for f in figures if name in f] for name in names}
    return {name: spread(values) for name, values in known.items() if values}


def _percent(value: Spread, scale: float = 100) -> str:
    middle, deviation = value
    return f"{scale * middle:.1f}" + ("" if deviation is None else f" ± {scale * deviation:.1f}")


def _text(name: str, value: Spread) -> str:
    if name in FORMATS:
        return FORMATS[name](value)
    from evaluation.figures import is_share  # imports torch, which --help does without

    return _percent(value) if is_share(figure_of(name)) else _percent(value, scale=1)


FORMATS: dict[str, Callable[[Spread], str]] = {
    "steps": lambda value: f"{value[0]:,.0f}",
    "image_views": lambda value: views_text(value[0]),
    "seconds": lambda value: f"{value[0]:,.1f}",
    "images_per_second": lambda value: f"{value[0]:,.0f}",
    "memory_gib": lambda value: f"{value[0]:.1f}",
    "data_wait": lambda value: f"{100 * value[0]:.1f}",
}
