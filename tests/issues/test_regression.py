"""Regression targets."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

import labelproof.issues as li
from labelproof.data.transforms import TargetScale
from labelproof.issues.regression import robust_spread
from labelproof.procedures import noise_rate

log = logging.getLogger(__name__)


def line(n=300, share=0.1, seed=0, dims=None):
    rng = np.random.default_rng(seed)
    shape = n if dims is None else (n, dims)
    predictions = rng.normal(0, 5, shape)
    targets = predictions + rng.standard_t(4, shape)
    off = rng.random(n) < share
    where = off if dims is None else (off, 0)
    targets[where] += rng.choice([-1, 1], off.sum()) * rng.uniform(15, 60, off.sum())
    return targets, predictions, off


def test_gross_errors_come_first():
    targets, predictions, off = line()
    table = li.find_target_issues(targets, predictions)
    assert table.columns.tolist() == [
        *("id", "given", "suggested", "p_wrong", "rank", "flagged"),
        *("suggested_value", "suggested_low", "suggested_high", "scale"),
    ]
    assert table["p_wrong"].is_monotonic_decreasing
    result = li.summarise(table, off)
    assert result["average_precision"] > 0.999
    assert result["precision"] > 0.9
    assert result["recall"] > 0.99
    back = table.sort_index()
    np.testing.assert_array_equal(back["given"], targets)
    usual = predictions + np.median(targets - predictions)
    np.testing.assert_array_equal(back["suggested_value"], usual)
    np.testing.assert_array_equal(back["suggested"], np.where(back["flagged"], usual, targets))
    assert not back["flagged"].all()


def test_clean_heavy_tailed_residuals_are_left_alone():
    targets, predictions, _ = line(n=5000, share=0)
    assert li.find_target_issues(targets, predictions)["flagged"].mean() < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-9, 1e-3, 1000, 1e9]), dims=st.sampled_from([None, 1, 3]))
def test_units_do_not_matter(seed, scale, dims):
    targets, predictions, _ = line(n=60, seed=seed, dims=dims)
    table = li.find_target_issues(targets, predictions)
    # Powers of two change no rounding, so that the order must be the same to the last tie; other units round.
    exact = 2.0 ** round(np.log2(scale))
    np.testing.assert_array_equal(li.find_target_issues(targets * exact, predictions * exact)["id"], table["id"])
    other = li.find_target_issues(targets * scale, predictions * scale).sort_index()
    np.testing.assert_allclose(other["p_wrong"], table.sort_index()["p_wrong"], atol=1e-9)
    assert (other["rank"] - table.sort_index()["rank"]).abs().max() <= 1


def test_units_of_one_column_do_not_matter():
    targets, predictions, off = line(dims=3)
    units = np.array([1, 1000, 1e-6])
    table = li.find_target_issues(targets, predictions)
    other = li.find_target_issues(targets * units, predictions * units)
    np.testing.assert_array_equal(other["id"], table["id"])
    np.testing.assert_allclose(other["p_wrong"], table["p_wrong"], atol=1e-9)
    worst = table[table["flagged"]]
    assert li.summarise(table, off)["average_precision"] > 0.99
    assert (worst["evidence_column"] == 0).mean() > 0.95
    np.testing.assert_array_equal(worst["given"], targets[worst.index, worst["evidence_column"]])


def test_one_giant_does_not_hide_the_others():
    targets, predictions, off = line()
    targets[0] = 1e9
    off[0] = True
    result = li.summarise(li.find_target_issues(targets, predictions), off)
    assert result["recall"] > 0.95


@pytest.mark.parametrize("dims", [None, 2])
@pytest.mark.parametrize("giant", [1e12, 1e160, -1e200, 1e300])
@pytest.mark.filterwarnings("error")
def test_a_giant_is_flagged_and_nothing_else(giant, dims):
    rng = np.random.default_rng(0)
    shape = 300 if dims is None else (300, dims)
    predictions = rng.normal(0, 5, shape)
    targets = predictions + rng.normal(0, 1, shape)
    targets[(7, *[0] * (dims is not None))] = giant
    for features in (None, rng.random((300, 3))):
        table = li.find_target_issues(targets, predictions, features=features)
        assert np.isfinite(table.to_numpy(dtype=np.float64)).all()
        assert table["id"].iloc[0] == 7
        assert table["flagged"].tolist() == [True] + [False] * 299
        noise = li.estimate_target_noise(targets, predictions, features=features)
        assert np.isfinite([noise.rate, *noise.interval]).all()
        assert noise.rate < 0.02
        assert np.abs(table["suggested"]).max() < 30


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_targets_may_reach_both_ends_of_what_is_allowed():
    """Giants of both signs, units of 1e300, and spread next to none."""
    for targets in (np.r_[np.arange(200.0), 1e300, -1e300], np.linspace(-1e300, 1e300, 202)):
        for predictions in (np.zeros(202), np.arange(202.0), -targets):
            table = li.find_target_issues(targets, predictions)
            assert np.isfinite(table.to_numpy(dtype=np.float64)).all()
    tiny = np.random.default_rng(0).normal(size=202) * 1e-300
    tiny[3] = 1e300
    assert li.find_target_issues(tiny, np.zeros(202))["id"].iloc[0] == 3


def test_more_than_half_wrong_is_warned_of_and_not_counted():
    targets, predictions, off = line(n=2000, share=0.6)
    for call in (li.find_target_issues, li.estimate_target_noise):
        with pytest.warns(UserWarning, match="wrong targets came to 50%, the most that is told.*look at some") as said:
            found = call(targets, predictions)
        assert [each.filename for each in said] == [__file__]
    assert off.mean() > 0.58
    assert found.rate == 0.5


@pytest.mark.filterwarnings("error")
def test_up_to_two_fifths_wrong_is_no_warning():
    targets, predictions, _ = line(n=2000, share=0.4)
    li.find_target_issues(targets, predictions)
    li.estimate_target_noise(targets, predictions)


def test_robust_spread_is_that_of_the_standardisation_of_targets():
    rng = np.random.default_rng(0)
    values = rng.normal(3, [1, 1000, 1e-6, 2, 0], (301, 5))
    values[:200, 3] = 5.0  # more than half are equal
    values[0] = 1e300
    values[:, 4] = 7.0
    spread = robust_spread(values)
    np.testing.assert_allclose(spread[:4], TargetScale.fit(values).scale[:4], rtol=1e-12)
    others = np.abs(values[values[:, 3] != 5.0, 3] - 5.0)
    np.testing.assert_allclose(spread[3], 1.4826 * np.median(others))
    assert spread[4] == 0
    np.testing.assert_array_equal(noise_rate._spread(values)[:4], spread[:4])  # and of what a quick training explains
    assert noise_rate._spread(values)[4] > 0
    predictions = np.zeros(100)
    targets = np.r_[np.zeros(60), rng.normal(size=40)]
    scale = li.find_target_issues(targets, predictions)["scale"]
    np.testing.assert_allclose(scale, np.full(100, robust_spread(targets[:, None])[0]))


def test_a_constant_bias_of_the_model_is_no_error():
    targets, predictions, off = line()
    moved = li.find_target_issues(targets, predictions + 100)
    np.testing.assert_array_equal(moved["id"], li.find_target_issues(targets, predictions)["id"])
    assert li.summarise(moved, off)["recall"] > 0.99
    # ... and what it suggests is where right targets are, not where the model puts them
    right = ~off[moved.index]
    assert moved["given"].between(moved["suggested_low"], moved["suggested_high"])[right].mean() > 0.9
    assert moved["suggested_value"].between(moved["suggested_low"], moved["suggested_high"]).all()
    plain = li.find_target_issues(targets, predictions)
    for name in ("suggested", "suggested_value", "suggested_low", "suggested_high"):
        np.testing.assert_allclose(moved[name], plain[name], atol=1e-9)
    wrong = moved[moved["flagged"]]
    assert np.abs(wrong["suggested"] - predictions[wrong.index]).max() < 1


def test_the_range_holds_19_of_20_right_targets_however_many_are_wrong():
    for share in (0, 0.1, 0.3):
        targets, predictions, off = line(n=4000, share=share)
        table = li.find_target_issues(targets, predictions).sort_index()
        inside = (table["suggested_low"] <= targets) & (targets <= table["suggested_high"])
        assert inside[~off].mean() == pytest.approx(0.95, abs=0.04)
        assert inside[off].sum() <= 0.05 * off.sum()


def test_a_column_further_off_brings_its_own_value_range_and_scale():
    targets, predictions, _ = line(n=400, dims=3)
    units = np.array([1, 1000, 1e-3])
    table = li.find_target_issues(targets * units, predictions * units).sort_index()
    column = table["evidence_column"].to_numpy()
    rows = np.arange(400)
    usual = (predictions + np.median(targets - predictions, axis=0)) * units
    np.testing.assert_allclose(table["suggested_value"], usual[rows, column], rtol=1e-9)
    typical = table["scale"].groupby(column).median()
    np.testing.assert_allclose(typical / units, 1.1, atol=0.35)  # Student's t, 4 degrees of freedom: 1.10 by its median
    half = (table["suggested_high"] - table["suggested_low"]) / 2 / table["scale"]
    assert half.between(1.5, 3.5).all()


@pytest.mark.parametrize("targets", [np.ones(20), np.r_[np.ones(19), 5.0]], ids=["perfect", "all but one perfect"])
def test_predictions_without_spread(targets):
    table = li.find_target_issues(targets, np.ones(20))
    assert np.isfinite(table["p_wrong"]).all()
    assert table["flagged"].sum() == (targets != 1).sum()


@pytest.mark.parametrize(
    ("targets", "predictions", "options", "message"),
    [
        ([1.0, np.nan, 2.0], [1.0, 2, 3], {}, "targets has NaN or infinite values in 1 of 3 rows, the first is row 1"),
        ([1.0, 2, 3], [1.0, 2, np.inf], {}, "predictions has NaN or infinite values in 1 of 3 rows"),
        ([1.0, 2, 3], [1.0, 2], {}, "targets has shape (3,) but predictions (2,)"),
        (np.ones((3, 2)), np.ones((3, 3)), {}, "targets has shape (3, 2) but predictions (3, 3)"),
        ([1.0, 2], [1.0, 2], {}, "targets has 2 rows: at least 3"),
        ([], [], {}, "targets must have shape (N,) or (N, D) and not be empty"),
        (np.ones((3, 2, 2)), np.ones((3, 2, 2)), {}, "targets must have shape (N,) or (N, D)"),
        (["a", "b", "c"], [1.0, 2, 3], {}, "targets must hold numbers"),
        (
            [1.0, 2, -2e300],
            [1.0, 2, 3],
            {},
            "targets has values beyond ±1e+300 in 1 of 3 rows, the first is row 2: drop",
        ),
        ([1.0, 2, 3], [1.0, 2e300, 3], {}, "predictions has values beyond ±1e+300 in 1 of 3 rows, the first is row 1"),
        ([1.0, 2, 3], [1.0, 2, 3], {"ids": [1, 1, 2]}, "ids must be unique, but 1 stands 2 times"),
        ([1.0, 2, 3], [1.0, 2, 3], {"evidence": {"x": [1]}}, "evidence['x'] must have shape (3,)"),
        ([1.0, 2, 3], [1.0, 2, 3], {"features": [1, 2, 3]}, "features must have shape (3, F), one row of numbers"),
        ([1.0, 2, 3], [1.0, 2, 3], {"features": np.ones((2, 4))}, "features must have shape (3, F)"),
        ([1.0, 2, 3], [1.0, 2, 3], {"features": np.ones((3, 0))}, "features must have shape (3, F)"),
        (
            [1.0, 2, 3],
            [1.0, 2, 3],
            {"features": [["a"], ["b"], ["c"]]},
            "features must hold numbers, but has dtype <U1",
        ),
        (
            [1.0, 2, 3],
            [1.0, 2, 3],
            {"features": [[0, np.inf], [1, 2], [2, 1]]},
            "features has infinite values in 1 columns, the first is column 1",
        ),
    ],
)
def test_errors_say_what_to_do(targets, predictions, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        li.find_target_issues(targets, predictions, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), [("concrete", "strength"), ("energy", "heating_load")])
@pytest.mark.parametrize("kind", ["shifted", "tenfold", "other"])
def test_real_targets(data_dir, name, column, kind):
    """20 % planted: off by three standard deviations, ten times too large, or the target of another row."""
    table = pd.read_csv(data_dir / "uci" / f"{name}.csv")
    y, x = table[column].to_numpy(dtype=float), table.drop(columns=column).to_numpy(dtype=float)
    rng = np.random.default_rng(0)
    off = rng.random(len(y)) < 0.2
    wrong = {"shifted": y + rng.choice([-1, 1], len(y)) * 3 * y.std(), "tenfold": 10 * y, "other": rng.permutation(y)}
    given = np.where(off, wrong[kind], y)
    model = HistGradientBoostingRegressor(loss="absolute_error", max_iter=80, random_state=0)
    predictions = cross_val_predict(model, x, given, cv=KFold(5, shuffle=True, random_state=0))
    result = li.summarise(li.find_target_issues(given, predictions), off)
    log.info("%s %s: %s", name, kind, {key: round(value, 3) for key, value in result.items()})
    assert result["average_precision"] > (0.65 if kind == "other" else 0.98)
    assert result["calibration_error"] < 0.15
