"""Residuals in units of the noise that is usual near them."""

from __future__ import annotations

import numpy as np
import pytest

import labelproof.issues as li
from labelproof.issues.local_scale import ENOUGH, local_scale


def uneven(n=2000, share=0.2, seed=0):
    """Noise of sd 0.2 to 4.2 by the last feature; wrong targets are off by 5."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 4))
    predictions = 10 * x[:, 0] + 5 * x[:, 1]
    sd = 0.2 + 4 * x[:, 3]
    off = rng.random(n) < share
    targets = predictions + rng.normal(0, sd) + off * rng.choice([-5, 5], n)
    return targets, predictions, x, sd, off


def long_tailed(n=1200, seed=1):
    """Log-normal targets with a fifth of them wrong."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, 3))
    predictions = np.exp(4 * x[:, 0])
    off = rng.random(n) < 0.2
    targets = predictions * np.exp(rng.normal(0, 0.3, n)) * np.where(off, rng.choice([0.2, 4.0], n), 1)
    return targets, predictions, x, off


def ap(off, targets, predictions, **options):
    return li.summarise(li.find_target_issues(targets, predictions, **options), off)["average_precision"]


def test_where_noise_is_uneven_the_features_say_it():
    targets, predictions, x, sd, off = uneven()
    plain = li.average_precision(off, np.abs(targets - predictions))
    assert ap(off, targets, predictions, features=x) > plain + 0.05
    scale = li.find_target_issues(targets, predictions, features=x).sort_index()["scale"]
    assert np.corrcoef(np.log(scale), np.log(sd))[0, 1] > 0.85


def test_large_values_are_noisier_without_features_too():
    targets, predictions, _, off = long_tailed()
    plain = li.average_precision(off, np.abs(targets - predictions))
    assert ap(off, targets, predictions) > plain + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_where_noise_is_even(seed):
    rng = np.random.default_rng(seed)
    x = rng.random((1500, 5))
    predictions, off = 10 * x[:, 0], rng.random(1500) < 0.2
    targets = predictions + rng.normal(0, 1, 1500) + off * rng.uniform(-8, 8, 1500)
    plain = li.average_precision(off, np.abs(targets - predictions))
    assert ap(off, targets, predictions, features=x) > plain - 0.01
    assert ap(off, targets, predictions) > plain - 0.01


@pytest.mark.parametrize("with_features", [True, False])
def test_other_units_and_offsets_rank_the_same(with_features):
    """Of long-tailed targets, 1000 times as large, counted from elsewhere; and of the features."""
    targets, predictions, x, _ = long_tailed()
    options = [{"features": f} if with_features else {} for f in (x, 1000 * x, x)]
    table, larger, moved = (
        li.find_target_issues(t, p, **o)
        for (t, p), o in zip(
            [(targets, predictions), (1000 * targets, 1000 * predictions), (targets + 512, predictions + 512)],
            options,
            strict=True,
        )
    )
    for other in (larger, moved):
        assert (other["id"].to_numpy() == table["id"].to_numpy()).mean() > 0.99  # but for ties of rounding
        np.testing.assert_allclose(other["p_wrong"], table["p_wrong"], atol=1e-6)
    for name in ("suggested", "suggested_value", "suggested_low", "suggested_high", "scale"):
        np.testing.assert_allclose(larger.sort_index()[name], 1000 * table.sort_index()[name], rtol=1e-6, atol=1e-6)


def test_the_order_of_the_rows_does_not_matter():
    targets, predictions, x, _, _ = uneven(600)
    targets, predictions, x = np.round(targets), np.round(predictions), np.round(x, 1)  # with many ties
    table = li.find_target_issues(targets, predictions, features=x).set_index("id").sort_index()
    turn = np.random.default_rng(1).permutation(600)
    other = li.find_target_issues(targets[turn], predictions[turn], features=x[turn], ids=turn)
    other = other.set_index("id").sort_index()
    # Exact copies of a row may trade places.
    first, again = (np.lexsort((t["scale"].round(9), *x.T, targets, predictions)) for t in (table, other))
    for name in ("given", "p_wrong", "suggested", "suggested_low", "scale"):
        np.testing.assert_allclose(other[name].to_numpy()[again], table[name].to_numpy()[first], rtol=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_many_wrong_neighbours_do_not_pass_for_noise(share):
    """In one corner of the inputs 20 or 40 % of the targets are wrong, elsewhere none."""
    rng = np.random.default_rng(3)
    x = rng.random((3000, 3))
    predictions = 10 * x[:, 0]
    off = (x[:, 1] < 0.3) & (rng.random(3000) < share)
    targets = predictions + rng.normal(0, 1, 3000) + off * 10
    result = li.summarise(li.find_target_issues(targets, predictions, features=x), off)
    assert result["average_precision"] > 0.99
    assert result["recall"] > 0.97
    assert result["precision"] > 0.9


def test_a_giant_moves_no_scale_further_than_a_large_error():
    """Otherwise its logarithm alone would decide how far the others' scales differ."""
    _, predictions, x, sd, _ = uneven(600)
    off = np.random.default_rng(2).normal(0, sd**0.3)
    off[5] = 1e3
    scale = local_scale(off, predictions, x)
    off[5] = 1e100
    np.testing.assert_array_equal(local_scale(off, predictions, x), scale)


def test_few_samples_have_one_scale():
    targets, predictions, x, _, _ = uneven(ENOUGH - 1)
    assert li.find_target_issues(targets, predictions, features=x)["scale"].nunique() == 1
    targets, predictions, x, _, _ = uneven(1000)
    assert li.find_target_issues(targets, predictions, features=x)["scale"].nunique() > 50


def test_residuals_that_say_nothing_have_nearly_one_scale():
    rng = np.random.default_rng(0)
    for n in (150, 600, 3000):
        scale = local_scale(np.abs(rng.normal(size=n)), rng.normal(size=n), rng.random((n, 6)))
        assert np.std(np.log(scale)) < 0.1


def test_missing_and_constant_features():
    targets, predictions, x, _, off = uneven()
    alone = li.find_target_issues(targets, predictions, features=x)
    constant = li.find_target_issues(targets, predictions, features=np.column_stack([np.ones(len(x)), x]))
    np.testing.assert_allclose(constant["p_wrong"], alone["p_wrong"])
    holes = np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x)
    plain = li.average_precision(off, np.abs(targets - predictions))
    assert ap(off, targets, predictions, features=holes) > plain + 0.03
    nothing = li.find_target_issues(targets, predictions, features=np.full_like(x, np.nan))
    np.testing.assert_allclose(nothing["p_wrong"], li.find_target_issues(targets, predictions)["p_wrong"])


def test_more_rows_than_a_model_is_fitted_to(monkeypatch):
    targets, predictions, x, _, off = uneven(4000)
    whole = ap(off, targets, predictions, features=x)
    monkeypatch.setattr("labelproof.issues.local_scale.MOST", 1000)
    part = ap(off, targets, predictions, features=x)
    assert part != whole
    assert part == pytest.approx(whole, abs=0.02)


def test_features_may_be_a_data_frame_of_integers():
    import pandas as pd

    targets, predictions, x, _, _ = uneven(400)
    whole = np.round(x * 100).astype(int)
    frame = li.find_target_issues(targets, predictions, features=pd.DataFrame(whole))
    np.testing.assert_array_equal(
        frame["p_wrong"], li.find_target_issues(targets, predictions, features=whole.astype(float))["p_wrong"]
    )
