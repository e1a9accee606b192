"""The linear probe against scikit-learn, and the walls between fit, validation and test."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from evaluation import linear
from evaluation.features import Features


def features(N: int, *, seed: int, F: int = 12, apart: float = 1.0) -> Features:
    """Four overlapping clusters in correlated features of very different scales."""
    fixed = torch.Generator().manual_seed(99)
    centre_KF = apart * torch.randn(4, F, generator=fixed)
    mix_FF = torch.randn(F, F, generator=fixed)
    scale_F = torch.logspace(-3, 3, F)
    generator = torch.Generator().manual_seed(seed)
    class_N = torch.randint(0, 4, (N,), generator=generator)
    h_NF = centre_KF[class_N] + torch.randn(N, F, generator=generator) @ mix_FF / F**0.5 + 5
    return Features(h_NF * scale_F, class_N, torch.arange(N))


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_fit_equals_scikit_learn_at_equal_strength(l2: float):
    train, test = features(400, seed=0), features(500, seed=1)
    scaler = StandardScaler().fit(train.h_NF.double().numpy())
    oracle = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-10, max_iter=10_000)
    oracle.fit(scaler.transform(train.h_NF.double().numpy()), train.label_N.numpy())

    probe = linear.fit(train.h_NF, train.label_N, classes=4, l2=l2)
    np.testing.assert_allclose(probe.weight_KF.numpy(), oracle.coef_, atol=2e-3)
    bias_K = probe.bias_K - probe.bias_K.mean()  # free up to a constant
    np.testing.assert_allclose(bias_K.numpy(), oracle.intercept_, atol=2e-3)
    expected = oracle.predict(scaler.transform(test.h_NF.double().numpy()))
    assert (probe.predict(test.h_NF).numpy() == expected).mean() >= 0.998


def test_a_warm_start_changes_the_way_but_not_the_result():
    train = features(400, seed=0)
    strong = linear.fit(train.h_NF, train.label_N, classes=4, l2=1.0)
    warm = linear.fit(train.h_NF, train.label_N, classes=4, l2=1e-2, start=strong)
    cold = linear.fit(train.h_NF, train.label_N, classes=4, l2=1e-2)
    torch.testing.assert_close(warm.weight_KF, cold.weight_KF, atol=2e-3, rtol=0)


def test_run_reports_the_accuracy_of_a_refit_on_all_of_train():
    train, test = features(300, seed=2, apart=0.3), features(400, seed=3, apart=0.3)
    found = linear.run(train, test)
    assert found["linear_l2"] in linear.GRID
    probe = linear.fit(train.h_NF, train.label_N, classes=4, l2=found["linear_l2"])
    expected = (probe.predict(test.h_NF) == test.label_N).float().mean().item()
    assert found["linear_top1"] == pytest.approx(expected) and 0.5 < expected < 1


def test_the_test_set_does_not_choose():
    train, test = features(120, seed=4, F=60, apart=0.2), features(200, seed=5, F=60, apart=0.2)
    shuffled = test.label_N[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    found = linear.run(train, test)
    other = linear.run(train, Features(test.h_NF.flip(0), shuffled, test.id_N))
    assert found["linear_l2"] == other["linear_l2"]
    assert found["linear_top1"] > other["linear_top1"]


def test_the_strength_has_the_least_cross_entropy_of_held_out_rows_by_scikit_learn():
    train = features(150, seed=6, F=60, apart=0.2)  # few samples: the strength matters
    fold_N = linear.folds_of(train.label_N, train.id_N, count=5, seed=0).numpy()
    h, label = train.h_NF.double().numpy(), train.label_N.numpy()
    losses = dict.fromkeys(linear.GRID, 0.0)
    for fold in range(5):
        held = fold_N == fold
        scaler = StandardScaler().fit(h[~held])  # the held-out rows do not enter mean and std
        for l2 in linear.GRID:
            oracle = LogisticRegression(C=1 / (l2 * (~held).sum()), tol=1e-8, max_iter=10_000)
            oracle.fit(scaler.transform(h[~held]), label[~held])
            predicted = oracle.predict_proba(scaler.transform(h[held]))
            losses[l2] += log_loss(label[held], predicted, labels=range(4)) * held.sum()
    chosen = linear.run(train, train)["linear_l2"]
    assert losses[chosen] <= min(losses.values()) * (1 + 2 * linear.GAIN)
    assert linear.GRID[0] > chosen > linear.GRID[-1]
    assert max(losses.values()) > 1.1 * min(losses.values())


def test_held_out_rows_enter_no_fit_but_the_last(monkeypatch: pytest.MonkeyPatch):
    train, test = features(100, seed=12), features(50, seed=13)
    fits: list[torch.Tensor | None] = []

    def recorded(h_NF: torch.Tensor, class_N: torch.Tensor, **settings) -> linear.Probe:
        assert h_NF is train.h_NF, "a copy of the features"
        fits.append(settings.get("chosen_N"))
        return fit(h_NF, class_N, **settings)

    fit = linear.fit
    monkeypatch.setattr(linear, "fit", recorded)
    chosen = linear.run(train, test)["linear_l2"]
    fold_N = linear.folds_of(train.label_N, train.id_N, count=5, seed=0)
    assert len(fits) % 5 == 1 and fits[-1] is None
    assert len(fits) > 5 * (linear.GRID.index(chosen) + 1)
    for number, fitted_N in enumerate(fits[:-1]):
        expected_N = (fold_N != number % 5).nonzero()[:, 0]
        assert fitted_N is not None and torch.equal(fitted_N, expected_N)


def test_of_many_rows_fewer_folds_are_asked(monkeypatch: pytest.MonkeyPatch):
    train, folds = features(100, seed=12), set()
    fit = linear.fit

    def recorded(*given, **settings) -> linear.Probe:
        chosen_N = settings.get("chosen_N")
        folds.add(None if chosen_N is None else tuple(chosen_N.tolist()))
        return fit(*given, **settings)

    monkeypatch.setattr(linear, "fit", recorded)
    for enough, asked in ((100, 5), (50, 3), (20, 1), (1, 1)):
        folds.clear()
        monkeypatch.setattr(linear, "ENOUGH", enough)
        linear.run(train, train)
        assert len(folds - {None}) == asked


def test_the_rows_that_are_not_chosen_and_the_size_of_parts_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
):
    train = features(700, seed=15)
    chosen_N = torch.arange(0, 700, 2)
    apart = linear.fit(train.h_NF[chosen_N], train.label_N[chosen_N], classes=4, l2=1e-2)
    h_NF = train.h_NF.clone()
    h_NF[1::2] = torch.nan
    monkeypatch.setattr(linear, "CPU_NUMBERS", 12)  # parts of 64 rows
    monkeypatch.setattr(linear, "COPIED", 0)
    found = linear.fit(h_NF, train.label_N, classes=4, l2=1e-2, chosen_N=chosen_N)
    torch.testing.assert_close(found.weight_KF, apart.weight_KF, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std_F, apart.std_F)
    assert torch.equal(found.predict(train.h_NF), apart.predict(train.h_NF))


def test_features_that_say_nothing_get_the_strongest_penalty():
    train = features(150, seed=14, apart=0.0)
    assert linear.run(train, train, l2_grid=(1e-4, 10.0, 1e-3))["linear_l2"] == 10.0


def test_folds_spread_every_class_by_id_and_seed():
    class_N = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3] * 2 + [4])
    id_N = torch.arange(65) * 7
    fold_N = linear.folds_of(class_N, id_N, count=5, seed=0)
    counts = [fold_N[class_N == k].bincount(minlength=5).tolist() for k in range(4)]
    assert counts == [[10] * 5, [2] * 5, [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert fold_N[-1] == -1, "the only row of its class"
    order_N = torch.randperm(65, generator=torch.Generator().manual_seed(1))
    again_N = linear.folds_of(class_N[order_N], id_N[order_N], count=5, seed=0)
    assert torch.equal(again_N, fold_N[order_N])
    assert not torch.equal(fold_N, linear.folds_of(class_N, id_N, count=5, seed=1))


def test_split_takes_the_same_share_of_every_class_by_id_and_seed():
    class_N = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    id_N = torch.arange(63) * 7
    held_N = linear.split(class_N, id_N, fraction=0.2, seed=0)
    assert [int(held_N[class_N == k].sum()) for k in range(4)] == [10, 2, 1, 0]
    # The samples in another order: the same ids are held out.
    order_N = torch.randperm(63, generator=torch.Generator().manual_seed(1))
    again_N = linear.split(class_N[order_N], id_N[order_N], fraction=0.2, seed=0)
    assert set(id_N[order_N][again_N].tolist()) == set(id_N[held_N].tolist())
    assert not torch.equal(held_N, linear.split(class_N, id_N, fraction=0.2, seed=1))


def test_nothing_to_hold_out_is_refused():
    single = torch.arange(3), torch.arange(3)
    with pytest.raises(ValueError, match="3 classes with one sample each"):
        linear.split(*single, fraction=0.2, seed=0)
    with pytest.raises(ValueError, match="3 classes with one sample each"):
        linear.folds_of(*single, count=5, seed=0)


def test_constant_features_and_rows_without_a_label_change_nothing():
    train, test = features(200, seed=7), features(100, seed=8)

    def disturbed(part: Features) -> Features:
        constant_N1 = torch.full((len(part), 1), 0.1)
        h_NF = torch.cat([part.h_NF, constant_N1], dim=1)
        return Features(
            torch.cat([h_NF, torch.full((5, h_NF.shape[1]), 1e6)]),
            torch.cat([part.label_N, torch.full((5,), -1)]),
            torch.arange(len(part) + 5),
        )

    found = linear.run(disturbed(train), disturbed(test))
    assert found["linear_l2"] == linear.run(train, test)["linear_l2"]
    assert found["linear_top1"] == pytest.approx(linear.run(train, test)["linear_top1"], abs=0.011)


def test_run_repeats_itself_and_works_in_inference_mode():
    train, test = features(150, seed=9), features(80, seed=10)
    expected = linear.run(train, test)
    with torch.inference_mode():
        inside = Features(train.h_NF.clone(), train.label_N.clone(), train.id_N.clone())
        assert linear.run(inside, test) == expected
    with torch.no_grad():
        assert linear.run(train, test) == expected


@pytest.mark.parametrize("l2_grid", [(), (0.0,)])
def test_impossible_settings_are_refused(l2_grid: tuple[float, ...]):
    train = features(20, seed=11)
    with pytest.raises(ValueError, match="the defaults are"):
        linear.run(train, train, l2_grid=l2_grid)
