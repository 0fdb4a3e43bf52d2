"""Verdicts, gains and ranks beside numbers from scipy, brute force and a pocket calculator."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from labelproof.bench.verdict import compare, gain, judge, ranking, score
from labelproof.recipes import Expected, Recipe


def recipe(expected: Expected | None) -> Recipe:
    return Recipe(
        name="some",
        title="some",
        citation="some",
        source="some",
        train={"data": "digits"},
        expected=expected,
        deviations=(),
        path=Path("some.toml"),
    )


def run(early_stopping: bool = False, **metrics: float) -> dict[str, Any]:
    return {"metrics": metrics, "settings": {"early_stopping": early_stopping}}


@pytest.mark.parametrize(
    ("values", "sd", "word", "why"),
    [
        ([89.0, 89.2], 0.17, "reproduced", "0.05 below, within 2 sd and 1 point"),
        ([90.45], 0.17, "reproduced", "1.30 above, within 2 sd and 1 point"),  # 1.30 is less than 0.34 + 1
        ([87.7, 87.8], 0.17, "below", "1.40 below, beyond 2 sd and 1 point"),  # 1.40 is more
        ([87.7, 87.8], 0.25, "reproduced", "1.40 below, within 2 sd and 1 point"),
        ([90.65], 0.17, "above", "1.50 above, beyond 2 sd and 1 point"),
        ([88.25], None, "reproduced", "0.90 below, within 1 point"),
        ([88.05], None, "below", "1.10 below, beyond 1 point"),
    ],
)
def test_words_of_verdicts(values: list[float], sd: float | None, word: str, why: str) -> None:
    verdict = judge(Expected(89.15, "test_accuracy", "R", sd=sd), values)
    assert (verdict.word, verdict.why) == (word, why)
    assert str(verdict) == f"{word}: {why}"


def test_fewer_runs_than_the_paper_are_told_and_as_many_are_not() -> None:
    expected = Expected(90.0, "test_accuracy", "R", sd=0.5, runs=3)
    assert judge(expected, [90.0]).why.endswith("; 1 of 3 runs")
    assert "runs" not in judge(expected, [90.0] * 3).why
    assert "runs" not in judge(expected, [90.0] * 4).why
    assert "runs" not in judge(Expected(90.0, "test_accuracy", "R"), [90.0]).why


def test_what_cannot_be_compared_says_why() -> None:
    assert str(compare(recipe(None), [run(test_accuracy=0.9)])) == (
        "not comparable: because nothing was published for these settings"
    )
    published = recipe(Expected(90.0, "test_accuracy_at_best_val", "R"))
    assert str(compare(published, [])) == "not run"
    assert str(compare(published, [run(test_accuracy=0.9)])) == (
        "not comparable: because the runs have no test_accuracy_at_best_val"
    )
    known = run(test_accuracy=0.5, test_accuracy_at_best_val=0.9)
    assert compare(published, [known]).word == "reproduced"
    assert compare(published, [run(test_accuracy=0.9, test_accuracy_at_best_val=0.5)]).word == "below"
    both = compare(published, [known, run(test_accuracy=0.9)])  # what one run lacks is not made up
    assert both.why.endswith(", within 1 point")


def test_a_run_scores_by_the_epoch_that_is_kept() -> None:
    assert score(run(test_accuracy=0.5, test_accuracy_at_best_val=0.75)) == 50.0
    assert score(run(early_stopping=True, test_accuracy=0.5, test_accuracy_at_best_val=0.75)) == 75.0
    assert score(run(test_rmse=2.5, test_rmse_at_best_val=1.5)) == 2.5
    assert score(run(early_stopping=True, test_rmse=2.5, test_rmse_at_best_val=1.5)) == 1.5
    assert score(run(test_accuracy=0.5, test_accuracy_best=0.75), "test_accuracy_best") == 75.0
    assert score(run(test_accuracy=0.5), "test_accuracy_last10") is None
    assert score(run()) is None


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 5, 17])
def test_the_interval_is_that_of_the_paired_t_test(seeds: int, higher: bool) -> None:
    rng = np.random.default_rng(seeds)
    for shift in (-3.0, -0.7, 0.0, 0.7, 3.0):
        ours, base = 80 + shift + rng.normal(size=seeds), 80 + rng.normal(size=seeds)
        found = gain(dict(enumerate(ours)), dict(enumerate(base)), higher=higher)
        assert found is not None
        test = stats.ttest_rel(*((ours, base) if higher else (base, ours)))
        interval = test.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.mean == pytest.approx((ours - base).mean() * (1 if higher else -1))
        assert found.pairs == seeds
        significant = test.pvalue < 0.05
        assert found.word == ("no gain" if not significant else "gain" if test.statistic > 0 else "loss")


def test_pairs_are_made_of_the_seeds_that_both_have() -> None:
    ours, base = {0: 90.0, 1: 92.0, 5: 10.0}, {0: 80.0, 1: 81.0, 2: 99.0}
    found = gain(ours, base)
    assert found == gain({0: 90.0, 1: 92.0}, {0: 80.0, 1: 81.0})
    assert found is not None
    assert (found.mean, found.pairs) == (10.5, 2)
    assert gain({0: 1.0}, {1: 1.0}) is None
    assert gain({}, {}) is None


def test_a_single_seed_says_nothing() -> None:
    found = gain({0: 90.0}, {0: 10.0, 1: 11.0})
    assert found is not None
    assert (found.low, found.high, found.word) == (-math.inf, math.inf, "one seed")


def test_runs_that_agree_to_the_last_digit() -> None:
    assert gain({0: 5.0, 1: 6.0}, {0: 5.0, 1: 6.0}).word == "no gain"  # type: ignore[union-attr]
    assert gain({0: 6.0, 1: 7.0}, {0: 5.0, 1: 6.0}).word == "gain"  # type: ignore[union-attr]


def brute(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean ranks by counting who is better; equals share."""
    columns = set.intersection(*(set(row) for row in scores.values()))
    ranks = {}
    for name, row in scores.items():
        places = []
        for c in columns:
            others = [other[c] for n, other in scores.items() if n != name]
            places.append(1 + sum(v > row[c] for v in others) + 0.5 * sum(v == row[c] for v in others))
        ranks[name] = sum(places) / len(places)
    return ranks


