"""T, a and b against loops over their equations, and what they come to where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from labelproof.issues import learning as le
from labelproof.issues import posterior as po
from labelproof.issues.scores import average_precision


def flipped(truth, transition, seed=0):
    rng = np.random.default_rng(seed)
    return (transition[truth].cumsum(axis=1) > rng.random((len(truth), 1))).argmax(axis=1)


def spread(k, rate):
    """Symmetric noise."""
    return (1 - rate) * np.eye(k) + rate / (k - 1) * (1 - np.eye(k))


def into_next(k, rate):
    return (1 - rate) * np.eye(k) + rate * np.roll(np.eye(k), 1, axis=1)


def weak_world(transition, n=10_000, k=10, seed=0):
    """A model that confuses pairs of classes (0 with 1, 2 with 3, ...), right in two of three cases, and saw the noise.

    Its doubt is overstated in some classes and understated in others, so that one slope cannot calibrate it.
    """
    rng = np.random.default_rng(seed)
    rows, first = np.arange(n), rng.integers(0, k, n)
    q = rng.dirichlet(np.full(k, 0.3), n) * 0.2
    q[rows, first] += 0.8
    torn = rng.random(n) < 0.6
    share = rng.uniform(0.2, 0.8, n)
    q[torn, first[torn]] -= 0.8 * (1 - share[torn])
    q[torn, first[torn] ^ 1] += 0.8 * (1 - share[torn])
    truth = (q.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1).clip(max=k - 1)
    q **= np.linspace(0.8, 1.25, k)[q.argmax(axis=1)][:, None]
    q /= q.sum(axis=1, keepdims=True)
    return truth, flipped(truth, transition, seed + 1), q @ transition


def view_of(given, q):
    return le._view([(given, q)], le.common_shape(np.bincount(given, minlength=q.shape[1])))


def test_where_a_class_is_held_for_unlikely_by_a_loop():
    rng = np.random.default_rng(0)
    q, given = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    view = view_of(given, q)
    d = q.argmax(axis=1)
    odds = np.array([[np.log(q[i, j] / q[i, d[i]]) for j in range(3)] for i in range(40)])
    exposure = np.zeros((3, 3))
    for k in range(3):
        rows = np.flatnonzero(d == k)
        for j in range(3):
            low = odds[rows, j] <= odds[rows, j].mean()
            exposure[k, j] = (low & (given[rows] == k)).sum()
            for i, is_low in zip(rows, low, strict=True):
                if given[i] == j and j != k:
                    assert view.pieces[0].apart[i] == is_low
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(view.exposure[off], exposure[off])


def test_one_step_equals_a_loop_over_the_equations():
    rng = np.random.default_rng(1)
    k, n = 3, 60
    q, given = rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)
    transition, offset, slope = spread(k, 0.3), rng.normal(0, 0.3, (k, k)), 1.3
    view = view_of(given, q)
    found = le._improved(view, le.Noise(transition, slope, offset, even=False))

    right, wrong = np.zeros(k), np.zeros((k, k))
    claimed, believed = np.full((k, k), 30.0), np.full((k, k), 30.0)
    for i in range(n):
        d = int(q[i].argmax())
        s = np.exp([slope * np.log(q[i, j]) + offset[d, j] for j in range(k)])
        s /= s.sum()
        r = np.array([s[j] * transition[j, given[i]] for j in range(k)])
        r /= r.sum()
        claimed[d] += s
        believed[d] += r
        if given[i] == d:
            right[d] += r[d]
        elif view.pieces[0].apart[i]:
            wrong[d, given[i]] += r[d]
    np.testing.assert_allclose(found.offset, offset + np.log(believed / claimed))
    rates, _ = le.drawn_together(wrong, view.exposure, view.shape, even=False)
    np.testing.assert_allclose(found.transition, po.shrunk_rows(right[:, None] * rates + np.diag(right)))


def test_the_score_is_that_of_counts_without_each_sample():
    """Leave one out: T counted again for each label, with the label's own share taken out."""
    rng = np.random.default_rng(2)
    k, n = 3, 400
    truth = rng.integers(0, k, n)
    q = rng.dirichlet(np.full(k, 0.3), n) * 0.3 + np.eye(k)[truth] * 0.7
    given = flipped(truth, into_next(k, 0.2))
    view = view_of(given, q)
    noise = le.Noise(le._rates(view, even=False), 1.0, None, even=False)
    score, rate = le._judged(view, noise)
    piece, s = view.pieces[0], q / q.sum(axis=1, keepdims=True)
    odds = np.log(q) - np.log(q.max(axis=1, keepdims=True))
    low = np.stack([odds[i] <= odds[piece.decided == piece.decided[i]].mean(axis=0) for i in range(n)])
    expected, within, wrong = 0.0, 0.0, 0.0
    for i in range(n):
        d, y = piece.decided[i], given[i]
        likely = s[i] @ noise.transition[:, y]
        right, apart = np.diag(le._confusion(view)).copy(), le._confusion(view, apart_only=True)
        exposure = view.exposure.copy()
        mine = s[i, d] * noise.transition[d, y] / likely
        if d == y:
            right[d] -= mine
            exposure[d] -= low[i] * mine
        elif piece.apart[i]:
            apart[d, y] -= mine
        without = le._transition(right, apart, replace(view, exposure=exposure), even=False)
        expected += np.log(s[i] @ without[:, y])
        within += np.log(likely)
        wrong += 1 - s[i, y] * noise.transition[y, y] / likely
    assert within - expected > 1  # what leaving out makes up
    assert score == pytest.approx(expected, abs=0.3 * (within - expected))
    assert rate == pytest.approx(wrong / n)


