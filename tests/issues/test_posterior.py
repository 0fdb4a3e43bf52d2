"""The mathematics against slow loops over the equations, and on data whose posterior is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as given_
from hypothesis import settings
from hypothesis import strategies as st

from labelproof.issues import learning as le
from labelproof.issues import posterior as po
from labelproof.issues.scores import calibration_error


def stochastic(rng, k):
    return rng.dirichlet(np.ones(k), k) * 0.4 + np.eye(k) * 0.6


def model_world(n=4000, k=4, seed=0, sharp=0.15, transition=None):
    """Truth drawn from known q, labels from a known T, and p = T'q: all assumptions hold exactly."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.full(k, sharp), n)
    truth = (q.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    transition = stochastic(rng, k) if transition is None else transition
    label = (transition[truth].cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return truth, label, q, transition


def inferred(label, p):
    """The posterior from a fit on all of the samples."""
    return po.infer(label, p, le.learn(label, p))


def test_unmix_equals_a_loop_over_the_equation():
    rng = np.random.default_rng(0)
    p, t = rng.dirichlet(np.ones(3), 5), stochastic(rng, 3)
    prior = np.array([0.2, 0.3, 0.5])
    expected = np.tile(prior, (5, 1))
    for w in (1, 2, 2, 2, 2):
        for i in range(5):
            q = expected[i].copy()
            mixed = [sum(q[k] * t[k, j] for k in range(3)) for j in range(3)]
            for k in range(3):
                expected[i, k] = q[k] * sum(t[k, j] * p[i, j] / mixed[j] for j in range(3)) ** w
            expected[i] /= expected[i].sum()
    np.testing.assert_allclose(po.unmix(p, t, prior), expected, atol=2e-6)  # but for the least probability


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_unmix_is_the_same_in_any_precision_and_order(dtype, order):
    rng = np.random.default_rng(0)
    p, t, prior = rng.dirichlet(np.ones(5), 50), stochastic(rng, 5), np.full(5, 0.2)
    found = po.unmix(np.asarray(p, dtype=dtype, order=order), t, prior)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, po.unmix(p, t, prior), atol=2e-6)


def test_no_true_class_is_impossible():
    """Or its logarithm would be infinite."""
    q = po.unmix(np.eye(3), np.eye(3), np.ones(3) / 3)
    np.testing.assert_allclose(q, np.where(np.eye(3) == 1, 1, 1e-6), rtol=1e-4)


@pytest.mark.parametrize("k", [3, 200])
@pytest.mark.parametrize("order", ["C", "F"])
def test_top_is_the_first_of_the_largest(k, order):
    p = np.asarray(np.random.default_rng(0).integers(0, 4, (500, k)) / 4, order=order)
    np.testing.assert_array_equal(po.top(p), p.argmax(axis=1))


def test_five_steps_get_as_far_as_ten_of_maximum_likelihood():
    """The distance to what was mixed, beside that of ten steps with w = 1."""
    rng = np.random.default_rng(0)
    t, prior = stochastic(rng, 4), np.full(4, 0.25)
    true = rng.dirichlet(np.full(4, 0.3), 500)
    slow = np.tile(prior, (500, 1))
    for _ in range(10):
        slow *= ((true @ t) / (slow @ t)) @ t.T
    distance = np.abs(po.unmix(true @ t, t, prior) - true).mean()
    assert distance < 1.1 * np.abs(slow - true).mean()


def test_unmix_undoes_mixing():
    rng = np.random.default_rng(0)
    q, t = rng.dirichlet(np.ones(3), 50), stochastic(rng, 3)
    np.testing.assert_allclose(po.unmix(q @ t, t, np.ones(3) / 3, (1,) * 5000), q, atol=2e-3)


def test_belief_equals_bayes_by_hand():
    s, t = np.array([[0.7, 0.2, 0.1]]), stochastic(np.random.default_rng(1), 3)
    numerators = [s[0, k] * t[k, 2] for k in range(3)]
    np.testing.assert_allclose(po.bayes(s, np.array([2]), t)[0], np.array(numerators) / sum(numerators))


def test_soft_confusion_counts_beliefs_by_label():
    r = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    labels = np.random.default_rng(1).integers(0, 3, 20)
    expected = np.zeros((3, 3))
    for i, j in enumerate(labels):
        for k in range(3):
            expected[k, j] += r[i, k]
    np.testing.assert_allclose(po.soft_confusion(labels, r), expected)


def test_rows_are_drawn_towards_the_common_rate_and_no_row_is_undefined():
    counts = np.array([[900.0, 100.0, 0.0], [0.0, 1000.0, 0.0], [0.0, 0.0, 0.0]])
    rows = po.shrunk_rows(counts)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert rows[0, 1] == pytest.approx(0.1, abs=0.002)
    assert rows[2, 2] == pytest.approx(1900 / 2000, abs=1e-3)  # an empty class: what holds for all
    assert (rows > 0).all()


@pytest.mark.parametrize("learnt", [True, False], ids=["model predicts labels", "model predicts the truth"])
def test_recovers_transition_and_calibrated_beliefs_when_the_assumptions_hold(learnt):
    k = 4
    flips = 0.7 * np.eye(k) + 0.3 * np.roll(np.eye(k), 1, axis=1)
    truth, label, q, _ = model_world(n=20_000, sharp=0.05, transition=flips)
    result = inferred(label, q @ flips if learnt else q)
    np.testing.assert_allclose(result.transition, flips, atol=0.03)
    p_wrong = 1 - result.proba[np.arange(len(label)), label]
    assert p_wrong.mean() == pytest.approx((truth != label).mean(), abs=0.01)
    assert calibration_error(truth != label, p_wrong) < 0.02
    assert not result.memorised


@pytest.mark.parametrize("cells", [1, 4, 4 * 999, 4 * 1000, 4 * 1001])
def test_blocks_give_what_one_piece_gives(monkeypatch, cells):
    """Sorted labels, so that blocks differ as much as they can; blocks of one row, and of N and N ± 1."""
    _, label, q, t = model_world(n=1000)
    order = np.argsort(label, kind="stable")
    label, p = label[order], (q @ t)[order]
    whole = inferred(label, p)
    monkeypatch.setattr(po, "BLOCK_CELLS", cells)
    assert sum(len(range(1000)[rows]) for rows in po.blocks(1000, 4)) == 1000
    found = inferred(label, p)
    np.testing.assert_allclose(found.proba, whole.proba, atol=1e-9)
    np.testing.assert_allclose(found.transition, whole.transition, atol=1e-9)


def test_a_part_of_the_samples_is_enough_to_fit():
    _, label, q, t = model_world(n=20_000)
    p = q @ t
    part = po.infer(label, p, le.learn(label[:5000], p[:5000]))
    assert np.abs(part.proba - inferred(label, p).proba).mean() < 0.01


@settings(max_examples=25, deadline=None)
@given_(seed=st.integers(0, 10_000), k=st.integers(2, 6), n=st.integers(5, 300), sharp=st.floats(0.02, 2))
def test_any_input_gives_probabilities(seed, k, n, sharp):
    _, label, q, t = model_world(n=n, k=k, seed=seed, sharp=sharp)
    result = inferred(label, q @ t)
    for rows in (result.proba, result.transition):
        assert np.isfinite(rows).all()
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert 0 <= result.errors <= 1


@settings(max_examples=15, deadline=None)
@given_(seed=st.integers(0, 10_000))
def test_order_of_samples_and_names_of_classes_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    _, label, q, t = model_world(n=400, k=4, seed=seed)
    p = q @ t
    base = inferred(label, p).proba
    samples, classes = rng.permutation(400), rng.permutation(4)
    renamed = np.argsort(classes)[label]
    np.testing.assert_allclose(inferred(label[samples], p[samples]).proba, base[samples], atol=1e-8)
    np.testing.assert_allclose(inferred(renamed, p[:, classes]).proba, base[:, classes], atol=1e-8)


def test_inputs_are_left_alone():
    _, label, q, t = model_world(n=100)
    p = q @ t
    before = (label.copy(), p.copy())
    inferred(label, p)
    np.testing.assert_array_equal(label, before[0])
    np.testing.assert_array_equal(p, before[1])
