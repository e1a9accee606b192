"""The configuration: every field explained, every impossible setting refused with its remedy."""

import copy
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.method import SimSiam
from model.objective import NTXent
from pipeline.augment import MoCoV2Views
from training.config import Config
from training.settings import parse, parser

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
LEAST = ["--shards", "x", "--run", "r", "--steps", "5"]


def refused(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        parse([*LEAST, *arguments])
    return str(error.value)


def test_parts_of_a_batch_divide_it_and_need_a_method_that_embeds_views_alone() -> None:
    assert "not divisible by micro_batch_size=3; try 2." in refused("--micro_batch_size", "3")
    message = refused("--method", "MoCo", "--micro_batch_size", "4")
    assert "MoCo does not embed its views independently" in message
    config = parse([*LEAST, "--batch_size", "32", "--micro_batch_size", "8"]).config
    assert config.micro_batch_size_per_rank(4) == 2
    with pytest.raises(ValueError, match="not divisible by world_size=3"):
        config.micro_batch_size_per_rank(3)


def test_help_names_and_explains_every_field() -> None:
    text = parser().format_help()
    for name in Config.__dataclass_fields__:
        assert f"--{name}" in text
    for words in ("Samples a step over all ranks", "Views of each sample", "Highest learning rate"):
        assert words in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_how_it_is_run(recipe: Path) -> None:
    config = parse(["--config", str(recipe)]).config
    by_the_clock = "_cpu_" in recipe.stem and config.max_seconds
    assert config.epochs or config.steps or by_the_clock
    head = recipe.read_text().split("\n\n")[0]
    assert f"train.py --config recipes/{recipe.name}" in head
    for word in ("Hardware", "Expected"):
        assert word in head


def test_the_resolved_configuration_parses_to_itself(tmp_path: Path) -> None:
    first = parse([*LEAST, "--views.policy", "MoCoV2Views", "--views.policy.blur", "0.25"])
    saved = tmp_path / "config.yaml"
    saved.write_text(first.yaml())
    second = parse(["--config", str(saved)])
    assert second.resolved == first.resolved
    assert second.changed(first.resolved) == []


@pytest.mark.parametrize(
    ("flag", "name", "Each"),
    [
        ("--method.objective", "NTXent", NTXent),  # its temperature is not SmoothAP's
        ("--method", "SimSiam", SimSiam),  # its embeddings are larger than JointEmbedding's
        ("--views.policy", "MoCoV2Views", MoCoV2Views),  # its blur is weaker than SimCLR's
    ],
)
def test_a_class_that_replaces_another_has_its_own_defaults(flag: str, name: str, Each: type):
    settings: Any = parse([*LEAST, flag, name]).resolved
    for key in flag.removeprefix("--").split("."):
        settings = settings.get("init_args", settings)[key]
    own = {each.name: each.default for each in inspect.signature(Each).parameters.values()}
    own = {key: value for key, value in own.items() if value is not inspect.Parameter.empty}
    found = {key: settings["init_args"][key] for key in own}
    assert found == json.loads(json.dumps(own))  # tuples are lists in YAML


def test_a_command_line_can_be_read_twice():
    command_line = parser()
    parse([*LEAST, "--method", "SimSiam"], command_line=command_line)
    assert parse(LEAST, command_line=command_line).resolved == parse(LEAST).resolved


def test_a_network_of_one_size_names_what_is_to_be_changed(tmp_path: Path) -> None:
    recipe = tmp_path / "multi_crop.yaml"
    recipe.write_text("more_views: [{count: 6, size: 48, policy: SimCLRViews}]")
    words = ["--config", str(recipe), "--method.encoder", "Timm"]
    words += ["--method.encoder.name", "mixer_s32_224"]
    message = refused(*words, "--views.size", "224")
    assert "mixer_s32_224 cannot take views of 48 pixels: Input height (48)" in message
    assert "the size of item 1 of more_views" in message and "--views.size" not in message
    parse([*LEAST, *words, "--views.size", "224", "--more_views", "[]"])  # as it advises


def test_several_view_groups_come_from_yaml(tmp_path: Path) -> None:
    recipe = tmp_path / "multi_crop.yaml"
    policy = "{class_path: SwAVViews, init_args: {small: true}}"
    recipe.write_text(f"more_views:\n- {{count: 6, size: 48, policy: {policy}}}\n")
    config = parse([*LEAST, "--config", str(recipe), "--views.count", "2"]).config
    assert [(g.count, g.size) for g in config.groups] == [(2, 96), (6, 48)]
    assert config.groups[1].policy.crop.area == (0.05, 0.14)


def test_weights_depend_on_the_seed_alone() -> None:
    def weights(*arguments: str) -> torch.Tensor:
        torch.rand(3)  # whatever was drawn before
        method = parse([*LEAST, "--method.encoder", "SmallResNet", *arguments]).config.method
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights("--seed", "1"))


