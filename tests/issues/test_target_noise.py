"""How many regression targets are wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import labelproof.issues as li
from labelproof.issues import regression
from labelproof.issues.regression import fit_mixture
from labelproof.issues.target_noise import examine_targets


def planted(share, n=3000, seed=0, size=20.0):
    rng = np.random.default_rng(seed)
    predictions = rng.normal(0, 5, n)
    off = rng.random(n) < share
    targets = predictions + rng.standard_t(5, n) + off * rng.choice([-1, 1], n) * rng.uniform(0.5, 1.5, n) * size
    return targets, predictions, off


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4])
def test_the_share_of_gross_errors(share):
    targets, predictions, off = planted(share)
    noise = li.estimate_target_noise(targets, predictions)
    low, high = noise.interval
    assert 0 <= low <= noise.rate <= high <= 1
    assert low <= off.mean() <= high
    assert noise.rate == pytest.approx(off.mean(), abs=0.08)
    assert str(noise) == f"{noise.rate:.1%} of the targets are wrong (95 % interval {low:.1%} to {high:.1%})"


@pytest.mark.parametrize("giant", [0, 1000])
def test_share_and_its_error_where_the_mixture_is_true(giant):
    """Data drawn from f itself: the estimates scatter about the true share as much as the curvature says.

    A giant residual makes R 30 s, so that it moves with s.
    """
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        usual, broad = np.abs(rng.standard_t(4, 1500)), rng.uniform(0, 30 if giant else 25, 1500)
        distance = np.where(rng.random(1500) < 0.2, broad, usual)
        distance[0] += giant
        found.append(fit_mixture(distance, 1))
    shares = np.array([each.share for each in found])
    assert shares.mean() == pytest.approx(0.2, abs=0.01)
    assert np.mean([each.deviation for each in found]) == pytest.approx(shares.std(), rel=0.3)


def test_fewer_samples_say_less():
    wide, narrow = (li.estimate_target_noise(*planted(0.2, n=n)[:2]).interval for n in (60, 6000))
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_units_do_not_matter():
    targets, predictions, _ = planted(0.2, n=500)
    a, b = (li.estimate_target_noise(targets * u, predictions * u) for u in (1.0, 1000.0))
    assert a.rate == pytest.approx(b.rate, abs=1e-6)
    assert a.interval == pytest.approx(b.interval, abs=1e-6)


def test_it_agrees_with_the_list_and_takes_features():
    rng = np.random.default_rng(0)
    x = rng.random((1500, 2))
    targets, predictions, _ = planted(0.2, n=1500)
    targets = predictions + (targets - predictions) * (0.2 + 3 * x[:, 0])
    table = li.find_target_issues(targets, predictions, features=x)
    noise = li.estimate_target_noise(targets, predictions, features=x)
    assert noise.rate == pytest.approx(table["p_wrong"].mean(), abs=1e-3)
    assert noise.rate != li.estimate_target_noise(targets, predictions).rate


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_list_and_estimate_at_once_are_those_of_one_by_one(share, monkeypatch):
    rng = np.random.default_rng(0)
    targets, predictions, _ = planted(share, n=400)
    x, ids, more = rng.random((400, 2)), np.arange(400) + 5, {"loss": rng.random(400)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = li.find_target_issues(targets, predictions, features=x, ids=ids, evidence=more)
        noise = li.estimate_target_noise(targets, predictions, features=x)
    assert len(said) == (2 if share > 0.5 else 0)
    calls = []
    inner = regression.local_scale
    monkeypatch.setattr(regression, "local_scale", lambda *given: calls.append(1) or inner(*given))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        both = examine_targets(targets, predictions, features=x, ids=ids, evidence=more)
    assert len(calls) == 1
    assert [each.filename for each in said] == ([__file__] if share > 0.5 else [])
    pd.testing.assert_frame_equal(both[0], table)
    assert both[1] == noise


def test_errors_no_larger_than_the_models_own_are_not_counted():
    """What the docstring says, so that nobody takes the figure for more than it is."""
    targets, predictions, _ = planted(0.3, size=1.0)
    assert li.estimate_target_noise(targets, predictions).interval[1] < 0.15


def test_perfect_predictions():
    noise = li.estimate_target_noise(np.ones(50), np.ones(50))
    assert noise.rate == 0
    assert noise.interval[0] == 0


def test_errors_are_those_of_the_list():
    with pytest.raises(ValueError, match="targets has shape"):
        li.estimate_target_noise([1.0, 2, 3], [1.0, 2])
    with pytest.raises(ValueError, match="features must have shape"):
        li.estimate_target_noise([1.0, 2, 3], [1.0, 2, 3], features=[1.0])
