"""`find_issues`: the table, and suspicion."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

import labelproof as lp
import labelproof.issues as li
from labelproof.issues.table import isotonic

ANIMALS = np.array(["ant", "bee", "cat"])


def easy(n=90, flips=(3, 40), seed=0):
    """Confident probabilities of three classes and labels of which `flips` are wrong."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    p = rng.dirichlet(np.ones(3) * 0.3, n) * 0.2 + np.eye(3)[truth] * 0.8
    labels = truth.copy()
    labels[list(flips)] = (labels[list(flips)] + 1) % 3
    return truth, labels, p


def test_columns_types_and_order():
    truth, labels, p = easy()
    table = lp.find_issues(labels, p)
    assert table.columns.tolist() == ["id", "given", "suggested", "p_wrong", "rank", "flagged"]
    assert len(table) == 90
    assert table["rank"].tolist() == list(range(1, 91))
    assert table["p_wrong"].is_monotonic_decreasing
    assert table["p_wrong"].between(0, 1).all()
    assert table["flagged"].dtype == bool
    assert sorted(table["id"][:2]) == [3, 40]
    assert table["flagged"].sum() == 2
    restored = table.sort_index()
    np.testing.assert_array_equal(restored["id"], np.arange(90))
    np.testing.assert_array_equal(restored["given"], labels)
    np.testing.assert_array_equal(restored["suggested"], truth)


def test_the_users_own_labels_and_ids_are_kept():
    _, labels, p = easy()
    ids = [f"img/{i:04}.png" for i in range(90)]
    table = li.find_issues(ANIMALS[labels], p, ids=ids)
    worst = table.iloc[0]
    assert worst["id"] in ("img/0003.png", "img/0040.png")
    assert set(table["given"]) == set(ANIMALS)
    assert worst["given"] != worst["suggested"]
    assert worst["suggested"] in ANIMALS


@pytest.mark.parametrize(
    "same",
    [
        lambda y, p: (ANIMALS[y], p, None),
        lambda y, p: (ANIMALS[y].tolist(), p.tolist(), ANIMALS),
        lambda y, p: (y, p, ANIMALS),
        lambda y, p: (y + 10, p, [10, 11, 12]),
        lambda y, p: (pd.Series(ANIMALS[y]), pd.DataFrame(p, columns=ANIMALS), None),
        lambda y, p: (pd.Series(ANIMALS[y]), pd.DataFrame(p[:, [2, 0, 1]], columns=ANIMALS[[2, 0, 1]]), None),
        lambda y, p: (ANIMALS[y], p[:, ::-1], ANIMALS[::-1]),
        lambda y, p: (torch.tensor(y), torch.tensor(p), None),
        lambda y, p: (y.astype(float), p.astype(np.float64), None),
    ],
)
def test_all_ways_to_say_the_same_give_the_same_ranking(same):
    _, labels, p = easy()
    base = li.find_issues(labels, p)
    values, probabilities, classes = same(labels, p)
    table = li.find_issues(values, probabilities, classes=classes)
    np.testing.assert_array_equal(table["id"][:2], base["id"][:2])
    np.testing.assert_allclose(table.sort_index()["p_wrong"], base.sort_index()["p_wrong"], atol=1e-9)


def test_half_precision_softmax_is_accepted():
    _, labels, p = easy()
    table = li.find_issues(labels, p.astype(np.float16))
    assert set(table["id"][:2]) == {3, 40}


def test_evidence_is_carried_along():
    _, labels, p = easy()
    table = li.find_issues(labels, p, evidence={"loss": np.arange(90.0), "evidence_nets": ["a"] * 90})
    assert table.columns[-2:].tolist() == ["evidence_loss", "evidence_nets"]
    np.testing.assert_array_equal(table["evidence_loss"], table["id"])


def test_whatever_is_flagged_is_given_another_label():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 500)
    p = rng.dirichlet(np.ones(6), 500) * 0.7 + np.eye(6)[labels] * 0.3
    for suspicion in (None, rng.normal(size=500)):
        table = li.find_issues(labels, p, suspicion=suspicion)
        flagged = table[table["flagged"]]
        assert (flagged["given"] != flagged["suggested"]).all()
        np.testing.assert_array_equal(table["flagged"], table["p_wrong"] > 0.5)


def test_certain_labels_are_still_told_apart():
    """Probabilities that are one to machine precision: the ranking follows what is left."""
    labels = np.array([0, 1] * 50)
    p = np.column_stack([1 - labels, labels]).astype(float)
    p[0] = [1 - 1e-5, 1e-5]
    p[2] = [0.9, 0.1]
    with pytest.warns(UserWarning, match="equals the label for every sample"):
        table = li.find_issues(labels, p)
    assert table["id"].tolist()[:2] == [2, 0]


def test_suspicion_sets_the_ranking_and_equal_suspicion_gets_equal_probability():
    _, labels, p = easy()
    suspicion = np.round(np.random.default_rng(0).normal(size=90), 1)
    table = li.find_issues(labels, p, suspicion=suspicion)
    ranked = suspicion[table["id"]]
    assert (np.diff(ranked) <= 0).all()
    assert table["p_wrong"].is_monotonic_decreasing
    for value in np.unique(ranked):
        assert table["p_wrong"][ranked == value].nunique() == 1


def test_suspicion_counts_only_by_its_order():
    _, labels, p = easy()
    suspicion = np.random.default_rng(0).normal(size=90)
    pd.testing.assert_frame_equal(
        li.find_issues(labels, p, suspicion=suspicion), li.find_issues(labels, p, suspicion=np.exp(3 * suspicion) - 7)
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 300), levels=st.integers(1, 400))
def test_isotonic_equals_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    score, target = rng.integers(0, levels, n).astype(float), rng.random(n)
    expected = IsotonicRegression().fit_transform(score, target)
    np.testing.assert_allclose(isotonic(target, score), expected, atol=1e-9)


def test_isotonic_of_many_scores_is_close_to_scikit_learn_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    target = (rng.random(20_000) < 1 / (1 + np.exp(-2 * score))).astype(float)
    fitted = isotonic(target, score)
    assert np.abs(fitted - IsotonicRegression().fit_transform(score, target)).mean() < 0.01
    assert fitted.mean() == pytest.approx(target.mean(), abs=1e-3)


def test_inputs_are_left_alone():
    _, labels, p = easy()
    suspicion, ids = np.arange(90.0), np.arange(90)
    before = [a.copy() for a in (labels, p, suspicion, ids)]
    li.find_issues(labels, p, suspicion=suspicion, ids=ids)
    for now, then in zip((labels, p, suspicion, ids), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_million_samples_take_seconds():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 1_000_000)
    labels = np.where(rng.random(1_000_000) < 0.1, (truth + 1) % 10, truth)
    p = np.full((1_000_000, 10), 0.01, dtype=np.float32)
    p[np.arange(1_000_000), truth] = 0.91
    p += rng.random((1_000_000, 10), dtype=np.float32) * 0.01
    p /= p.sum(axis=1, keepdims=True)
    table = li.find_issues(labels, p)
    assert table["flagged"].mean() == pytest.approx(0.1, abs=0.01)


def test_three_hundred_classes_keep_their_names():
    """Codes are looked up as short integers."""
    rng = np.random.default_rng(0)
    given = np.arange(900) % 300
    p = rng.dirichlet(np.full(300, 0.1), 900) * 0.2 + 0.8 * np.eye(300)[given]
    p[5] = np.roll(p[5], 290)
    table = li.find_issues(given, p).sort_index()
    np.testing.assert_array_equal(table["given"], given)
    assert table["suggested"][5] == 295