def test_changed_names_the_fields_that_forbid_to_continue() -> None:
    there = parse(LEAST).resolved
    here = parse(
        [
            *LEAST,
            "--learning_rate",
            "3",
            "--method.objective.temperature",
            "0.5",
            "--log_every",
            "1",
        ]
    )
    changed = here.changed(there)
    assert len(changed) == 2
    assert "learning_rate: 0.001 there, 3.0 here" in changed
    assert any("temperature: 0.05 there, 0.5 here" in line for line in changed)


def test_a_set_is_the_same_however_its_place_is_written() -> None:
    saved = parse(["--shards", "data/mine", "--run", "r", "--steps", "5"]).resolved
    for place in ("data/mine/", "./data/mine", str(Path.cwd() / "data/mine")):
        assert not parse(["--shards", place, "--run", "r", "--steps", "5"]).changed(saved)


def test_a_machine_of_another_kind_may_be_told_what_auto_was() -> None:
    words = ["--shards", "x", "--run", "r", "--steps", "5"]
    told = parse([*words, "--device", "cpu", "--mixed_precision", "bf16"])
    assert not told.changed(parse(words).resolved)  # the checkpoint says what it was


def test_a_field_that_is_newer_than_a_run_forbids_nothing_at_its_default() -> None:
    there = {name: value for name, value in parse(LEAST).resolved.items() if name != "compile"}
    assert parse(LEAST).changed(there) == []
    (line,) = parse([*LEAST, "--compile", "true"]).changed(there)
    assert line == "compile: False there, True here"


def test_an_argument_that_is_newer_than_a_run_forbids_nothing_at_its_default() -> None:
    words = [*LEAST, "--method", "MoCo", "--method.encoder", "SmallResNet"]
    words += ["--method.queue_size", "512"]
    there = parse(words).resolved
    del there["views"]["resampling"], there["tuning"]["minibatch"]
    del there["method"]["init_args"]["output_norm"]
    del there["method"]["init_args"]["encoder"]["init_args"]["stem_stride"]
    before = copy.deepcopy(there)
    assert parse(words).changed(there) == []
    (line,) = parse([*words, "--method.output_norm", "true"]).changed(there)
    assert line == "method.init_args.output_norm: False there, True here"
    (line,) = parse([*words, "--views.resampling", "warp"]).changed(there)
    assert line == "views.resampling: auto there, warp here"
    (line,) = parse([*words, "--method.encoder.stem_stride", "2"]).changed(there)
    assert line == "method.init_args.encoder.init_args.stem_stride: 1 there, 2 here"
    assert there == before


