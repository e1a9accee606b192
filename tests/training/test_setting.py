"""A field of the configuration says what may change about it, or the program does not start."""

from dataclasses import dataclass, field, fields

import pytest

from pipeline.setting import setting, settings_of
from pipeline.tuning import Tuning
from training.config import Config
from training.settings import RULES, resume_rule


def test_every_field_of_a_run_says_what_may_change_about_it() -> None:
    names = {each.name for each in fields(Config)}
    names |= {f"tuning.{each.name}" for each in fields(Tuning)}
    assert set(RULES) == names
    for name, rule in RULES.items():
        assert rule["resume"] in ("same", "reshaped", "free"), name
        assert rule["compare"] in ("set", "own"), name
        assert rule["compare"] == "set" or not rule["flag"], f"{name}: a flag of what is not set"


def test_a_field_that_says_nothing_is_refused_by_name() -> None:
    @dataclass
    class Inner:
        said: int = setting(1, resume="same", compare="own")
        silent: int = 2

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)

    with pytest.raises(TypeError, match=r"Inner.silent does not say .* pipeline.setting.setting"):
        settings_of(Outer)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("log_every", "free"),
        ("tuning.threads", "free"),
        ("tuning.decode", "reshaped"),
        ("tuning.hw_decoder_load", "same"),
        ("batch_size", "reshaped"),
        ("method.init_args.objective.init_args.temperature", "same"),
        ("views.size", "same"),
        ("a_field_that_is_no_more", "same"),
    ],
)
def test_a_dotted_name_has_the_rule_of_its_own_field_or_of_the_one_that_holds_it(
    name: str, rule: str
) -> None:
    assert resume_rule(name) == rule


def test_its_bounds_are_checked_where_they_are_said() -> None:
    bounded = {name for name, rule in RULES.items() if rule["above"] is not None}
    assert {"batch_size", "steps", "learning_rate"} <= bounded
