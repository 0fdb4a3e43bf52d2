"""Measures of a ranking, against scikit-learn and by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_score, recall_score

import labelproof.issues as li


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 200), levels=st.integers(1, 50))
def test_average_precision_equals_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    wrong, score = rng.random(n) < 0.3, rng.integers(0, levels, n).astype(float)
    wrong[0] = True
    assert li.average_precision(wrong, score) == pytest.approx(average_precision_score(wrong, score))


def test_average_precision_of_nothing_is_undefined():
    assert np.isnan(li.average_precision(np.zeros(3, dtype=bool), np.arange(3.0)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 100))
def test_calibration_error_equals_a_loop_over_bins(seed, n):
    rng = np.random.default_rng(seed)
    wrong, p = rng.random(n) < 0.5, rng.integers(0, 21, n) / 20
    expected = 0.0
    for b in range(10):
        inside = (p >= b / 10) & ((p < (b + 1) / 10) | (b == 9))
        if inside.any():
            expected += inside.mean() * abs(wrong[inside].mean() - p[inside].mean())
    if not np.isclose(p * 10, np.round(p * 10)).any():  # edges of bins are a matter of rounding
        assert li.calibration_error(wrong, p) == pytest.approx(expected)
    assert 0 <= li.calibration_error(wrong, p) <= 1


def planted():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 800)
    labels = np.where(rng.random(800) < 0.2, (truth + 1) % 4, truth)
    return truth, labels, rng.dirichlet(np.ones(4), 800) * 0.6 + np.eye(4)[truth] * 0.4


def test_summary_of_a_table():
    truth, labels, p = planted()
    table = li.find_issues(labels, p)
    assert li.summarise(table) == {
        "samples": 800,
        "flagged": table["flagged"].sum(),
        "expected_wrong": pytest.approx(table["p_wrong"].sum()),
    }
    result = li.summarise(table, truth)
    assert json.loads(json.dumps(result)) == result  # plain numbers, for result files
    back = table.sort_index()
    wrong = labels != truth
    assert result["wrong"] == wrong.sum()
    assert result["average_precision"] == pytest.approx(average_precision_score(wrong, -back["rank"]))
    assert result["precision"] == pytest.approx(precision_score(wrong, back["flagged"]))
    assert result["recall"] == pytest.approx(recall_score(wrong, back["flagged"]))
    assert result["calibration_error"] == pytest.approx(li.calibration_error(wrong, back["p_wrong"].to_numpy()))
    found = wrong & back["flagged"].to_numpy()
    assert result["suggestions_right"] == pytest.approx((back["suggested"].to_numpy() == truth)[found].mean())


def test_truth_may_be_a_mask_and_labels_may_be_words():
    truth, labels, p = planted()
    names = np.array(["a", "b", "c", "d"])
    by_name = li.summarise(li.find_issues(names[labels], p), names[truth])
    by_mask = li.summarise(li.find_issues(names[labels], p), truth != labels)
    assert by_name.pop("suggestions_right") > 0.9
    assert by_mask == by_name


def test_no_wrong_labels_and_no_flags_leave_shares_undefined():
    truth, _, p = planted()
    p = p * 0.5 + np.eye(4)[truth] * 0.5
    p[0] = [0.3, 0.3, 0.2, 0.2]
    result = li.summarise(li.find_issues(truth, p), truth)
    assert result["wrong"] == 0
    assert np.isnan([result["average_precision"], result["recall"], result["suggestions_right"]]).all()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([0, 1], "truth must have shape (800,)"),
        (np.full(800, "x"), "truth has none of the given labels (it starts with x"),
    ],
)
def test_a_truth_that_does_not_fit(truth, message):
    _, labels, p = planted()
    with pytest.raises(ValueError, match=re.escape(message)):
        li.summarise(li.find_issues(labels, p), truth)


def test_summary_of_regression_takes_a_mask():
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    off = rng.random(300) < 0.1
    table = li.find_target_issues(np.where(off, y + 9, y), y + rng.normal(0, 0.1, 300))
    result = li.summarise(table, off)
    assert result["average_precision"] == 1.0
    assert isinstance(table, pd.DataFrame)
