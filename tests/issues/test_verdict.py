"""Many samples: a fit on some, a posterior for those that need it, and one answer whatever the array looks like."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest

import labelproof.issues as li
from labelproof.issues import posterior as po
from labelproof.issues import verdict as ve
from labelproof.issues.checks import check


def world(n, k, kind="symmetric", rate=0.2, seed=0, dtype=np.float32):
    """Labels, probabilities of a model that has learnt their noise, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    shift = rng.integers(1, k, n) if kind == "symmetric" else 1
    given = np.where(rng.random(n) < rate, (truth + shift) % k, truth)
    p = rng.standard_normal((n, k), dtype=np.float32)
    p[np.arange(n), truth] += 7
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    if kind == "symmetric":
        p = (1 - rate) * p + rate / (k - 1) * (1 - p)
    else:
        p = (1 - rate) * p + rate * np.roll(p, 1, axis=1)
    return given, p.astype(dtype), truth


@pytest.fixture
def small_fit(monkeypatch):
    """A fit on few rows, so that few thousand are many."""
    monkeypatch.setattr(po, "FIT_ROWS", 600)


def test_more_than_half_of_the_samples_are_all_fitted():
    assert len(po.sample_rows(1000, 10)) == 1000
    assert len(po.sample_rows(10**6, 10)) == 60_000
    assert len(po.sample_rows(10**6, 100)) == 10_000
    assert len(po.sample_rows(10**6, 1000)) == po.fit_rows(1000) == 5000
    checked = check(*world(1000, 40)[:2], None)
    assert len(ve._first(checked)[0]) == 1000
    assert checked.sample.dtype == np.float64


@pytest.mark.parametrize(("k", "kind"), [(10, "symmetric"), (10, "pairflip"), (40, "symmetric"), (40, "pairflip")])
def test_a_fit_on_some_finds_what_a_fit_on_all_finds(small_fit, monkeypatch, k, kind):
    given, p, truth = world(20_000, k, kind)
    part = ve.judge(check(given, p, None))
    assert part.odds.dtype == np.float32
    monkeypatch.setattr(po, "FIT_ROWS", 20_000)
    whole = ve.judge(check(given, p, None))
    assert whole.odds.dtype == np.float64
    wrong = given != truth
    assert li.average_precision(wrong, part.odds) > li.average_precision(wrong, whole.odds) - 0.003
    assert abs(part.p_wrong - whole.p_wrong).mean() < 0.006
    assert ((part.odds > 0) == (whole.odds > 0)).mean() > 0.995


def test_clear_rows_are_judged_as_the_posterior_would(small_fit):
    given, p, truth = world(20_000, 40)
    checked = check(given, p, None)
    fit = ve.fitted(checked)
    screens = ve._screens(fit, *ve._first(checked))
    right, score = ve._scores(given, checked.rows(slice(None), np.float32))
    clear = score <= np.where(right, screens[0].limit, screens[1].limit)
    assert clear.mean() > 0.5  # or nothing is saved
    assert (clear & ~right).any()
    found, dense = ve.judge(checked), ve.judge(checked, all_rows=True)
    np.testing.assert_allclose(found.odds[~clear], dense.odds[~clear], rtol=1e-4)
    proba = po.infer(given, checked.rows(slice(None), np.float64), fit).proba
    assert (dense.beaten == (proba.argmax(axis=1) != given)).mean() > 0.999  # but for ties
    assert np.abs(found.p_wrong - dense.p_wrong)[clear].max() < 0.05
    assert np.abs(found.p_wrong - dense.p_wrong)[clear].mean() < 1e-3
    np.testing.assert_array_equal(found.other[clear & ~right], dense.other[clear & ~right])
    np.testing.assert_array_equal(found.beaten[clear], ~right[clear])
    wrong = given != truth
    assert li.average_precision(wrong, found.odds) > li.average_precision(wrong, dense.odds) - 0.001


def test_only_rows_that_are_not_clear_are_computed(small_fit, monkeypatch):
    """An operation count: how many rows (2) to (4) see."""
    given, p, _ = world(20_000, 40)
    seen = []
    believe = po.Fit.believe
    monkeypatch.setattr(po.Fit, "believe", lambda fit, g, q: seen.append(len(g)) or believe(fit, g, q))
    checked = check(given, p, None)
    ve.judge(checked, all_rows=True)
    assert sum(seen) == 20_000
    seen.clear()
    ve.judge(checked)
    fitted = len(ve._first(checked)[0])  # the curves are drawn through these
    assert fitted < sum(seen) < fitted + 0.6 * 20_000


def test_a_score_is_read_off_its_curve_and_rises():
    rng = np.random.default_rng(0)
    score = rng.random(5000) ** 3
    missing = np.minimum(0.02 * score**0.8, 0.4)
    curve = ve._curve(score, np.log(missing / (1 - missing)), np.ones(5000, dtype=bool))
    assert curve.power == pytest.approx(0.8, abs=0.05)
    below = np.linspace(0.01, curve.limit, 50)
    found = 1 / (1 + np.exp(-curve(below)))
    np.testing.assert_allclose(found, 0.02 * below**0.8, rtol=0.15)
    assert (np.diff(found) > 0).all()
    assert 0.02 * curve.limit**0.8 == pytest.approx(ve.CLEAR, rel=0.1)


