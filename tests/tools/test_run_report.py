"""The report: its numbers against brute force, its page against hostile names, and in a browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from evaluation.neighbours import nearest_others
from shards import durable
from shards.layout import ShardSet
from shards.source.source import Sample
from shards.writing.prepare import Preparation
from shards.writing.write import write
from tests.conftest import MakeShardSet, Pictures
from tests.program import RECIPE
from tests.training.test_installed import ended
from tools.report import __main__ as report
from tools.report import configuration, curves, embedding_map, findings, insight, run_facts
from tools.report.pictures import sprite
from tools.report.watched_run import WatchedRun
from training import exported
from training.command_line import call
from training.monitor import METRICS
from training.run import checkpoint, run_folder, state_file
from training.settings import parse

HOSTILE = '</script><img src="http://x.test/a.png" onerror="alert(1)">'
MakeRun = Callable[..., Path]


class HostilePictures(Pictures):
    """Classes that would do harm if they were read as HTML; keys are made of letters and digits."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.classes = [f"{HOSTILE}{label}" for label in range(10)]


class Unlabelled(Pictures):
    """Without classes and labels."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.classes = []

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), label=-1)


@pytest.fixture(scope="module")
def hostile_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("hostile") / "shards"
    return write(
        HostilePictures(24), out, samples_per_shard=8, preparation=Preparation(encoding="png")
    )


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that makes the folder of a run as training leaves it, without training."""

    def make(name: str, shard_set: ShardSet, *flags: str, saved: bool = True) -> Path:
        run, recipe = tmp_path / name, tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE)
        words = ["--config", str(recipe), "--shards", str(shard_set.root), "--run", str(run)]
        settings = parse([*words, "--steps", "8", "--device", "cpu", *flags])
        run.mkdir()
        (run / run_folder.CONFIG).write_text(settings.yaml())
        lines = [step(number) for number in range(1, 9)]
        (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if saved:
            save(run, settings.config.method.state_dict(), step=8)
        return run

    return make


def step(number: int, **more: float) -> dict[str, float]:
    """A record of a step."""
    figures = {"loss": 1 / number, "batch_ap": 0.1 * number, "learning_rate": 0.01}
    figures |= {"images_per_second": 10.0, "data_wait": 0.5, "seconds": 2.0 * number}
    return {"step": number, "epoch": number / 4, **figures, **more}


def save(run: Path, state: dict[str, torch.Tensor], *, step: int) -> None:
    """Write a checkpoint."""
    parts: dict[str, Any] = {checkpoint.METHOD: state, checkpoint.OPTIMIZER: {}}
    for name, part in {**parts, checkpoint.rank_file(0): {}}.items():
        checkpoint.write_part(run, step, name, state_file.pieces(part))
    facts = {
        "world_size": 1,
        "machine": "cpu, no",
        "seconds": 2.0 * step,
        "versions": {"torch": "2"},
    }
    checkpoint.commit(run, step, facts)


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP compiles for a quarter of a minute; one slow test has it."""
    monkeypatch.setattr(embedding_map, "umap", lambda h_NF: embedding_map.pca(h_NF)[0] * 2)


def page_of(*runs: Path, more: tuple[str, ...] = ()) -> str:
    """The page that the command writes."""
    out = runs[0].parent / "report.html"
    call(report.main, [*map(str, runs), "--out", str(out), "--samples", "16", *more])
    return out.read_text()


def data_of(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def text_of(page: str) -> str:
    """What a person reads."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


class Tags(HTMLParser):
    """Every tag of a page with its attributes, as a browser would read them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def test_a_thinned_curve_is_the_mean_of_neighbouring_points() -> None:
    points = [(float(n), 2.0 * n, float(n % 3)) for n in range(600)]
    thin = curves.thinned(points, most=200)  # three points each
    assert thin == [(3.0 * n + 1, 6.0 * n + 2, 1.0) for n in range(200)]
    assert curves.thinned(points[:7], most=200) == points[:7]


def test_what_is_not_finite_is_a_gap_and_moves_no_mean() -> None:
    found = curves.thinned([(0, 0, 1.0), (1, 1, np.nan), (2, 2, np.inf), (3, 3, np.nan)], most=2)
    assert found[0] == (0, 0, 1.0) and not np.isfinite(found[1][-1])
    (loss, *_) = curves.curves([step(1), step(2, loss=np.nan)])
    assert loss["value"] == [1.0, None]


def test_an_evaluation_lies_between_the_seconds_of_its_steps() -> None:
    evaluation = {"step": 3, "evaluation": "online", "knn_top1": 0.25}
    found = {s["key"]: s for s in curves.curves([step(2), evaluation, step(6)])}
    assert found["knn_top1"]["seconds"] == [2.0 * 3]
    assert found["knn_top1"]["value"] == [0.25] and found["knn_top1"]["evaluation"]
    assert found["loss"]["step"] == [2, 6] and not found["loss"]["evaluation"]


def test_pca_is_scikit_learn_s() -> None:
    h_NF = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    places, shares = embedding_map.pca(h_NF)
    theirs = PCA(2)
    expected = theirs.fit_transform(F.normalize(h_NF.double(), dim=1).numpy())
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, atol=1e-6)
    assert (places[np.abs(places).argmax(axis=0), [0, 1]] > 0).all()


@pytest.mark.slow
def test_umap_keeps_clusters_apart_and_is_the_same_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 8).repeat_interleave(20, dim=0)
    h_NF = centres + 0.05 * torch.randn(60, 8, generator=generator)
    places = embedding_map.umap(h_NF)
    nearest = nearest_others(torch.cat([h_NF], dim=1), count=1).position_NK[:, 0]
    distance = torch.cdist(torch.tensor(places), torch.tensor(places)).fill_diagonal_(torch.inf)
    assert (distance.argmin(dim=1) // 20 == nearest // 20).all()
    np.testing.assert_array_equal(places, embedding_map.umap(h_NF))


def test_the_hardest_queries_are_those_of_the_definition() -> None:
    V, A, D = 3, 9, 4
    z_VAD = torch.randn(V, A, D, generator=torch.Generator().manual_seed(1))
    z_QD = F.normalize(z_VAD.flatten(0, 1), dim=-1).double()
    ap: list[float] = []
    for q in range(V * A):
        others = [g for g in range(V * A) if g != q]
        right = [g % A == q % A for g in others]
        ap.append(float(average_precision_score(right, [float(z_QD[q] @ z_QD[g]) for g in others])))
    found, mean = findings.hardest_queries(z_VAD, count=4, first=5)
    assert mean == pytest.approx(np.mean(ap), abs=1e-6)
    lowest = {a: min(range(V), key=lambda v, a=a: ap[v * A + a]) * A + a for a in range(A)}
    expected = sorted(lowest.values(), key=lambda q: ap[q])[:4]
    assert [each.query for each in found] == expected
    for each in found:
        order = sorted(
            set(range(V * A)) - {each.query}, key=lambda g: -float(z_QD[each.query] @ z_QD[g])
        )
        assert each.ranking == order[:5]
        assert each.own == [(g, n) for n, g in enumerate(order, 1) if g % A == each.query % A]
        assert each.average_precision == pytest.approx(ap[each.query], abs=1e-6)


def test_false_neighbours_are_the_nearest_of_another_label() -> None:
    generator = torch.Generator().manual_seed(2)
    h_NF = torch.randn(30, 5, generator=generator)
    label_N = torch.randint(-1, 3, (30,), generator=generator)
    cosine = F.cosine_similarity(h_NF[:, None], h_NF[None], dim=-1).fill_diagonal_(-2)
    wrong, judged = {}, 0
    for n in range(30):
        other = int(cosine[n].argmax())
        if label_N[n] >= 0 and label_N[other] >= 0:
            judged += 1
            if label_N[n] != label_N[other]:
                wrong[n] = other
    found = findings.false_neighbours(nearest_others(h_NF, count=3), label_N, 100)
    assert found is not None and wrong
    assert found.share == pytest.approx(len(wrong) / judged)
    assert {frozenset(pair[:2]) for pair in found.pairs} == {frozenset(p) for p in wrong.items()}
    scores = [score for *_, score in found.pairs]
    assert scores == sorted(scores, reverse=True)
    assert sum(times for *_, times in found.confusions) == len(wrong)
    nothing = torch.full_like(label_N, -1)
    assert findings.false_neighbours(nearest_others(h_NF, count=1), nothing, 5) is None


def test_the_first_of_every_class_is_shown_before_the_second_of_any() -> None:
    label_N = torch.tensor([1, 1, 0, 1, 2, 0])
    assert findings.shown_queries(label_N, 4) == [0, 2, 4, 1]
    assert findings.shown_queries(torch.full((5,), -1), 3) == [0, 1, 2]


def test_a_sprite_holds_every_picture_at_its_place() -> None:
    shades = torch.arange(7, dtype=torch.uint8).mul(36).view(7, 1, 1, 1).expand(7, 3, 16, 16)
    address, columns, size = sprite(shades, 48)
    import base64
    from io import BytesIO

    sheet = np.asarray(
        Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L")
    )
    for number in range(7):
        top, left = number // columns * size, number % columns * size
        assert abs(int(sheet[top + 8, left + 8]) - 36 * number) < 6


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def test_changes_are_what_the_flags_say_and_nothing_else() -> None:
    given = ["--shards", "s", "--run", "r", "--steps", "5"]
    plain = {c.name for c in configuration.changes(parse(given).resolved)}
    assert plain == {"shards", "run", "steps"}
    flags = {
        "method.objective": "NTXent",
        "method.objective.temperature": "0.3",
        "method.encoder": "SmallResNet",
        "method.encoder.width": "8",
        "views.policy.blur": "0.0",
        "views.count": "2",
        "compile": "true",
        "learning_rate": "0.5",
        "tuning.threads": "3",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    found = {c.name: c for c in configuration.changes(parse([*given, *words]).resolved)}
    assert {name: found[name].value for name in found.keys() - plain} == flags
    assert found["views.count"].default == "4" and found["method.objective"].default == "SmoothAP"


def test_a_configuration_makes_nothing_be_imported() -> None:
    saved = {"method": {"class_path": "antigravity.Method", "init_args": {"a": 1}}}
    found = {c.name: c.value for c in configuration.changes(saved)}
    assert found == {"method": "Method", "method.a": "1"}
    import sys

    assert "antigravity" not in sys.modules


def test_names_are_the_shortest_ends_that_differ() -> None:
    runs = [Path("/x/a/one"), Path("/x/b/one"), Path("/x/two")]
    assert run_facts.names(runs) == ["a/one", "b/one", "two"]
    with pytest.raises(ValueError, match="twice"):
        run_facts.names([Path("/x/a"), Path("/x/b/../a")])


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def test_hostile_names_stay_texts_and_nothing_is_fetched(
    hostile_set: ShardSet, make_run: MakeRun, no_umap: None
) -> None:
    place = str(hostile_set.root)
    run = make_run("<i>run", hostile_set, "--evaluation_test", place, "--evaluation_train", place)
    with (run / METRICS).open("a") as file:
        file.write(json.dumps({"step": 8, "evaluation": "final", "knn_top1": 0.5}) + "\n")
    page = page_of(run)
    tags = Tags(page).found
    assert [a for t, a in tags if t == "script" and (set(a) - {"type", "id"})] == []
    assert sum(t == "script" for t, _ in tags) == 3
    assert not [name for _, a in tags for name in a if name.startswith("on")]
    for tag, attributes in tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#")), (tag, value[:60])
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    body = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.S)
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?\s*https?:""", body.replace("&#34;", "‹"))
    mapped = data_of(page)["maps"][0]
    assert mapped["classes"]["3"] == f"{HOSTILE}3"
    assert len(mapped["label"]) == 16 == len(mapped["maps"]["UMAP"]["x"])
    text = text_of(page)
    assert "random encoder" in text and "50.0 %" in text
    for heading in ("Nearest neighbours", "False neighbours", "Hardest queries", "Hardware"):
        assert heading in text
    assert "needs a checkpoint" not in text and len(page) < 10e6