def test_figures_of_other_evaluations_or_batches_are_not_a_run_s_own() -> None:
    there = parse([*LEAST, "--evaluation_test", "a"]).resolved
    free = ["--evaluation_test", "b", "--evaluation_neighbours", "200", "--log_every", "3"]
    here = parse([*LEAST, *free])
    assert here.changed(there) == []
    assert sorted(here.judged_otherwise(there)) == [
        "evaluation_neighbours: 20 there, 200 here",
        "evaluation_test: a there, b here",
    ]
    reshaped = ["--evaluation_test", "a", "--batch_size", "32", "--reshape_data", "true"]
    here = parse([*LEAST, *reshaped])
    assert here.changed(there) == []
    assert here.judged_otherwise(there) == ["batch_size: 256 there, 32 here"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "1"], ["epochs=1.0 and steps=5", "by one of them"]),
        (["--epochs", ".inf"], ["epochs=inf", "must be a number"]),
        (["--clip_gradient_norm", ".nan"], ["clip_gradient_norm=nan", "must be a number"]),
        (["--warmup_epochs", ".inf"], ["warmup_epochs=inf", "must be a number"]),
        (["--batch_size", "1"], ["batch_size=1", "--batch_size 2"]),
        (["--method.encoder", "Timm", "--method.encoder.name", "mixer_s32_224"], ["--views.size"]),
        (["--method.encoder", "Timm", "--method.encoder.name", "resnet_50"], ["resnet50", "timm"]),
        (["--views.count", "1"], ["1 view a sample", "--views.count 2"]),
        (["--views.size", "4"], ["size=4", "8 pixels or more"]),
        (["--batch_size", "0"], ["batch_size=0", "above 0"]),
        (["--momentum", "1"], ["momentum=1.0", "below 1"]),
        (["--evaluation_train", "x"], ["evaluation_train=x", "--evaluation_test"]),
        (["--evaluation_queries", "x"], ["evaluation_queries=x", "needs both", "or neither"]),
        (
            ["--evaluation_queries", "x", "--evaluation_references", "y"],
            ["evaluation_queries=x", "--evaluation_test"],
        ),
        (["--method", "QKIteration"], ["4 views in one group", "--views.count 2"]),
        (["--mixed_precision", "fp16", "--device", "cpu"], ["fp16 needs a GPU", "bf16"]),
        (["--batchsize", "3"], ["unrecognized arguments", "nearest flag is --batch_size."]),
        (["--batch-size", "3"], ["unrecognized arguments", "nearest flag is --batch_size."]),
        (["--views.cuont", "3"], ["nearest flag is --views.count."]),
        (["--method.encoder.dept", "3"], ["method.encoder.dept", "of ResNet", "nearest is depth"]),
        (["--steps", "many"], ["steps=many", "a whole number or none"]),
        (["--method.encoder.stem", "thin"], ["method.encoder.stem=thin", "one of large, small."]),
        (["--tuning.decode", "tpu"], ["tuning.decode=tpu", "one of gpu, cpu, cache or none"]),
        (["--views.policy.area", "3"], ["views.policy.area=3", "a list"]),
        (["--method.hidden_size", "none"], ["method.hidden_size=null", "needs a value"]),
        (["--method.objective", "os.system"], ["method.objective=os.system", "one of"]),
        (
            ["--method.objective", "SmothAP"],
            ["method.objective=SmothAP", "one of", "NTXent", "The nearest is SmoothAP"],
        ),
        (["--views.policy", "SimCLRR"], ["views.policy=SimCLRR", "one of", "MoCoV2Views"]),
        (["--method.objective.temperature", "0"], ["temperature=0", "above 0"]),
        (["--config", "missing.yaml"], ["missing.yaml", "does not exist"]),
        (["--optimizer", "adam"], ["optimizer=adam", "one of sgd, adamw, lars"]),
    ],
)
def test_an_impossible_setting_is_refused(arguments: list[str], words: list[str]) -> None:
    message = refused(*arguments)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    message = refused("--device", "gpu")
    assert "finds no GPU" in message and "--device auto" in message


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    config = parse([*LEAST, "--batch_size", "1000"]).config
    with pytest.raises(
        ValueError, match="batch_size=1000 is not divisible by world_size=3; try 999"
    ):
        config.batch_size_per_rank(3)


def test_a_switch_can_be_turned_off_by_name_and_values_are_left_alone() -> None:
    config = parse([*LEAST, "--no_self_check", "--no_check_memory"]).config
    assert not config.self_check and not config.check_memory and config.check_shards
    # The same letters, five characters in.
    kept = parse(["--shards", "data/compile", "--run", "runs/self_check", "--steps", "5"]).config
    assert kept.shards == "data/compile" and str(kept.run) == "runs/self_check"
    assert kept.self_check and not kept.compile


def test_null_is_no_value_of_a_field_that_needs_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    needing = {str(f.type): f.name for f in fields(Config) if "None" not in str(f.type)}
    assert needing.keys() > {"int", "float", "bool", "list[ViewGroup]", "Method"}
    for name in needing.values():  # one of each type
        recipe.write_text(yaml.safe_dump({"shards": "x", "run": "r", "steps": 5, name: None}))
        with pytest.raises(ValueError):
            parse(["--config", str(recipe)])


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16"), ("avx512f avx512_bf16x", "no")],
)
def test_a_cpu_that_multiplies_bf16_is_meant_to(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse([*LEAST, "--device", "cpu"]).config
    monkeypatch.setattr(Path, "read_text", lambda _: f"flags\t\t: {flags}\n")
    assert config.precision() == precision