def test_how_much_rows_are_drawn_together_by_the_equation():
    """Counts about a common shape: X^2 per degree of freedom is (n + c) / (1 + c); c worth of the shape is added."""
    wrong, k = np.array([[0.0, 6, 4, 2], [3, 0, 8, 1], [5, 2, 0, 5], [1, 9, 2, 0]]), 4
    exposure = np.array([[1.0, 50, 40, 60], [45, 1, 30, 50], [60, 20, 1, 40], [30, 40, 50, 1]])
    shape = le.common_shape(np.array([59.0, 57, 74, 53]))
    sizes = wrong.sum(axis=1)
    rate = [sizes[i] / sum(exposure[i, j] * shape[i, j] for j in range(k)) for i in range(k)]
    x2 = sum(
        (wrong[i, j] - rate[i] * exposure[i, j] * shape[i, j]) ** 2 / (rate[i] * exposure[i, j] * shape[i, j])
        for i in range(k)
        for j in range(k)
        if i != j
    )
    per_degree, n = x2 / (k * (k - 2)), (sizes**2).sum() / sizes.sum()
    c = (n - per_degree) / (per_degree - 1)
    assert 0 < c < 3 * n
    rates, each = le.drawn_together(wrong, exposure, shape, even=False)
    for i in range(k):
        for j in range(k):
            weight = exposure[i, j] + c / rate[i]
            assert rates[i, j] == pytest.approx((wrong[i, j] + c * shape[i, j]) / weight)
            assert each[i, j] == pytest.approx(1 / weight)
    even, nothing = le.drawn_together(wrong, exposure, shape, even=True)
    np.testing.assert_allclose(even, np.array(rate)[:, None] * shape)
    assert not nothing.any()


def test_rows_that_differ_by_chance_are_drawn_together_and_others_are_not():
    rng = np.random.default_rng(0)
    k, n = 10, 200
    shape, exposure = le.common_shape(np.ones(k)), np.full((k, k), 800.0)
    alike = np.stack([rng.multinomial(n, shape[row] / shape[row].sum()) for row in range(k)]).astype(float)
    found, _ = le.drawn_together(alike, exposure, shape, even=False)
    off = ~np.eye(k, dtype=bool)
    assert found[off].std() < 0.5 * (alike / exposure)[off].std()
    pairs = 200.0 * np.roll(np.eye(k), 1, axis=1)
    np.testing.assert_allclose(le.drawn_together(pairs, exposure, shape, even=False)[0], pairs / exposure, atol=1e-3)