def test_a_run_without_evaluation_set_shows_its_training_set_and_says_so(
    make_shard_set: MakeShardSet,
    make_run: MakeRun,
    no_umap: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run("run", make_shard_set(12))
    with (run / METRICS).open("ab") as file:
        file.write(b'\x00\xff{"step"\n{"step": 9}\n[1]\n{"step": true}\n')
        file.write(b'{"step": 10, "loss": "x", "seconds": []}\n')
    page = page_of(run)
    text = text_of(page)
    assert "no evaluation set: these are the first 12 images of the set that it trains on" in text
    assert "2 lines of metrics.jsonl cannot be read" in text
    assert "There is no evaluation yet" in text
    assert data_of(page)["runs"][0]["curves"][0]["step"] == list(range(1, 9))
    assert "2 lines of metrics.jsonl" in capsys.readouterr().out


def test_a_run_without_labels_has_neighbours_and_no_colours(
    tmp_path: Path, make_run: MakeRun, no_umap: None
) -> None:
    shard_set = write(
        Unlabelled(12), tmp_path / "flat", samples_per_shard=8, preparation=Preparation()
    )
    page = page_of(make_run("run", shard_set, "--evaluation_test", str(shard_set.root)))
    assert data_of(page)["maps"][0]["classes"] == {}
    text = text_of(page)
    assert "They need labels" in text and "✗ is of another" not in text
    assert 'class="tile "' in page  # neighbours, neither right nor wrong


def test_before_the_first_checkpoint_the_curves_are_there(
    make_shard_set: MakeShardSet, make_run: MakeRun
) -> None:
    run = make_run("run", make_shard_set(12), saved=False)
    text = text_of(page_of(run))
    assert "no map, neighbours, hardest queries: there is no checkpoint yet" in text
    assert "not finished: step 8" in text
    (run / METRICS).unlink()
    assert "No step has been recorded yet" in text_of(page_of(run))


def test_of_another_version_s_run_the_curves_are_left(
    make_shard_set: MakeShardSet, make_run: MakeRun
) -> None:
    run = make_run("run", make_shard_set(12))
    text = (run / run_folder.CONFIG).read_text()
    (run / run_folder.CONFIG).write_text(text.replace("encoder.SmallResNet", "encoder.Gone"))
    page = page_of(run)
    assert len(data_of(page)["runs"][0]["curves"]) == 5 and not data_of(page)["maps"]
    for part in ("settings beside the defaults", "views", "map, neighbours, hardest queries"):
        assert f"no {part}: " in text_of(page)
    assert "encoder.Gone" in text_of(page)  # the whole configuration


def test_several_runs_share_their_pictures_and_differ_in_marked_settings(
    make_shard_set: MakeShardSet, make_run: MakeRun, no_umap: None
) -> None:
    shard_set = make_shard_set(24)
    place = ["--evaluation_test", str(shard_set.root)]
    runs = [
        make_run("one", shard_set, *place),
        make_run("two", shard_set, *place, "--learning_rate", "0.5", "--views.size", "32"),
    ]
    page = page_of(*runs)
    data = data_of(page)
    assert [run["name"] for run in data["runs"]] == ["one", "two"]
    assert len(data["maps"]) == 2 and len(data["sprites"]) == 1
    marked = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>', page)
    assert marked == ["run", "views.size", "learning_rate"]


def test_an_exported_encoder_is_enough_for_a_map(
    make_shard_set: MakeShardSet, make_run: MakeRun, no_umap: None
) -> None:
    shard_set = make_shard_set(12)
    run = make_run("run", shard_set, saved=False)
    settings = parse(["--config", str(run / run_folder.CONFIG)])
    exported.export(settings, shard_set, settings.config.method.encoder, step=8)
    page = page_of(run)
    assert len(data_of(page)["maps"]) == 1
    assert "no hardest queries" in text_of(page) and "finished: step 8" in text_of(page)


def test_networks_are_asked_again_only_after_a_new_checkpoint(
    make_shard_set: MakeShardSet, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def counted(path: Path, **_: object) -> insight.Insight:
        asked.append(path)
        return insight.Insight(step=8)

    monkeypatch.setattr("tools.report.watched_run.insight", counted)
    run = make_run("run", make_shard_set(12))
    watched = WatchedRun(run, "run", samples=8, beside_random=False, device="cpu")
    first = watched.part(lambda _: None)
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(step(9)) + "\n")
    second = watched.part(lambda _: None)
    assert (first.facts.last["step"], second.facts.last["step"], len(asked)) == (8, 9, 1)
    assert first.sheet.startswith("data:image/webp") and first.sheet is second.sheet
    save(run, parse(["--config", str(run / run_folder.CONFIG)]).config.method.state_dict(), step=9)
    watched.part(lambda _: None)
    assert len(asked) == 2


def test_what_is_being_done_is_told_of_runs_of_any_name(
    make_shard_set: MakeShardSet, make_run: MakeRun, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "[").mkdir(parents=True)
    page = page_of(*(make_run(f"{n}/[/x]", make_shard_set(12), saved=False) for n in ("a", "b")))
    assert "no views" not in text_of(page) and "closing tag" not in page


def test_a_watched_run_is_written_again_until_it_has_finished(
    make_shard_set: MakeShardSet, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tools.report.watched_run.insight", lambda *_, **__: insight.Insight(step=8)
    )
    run = make_run("run", make_shard_set(12))
    refreshes = []

    def finish(seconds: float) -> None:
        refreshes.append('http-equiv="refresh"' in (run.parent / "report.html").read_text())
        durable.replace(run / exported.NAME, [b"x"])

    monkeypatch.setattr("time.sleep", finish)
    page = page_of(run, more=("--watch", "30"))
    assert refreshes == [True] and 'http-equiv="refresh"' not in page


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ([], ["no run"]),
        (["nowhere"], ["nowhere does not exist"]),
        (["RUN", "--samples", "1"], ["samples=1"]),
        (["RUN", "--watch", "0"], ["watch=0"]),
        (["RUN", "--out", "nowhere/report.html"], ["nowhere is no folder"]),
        (["RUN", "RUN"], ["twice"]),
        (["RUN", "--device", "gpu"], ["device=gpu", "no GPU here"]),
    ],
)
def test_wrong_words_are_refused(
    words: list[str],
    pieces: list[str],
    make_shard_set: MakeShardSet,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.config.gpu_available", lambda: False)
    run = str(make_run("run", make_shard_set(12), saved=False))
    with pytest.raises(ValueError) as refused:
        call(report.main, [run if word == "RUN" else word for word in words])
    for piece in pieces:
        assert piece in str(refused.value)


@pytest.mark.parametrize("package", ["plotly", "umap"])
def test_a_missing_package_names_its_group(package: str, tmp_path: Path) -> None:
    code, out, err = ended(package, ["-m", "tools.report", "x"], tmp_path)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"the package {package} is not installed" in err and "'.[report]'" in err


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which is not installed")
def test_a_browser_draws_the_page_without_an_error(
    hostile_set: ShardSet, make_run: MakeRun, no_umap: None, tmp_path: Path
) -> None:
    page = page_of(make_run("run", hostile_set, "--evaluation_test", str(hostile_set.root)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=60000", "--dump-dom"]
    ran = subprocess.run(
        [str(CHROMIUM), *options, (tmp_path / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert 'data-drawn="yes"' in ran.stdout
    charts = re.findall(r'class="(?:plot )?js-plotly-plot"', ran.stdout)
    assert len(charts) == 5 + 1  # one for each figure of a step, and a map
    legend = re.findall(r"<button.*?</button>", ran.stdout)
    assert len(legend) == len(data_of(page)["maps"][0]["classes"]) > 5
    assert all("&lt;/script&gt;&lt;img" in button for button in legend)
    assert not [name for _, a in Tags(ran.stdout).found for name in a if name.startswith("on")]
