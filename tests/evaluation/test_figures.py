"""What figures are called, and which of them compare."""

import pytest

from evaluation.figures import FAMILIES, NAMES, is_share, more_is_better, name_of


@pytest.mark.parametrize(
    ("figure", "name", "share", "better"),
    [
        ("knn_top1", "k-NN", True, True),
        ("few_shot_5_ci", "few-shot, 5 images a class, half the 95 % interval", True, False),
        ("linear_l2", "linear probe, L2 strength", False, False),
        ("fine_tuned_0.5_top1", "fine-tuned on 0.5 % of the labels", True, True),
        ("fine_tuned_10_sd", "fine-tuned on 10 % of the labels, sd of the draws", True, False),
        ("head_tuned_1_rate", "linear layer on 1 % of the labels, learning rate", False, False),
        ("fine_tuned_1_loss", "fine_tuned_1_loss", True, False),  # none that is known
        ("loss", "loss", True, False),
    ],
)
def test_a_figure_has_a_name_and_says_whether_more_is_better(
    figure: str, name: str, share: bool, better: bool
) -> None:
    assert (name_of(figure), is_share(figure), more_is_better(figure)) == (name, share, better)


def test_no_figure_is_without_a_name() -> None:
    for figure in (*NAMES, *(family.replace("#", "1") for family in FAMILIES)):
        assert name_of(figure) != figure or figure in ("alignment", "uniformity"), figure