@pytest.mark.parametrize("wrong", [np.zeros((3, 3)), np.array([[0.0, 1], [2, 0]])])
def test_where_nothing_can_be_drawn_together_rates_stay(wrong):
    rates, _ = le.drawn_together(wrong, np.full_like(wrong, 10.0), le.common_shape(np.ones(len(wrong))), even=False)
    np.testing.assert_allclose(rates, wrong / 10)


def test_newton_finds_the_calibrating_slope():
    """Probabilities that are all too modest by a known power: (6) finds the power."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.full(4, 0.5), 20_000)
    truth = (q.cumsum(axis=1) > rng.random((len(q), 1))).argmax(axis=1)
    log_q = 0.5 * np.log(np.maximum(q, 1e-6))
    slope = 1.0
    for _ in range(30):
        slope = le._newton_slope(slope, *le._slope_terms(log_q, np.eye(4)[truth], po.sharpened(log_q, slope, None)))
    assert slope == pytest.approx(2.0, abs=0.05)


def test_learnt_noise_tells_the_two_kinds_of_model_apart():
    flips = into_next(5, 0.4)
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.full(5, 0.1), 5000)
    label = flipped((q.cumsum(axis=1) > rng.random((5000, 1))).argmax(axis=1), flips)
    for p, expected in ((q @ flips, True), (q, False)):
        decided = p.argmax(axis=1)
        assert le._learnt_noise(le._hard_confusion(label, decided, 5), po.soft_confusion(decided, p)) is expected


@pytest.mark.parametrize(("transition", "even"), [(spread(10, 0.2), True), (into_next(10, 0.2), False)])
def test_a_weak_models_confusions_are_not_taken_for_noise(transition, even):
    """One rate for each class where noise is symmetric, cells of their own where it is not; and T is about right."""
    truth, given, p = weak_world(transition)
    fit = le.learn(given, p)
    pairs = fit.transition[np.arange(10), np.arange(10) ^ 1]
    rest = fit.transition[~(np.eye(10, dtype=bool) | np.eye(10, dtype=bool)[np.arange(10) ^ 1])]
    if even:  # both 0.0215; with cells of their own 0.0237 and 0.0222
        assert pairs.mean() == pytest.approx(rest.mean(), rel=0.03)
    np.testing.assert_allclose(fit.transition, transition, atol=0.15)
    r = fit.believe(given, p)
    wrong, rows = given != truth, np.arange(len(given))
    plain = average_precision(wrong, 1 - p[rows, given])
    assert average_precision(wrong, 1 - r[rows, given]) > plain + (-0.02 if even else 0.3)
    assert (1 - r[rows, given]).mean() == pytest.approx(wrong.mean(), abs=0.06)


def test_too_few_samples_for_pairs_leave_b_alone():
    _, given, p = weak_world(spread(10, 0.2), n=2999)
    assert le.learn(given, p).offset is None
    _, given, p = weak_world(spread(10, 0.2), n=3000)
    assert le.learn(given, p).offset.shape == (10, 10)


def test_more_samples_make_t_surer():
    rng = np.random.default_rng(0)
    transition, truth = into_next(10, 0.2), rng.integers(0, 10, 60_000)
    q = np.exp(rng.normal(0, 1.5, (60_000, 10)) + 4 * np.eye(10)[truth])
    q /= q.sum(axis=1, keepdims=True)
    given, p = flipped(truth, transition), q @ transition
    few = le.learn(given[:6000], p[:6000])
    more = le.learn(given[:6000], p[:6000], (given, p))
    assert np.abs(more.transition - transition).mean() < 0.7 * np.abs(few.transition - transition).mean()
