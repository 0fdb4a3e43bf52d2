"""What comparisons come to: ours with a published number, methods with cross-entropy and among each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from labelproof.recipes import Expected, Recipe

#: Percentage points that other hardware, other orders of samples and another copy of the images may cost.
SLACK = 1.0
#: Two-sided level of all intervals.
LEVEL = 0.95


class Verdict(NamedTuple):
    """`word` is reproduced, below, above, not comparable or not run; `why` says by how much, or because of what."""

    word: str
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


def score(run: Mapping[str, Any], metric: str = "") -> float | None:
    """A run's figure: per cent of test accuracy, or test RMSE.

    If no metric is named it is the last epoch's, or under early stopping that of the epoch that was kept.
    """
    metrics: Mapping[str, float] = run["metrics"]
    if metric:
        return 100 * metrics[metric] if metric in metrics else None
    kept = "_at_best_val" if run["settings"]["early_stopping"] else ""
    found = metrics.get(f"test_accuracy{kept}")
    return metrics.get(f"test_rmse{kept}") if found is None else 100 * found


def compare(recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> Verdict:
    """Our runs of a recipe beside the number it expects.

    Reproduced is a mean within two published standard deviations (0 where none is known) and `SLACK` points.
    """
    if recipe.expected is None:
        return Verdict("not comparable", "because nothing was published for these settings")
    values = [value for run in runs if (value := score(run, recipe.expected.metric)) is not None]
    if not runs:
        return Verdict("not run", "")
    if not values:
        return Verdict("not comparable", f"because the runs have no {recipe.expected.metric}")
    return judge(recipe.expected, values)


def judge(expected: Expected, values: Sequence[float]) -> Verdict:
    """Our values beside a published one, all per cent.

    >>> str(judge(Expected(89.15, "test_accuracy", "R", sd=0.17, runs=5), [88.4, 88.6, 88.3]))
    'reproduced: 0.72 below, within 2 sd and 1 point; 3 of 5 runs'
    """
    off = float(np.mean(values)) - expected.mean
    allowed = 2 * (expected.sd or 0.0) + SLACK
    way = "below" if off < 0 else "above"
    said = f"{abs(off):.2f} {way}, {'within' if abs(off) <= allowed else 'beyond'} "
    said += f"{'2 sd and ' * (expected.sd is not None)}{SLACK:g} point"
    said += f"; {len(values)} of {expected.runs} runs" if expected.runs and len(values) < expected.runs else ""
    return Verdict("reproduced" if abs(off) <= allowed else way, said)


class Gain(NamedTuple):
    """How much better a method is than a baseline, from runs of the same seeds; `low` to `high` is the interval.

    Attributes:
        mean: in points of accuracy, or of the RMSE that is saved.
        low, high: 95 % interval of Student's t over seeds; infinite with a single one.
        pairs: how many seeds both have.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def word(self) -> str:
        """What may be said of it."""
        if self.pairs < 2:
            return "one seed"
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "no gain"


def gain(ours: Mapping[int, float], baseline: Mapping[int, float], *, higher: bool = True) -> Gain | None:
    """Paired by seed: noise, split and initial weights are the same, so that their luck is not compared.

    Args:
        ours: score by seed.
        baseline: likewise.
        higher: whether higher scores are better.

    Returns:
        Nothing where no seed is in both.

    >>> g = gain({0: 90.0, 1: 91.0, 2: 90.5}, {0: 80.0, 1: 82.0, 2: 80.5})
    >>> round(g.mean, 2), round(g.low, 2), round(g.high, 2), g.word
    (9.67, 8.23, 11.1, 'gain')
    """
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    off = np.array([ours[s] - baseline[s] for s in seeds]) * (1 if higher else -1)
    n, mean = len(off), float(off.mean())
    if n == 1:
        return Gain(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * off.std(ddof=1) / math.sqrt(n))
    return Gain(mean, mean - half, mean + half, n)


class Rank(NamedTuple):
    """A method's mean rank over columns and seeds, 1 is best, with the interval of a bootstrap over columns."""

    name: str
    mean: float
    low: float
    high: float
    columns: int


def ranking(scores: Mapping[str, Mapping[str, float]], *, draws: int = 2000, seed: int = 0) -> list[Rank]:
    """Methods by mean rank over the columns that all of them have.

    Args:
        scores: of each method by column, higher is better.
        draws: of the bootstrap.
        seed: of the same.

    >>> ranking({"a": {"x": 3.0, "y": 2.0}, "b": {"x": 1.0, "y": 1.0}})[0]
    Rank(name='a', mean=1.0, low=1.0, high=1.0, columns=2)
    """
    columns = sorted(set.intersection(*(set(row) for row in scores.values()))) if scores else []
    if not columns:
        return []
    names = list(scores)
    table = np.array([[scores[n][c] for c in columns] for n in names])
    ranks = stats.rankdata(-table, axis=0)
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(columns), size=(draws, len(columns)))
    means = ranks[:, picked].mean(2)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    found = [
        Rank(n, float(r), float(a), float(b), len(columns))
        for n, r, a, b in zip(names, ranks.mean(1), low, high, strict=True)
    ]
    return sorted(found, key=lambda each: each.mean)