@pytest.mark.parametrize("why", ["few", "never clear", "other class"])
def test_no_curve_without_reason(why):
    score, odds = np.linspace(0, 1, 1000), np.full(1000, -9.0)
    agreed = np.ones(1000, dtype=bool)
    if why == "few":
        score, odds, agreed = score[:50], odds[:50], agreed[:50]
    elif why == "never clear":
        odds[:] = -1
    else:
        agreed[:] = False
    assert ve._curve(score, odds, agreed).limit == -np.inf


def test_worst_first_is_stable_in_both_precisions():
    odds = np.array([0.0, 3.5, -2.0, 3.5, -2.0, 80.0, -80.0, 1e-30, -1e-30], dtype=np.float32)
    expected = sorted(range(9), key=lambda i: (-odds[i], i))
    assert ve.worst_first(odds).tolist() == expected
    assert ve.worst_first(odds.astype(np.float64)).tolist() == expected
    many = np.round(np.random.default_rng(0).normal(size=5000), 1).astype(np.float32)
    np.testing.assert_array_equal(ve.worst_first(many), np.argsort(-many, kind="stable"))


@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize(
    "same",
    [
        lambda p: p.astype(np.float64),
        np.asfortranarray,
        pd.DataFrame,
        lambda p: np.concatenate([p, p])[: len(p)],
        lambda p: np.repeat(p, 2, axis=1)[:, ::2],
        lambda p: p.astype(">f4"),
    ],
    ids=["float64", "by column", "DataFrame", "view", "strided", "big-endian"],
)
def test_one_answer_for_any_array(small_fit, k, same):
    given, p, _ = world(8000, k)
    base, table = li.find_issues(given, p).sort_index(), li.find_issues(given, same(p)).sort_index()
    np.testing.assert_allclose(table["p_wrong"], base["p_wrong"], atol=2e-4)
    np.testing.assert_array_equal(table["suggested"], base["suggested"])
    assert (table["rank"] - base["rank"]).abs().max() < 40


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("k", [5, 40])
def test_the_edge_of_a_block_makes_no_difference(small_fit, monkeypatch, k, extra):
    given, p, _ = world(6000 + extra, k)
    base = ve.judge(check(given, p, None))
    monkeypatch.setattr(po, "BLOCK_CELLS", k * 1500)  # four blocks; verdict's are four times as large: one
    found = ve.judge(check(given, p, None))
    np.testing.assert_allclose(found.odds, base.odds, atol=2e-2, rtol=1e-3)
    np.testing.assert_array_equal(found.beaten, base.beaten)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 2), (5, 3), (30, 2), (2000, 2), (300, 1000)])
def test_few_samples_and_few_or_many_classes(n, k):
    rng = np.random.default_rng(0)
    given = np.r_[0, 1, rng.integers(0, k, n - 2)]
    p = rng.dirichlet(np.full(k, 0.2), n) * 0.5 + np.eye(k)[given] * 0.5
    with pytest.warns() if k == 1000 else pytest.MonkeyPatch.context():
        table = li.find_issues(given, p, classes=np.arange(k))
    assert sorted(table["id"]) == list(range(n))
    assert table["p_wrong"].between(0, 1).all()
    assert table["p_wrong"].is_monotonic_decreasing


def test_list_and_estimate_come_from_one_fit(small_fit):
    given, p, truth = world(20_000, 10)
    noise, table = li.estimate_noise(given, p), li.find_issues(given, p)
    assert noise.rate == pytest.approx(table["p_wrong"].mean(), abs=1e-4)
    assert noise.rate == pytest.approx((given != truth).mean(), abs=0.01)


def test_suspicion_on_many_samples_suggests_another_class_wherever_flagged(small_fit):
    given, p, _ = world(20_000, 40)
    suspicion = np.random.default_rng(0).random(20_000) + 3 * li.find_issues(given, p).sort_index()["p_wrong"]
    flagged = li.find_issues(given, p, suspicion=suspicion).query("flagged")
    assert len(flagged) > 3000
    assert (flagged["given"] != flagged["suggested"]).all()


def test_no_more_memory_than_another_copy_of_the_probabilities():
    given, p, _ = world(100_000, 100)
    li.find_issues(given[:2000], p[:2000])
    tracemalloc.start()
    li.find_issues(given, p)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * p.nbytes


CODE = """
import sys
sys.path.insert(0, "tests/issues")
from test_verdict import world
import labelproof.issues as li
given, p, _ = world(70_000, 40)
li.find_issues(given, p).sort_index()[["p_wrong", "suggested", "flagged"]].to_parquet(sys.argv[1])
"""


def test_the_number_of_threads_makes_no_difference(tmp_path):
    for threads in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", CODE, str(tmp_path / threads)], env=env, check=True)
    one, two = (pd.read_parquet(tmp_path / threads) for threads in ("1", "2"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