def test_ranks_are_those_of_counting() -> None:
    rng = np.random.default_rng(0)
    scores = {
        n: {c: float(rng.integers(6)) for c in ("x", "y", "z", "u", "v")} for n in ("a", "b", "c", "d")
    }  # with ties
    found = ranking(scores)
    assert {r.name: r.mean for r in found} == pytest.approx(brute(scores))
    assert [r.mean for r in found] == sorted(r.mean for r in found)
    assert all(r.low <= r.mean <= r.high and r.columns == 5 for r in found)


def test_only_columns_that_all_have_are_ranked() -> None:
    scores = {"a": {"x": 3.0, "y": 0.0}, "b": {"x": 2.0}, "c": {"x": 1.0, "y": 9.0}}
    assert [(r.name, r.mean, r.columns) for r in ranking(scores)] == [("a", 1.0, 1), ("b", 2.0, 1), ("c", 3.0, 1)]
    assert ranking({"a": {"x": 1.0}, "b": {"y": 1.0}}) == []
    assert ranking({}) == []


def test_the_interval_of_ranks_is_that_of_all_draws() -> None:
    """With three columns the bootstrap has 27 outcomes, which can be written down."""
    scores = {
        "a": {"x": 3.0, "y": 3.0, "z": 1.0},
        "b": {"x": 2.0, "y": 1.0, "z": 2.0},
        "c": {"x": 1.0, "y": 2.0, "z": 3.0},
    }
    ranks = {"a": (1, 1, 3), "b": (2, 3, 2), "c": (3, 2, 1)}
    for each in ranking(scores, draws=20_000):
        means = [np.mean(draw) for draw in itertools.product(ranks[each.name], repeat=3)]
        low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")  # of many draws, no steps between
        assert (each.low, each.high) == pytest.approx((low, high))
    assert ranking(scores) == ranking(scores)
    assert ranking(scores, seed=1)[0].mean == ranking(scores)[0].mean
