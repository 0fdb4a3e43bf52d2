"""The mathematics against slow loops over the equations, and on data whose posterior is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as given_
from hypothesis import settings
from hypothesis import strategies as st

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


def test_unmix_equals_a_loop_over_the_equation():
    rng = np.random.default_rng(0)
    p, t = rng.dirichlet(np.ones(3), 5), stochastic(rng, 3)
    prior = np.array([0.2, 0.3, 0.5])
    expected = np.tile(prior, (5, 1))
    for _ in range(10):
        for i in range(5):
            q = expected[i].copy()
            mixed = [sum(q[k] * t[k, j] for k in range(3)) for j in range(3)]
            for k in range(3):
                expected[i, k] = q[k] * sum(t[k, j] * p[i, j] / mixed[j] for j in range(3))
    np.testing.assert_allclose(po.unmix(p, t, prior), expected, atol=2e-6)  # but for the least probability


def test_unmix_undoes_mixing():
    rng = np.random.default_rng(0)
    q, t = rng.dirichlet(np.ones(3), 50), stochastic(rng, 3)
    np.testing.assert_allclose(po.unmix(q @ t, t, np.ones(3) / 3, steps=5000), q, atol=2e-3)


def test_belief_equals_bayes_by_hand():
    s, t = np.array([[0.7, 0.2, 0.1]]), stochastic(np.random.default_rng(1), 3)
    numerators = [s[0, k] * t[k, 2] for k in range(3)]
    np.testing.assert_allclose(po._believe(s, np.array([2]), t)[0], np.array(numerators) / sum(numerators))


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


def test_newton_finds_the_calibrating_slope():
    """Probabilities that are all too modest by a known power: (6) finds the power."""
    truth, _, q, _ = model_world(n=20_000, sharp=0.5)
    q = np.maximum(q, 1e-6) / np.maximum(q, 1e-6).sum(axis=1, keepdims=True)
    modest = po._calibrate(q, 0.5)
    slope, log_q = 1.0, np.log(modest)
    for _ in range(30):
        slope = po._newton_slope(slope, log_q, np.eye(4)[truth], po._calibrate(modest, slope))
    assert slope == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("learnt", [True, False], ids=["model predicts labels", "model predicts the truth"])
def test_recovers_transition_and_calibrated_beliefs_when_the_assumptions_hold(learnt):
    k = 4
    flips = 0.7 * np.eye(k) + 0.3 * np.roll(np.eye(k), 1, axis=1)
    truth, label, q, _ = model_world(n=20_000, sharp=0.05, transition=flips)
    result = po.infer(label, q @ flips if learnt else q)
    np.testing.assert_allclose(result.transition, flips, atol=0.03)
    p_wrong = 1 - result.proba[np.arange(len(label)), label]
    assert p_wrong.mean() == pytest.approx((truth != label).mean(), abs=0.01)
    assert calibration_error(truth != label, p_wrong) < 0.02
    assert not result.memorised


def test_learnt_noise_tells_the_two_kinds_of_model_apart():
    flips = 0.6 * np.eye(5) + 0.4 * np.roll(np.eye(5), 1, axis=1)
    _, label, q, _ = model_world(n=5000, k=5, sharp=0.1, transition=flips)
    for p, expected in ((q @ flips, True), (q, False)):
        assert po._learnt_noise(po._hard_confusion(label, p.argmax(axis=1), 5), p) is expected


def test_chunks_give_what_one_piece_gives(monkeypatch):
    """Sorted labels, so that chunks differ as much as they can; only the fit may see fewer samples."""
    _, label, q, t = model_world(n=3000)
    order = np.argsort(label, kind="stable")
    whole = po.infer(label[order], (q @ t)[order])
    fit = po._fit(label[order], (q @ t)[order], (q @ t).mean(axis=0))
    monkeypatch.setattr(po, "FIT_CELLS", 400)
    monkeypatch.setattr(po, "_fit", lambda *_: fit)
    np.testing.assert_allclose(po.infer(label[order], (q @ t)[order]).proba, whole.proba, atol=1e-12)


def test_a_part_of_the_samples_is_enough_to_fit(monkeypatch):
    _, label, q, t = model_world(n=20_000)
    whole = po.infer(label, q @ t)
    monkeypatch.setattr(po, "FIT_CELLS", 20_000)
    assert np.abs(po.infer(label, q @ t).proba - whole.proba).mean() < 0.01


@settings(max_examples=25, deadline=None)
@given_(seed=st.integers(0, 10_000), k=st.integers(2, 6), n=st.integers(5, 300), sharp=st.floats(0.02, 2))
def test_any_input_gives_probabilities(seed, k, n, sharp):
    _, label, q, t = model_world(n=n, k=k, seed=seed, sharp=sharp)
    result = po.infer(label, q @ t)
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
    base = po.infer(label, p).proba
    samples, classes = rng.permutation(400), rng.permutation(4)
    renamed = np.argsort(classes)[label]
    np.testing.assert_allclose(po.infer(label[samples], p[samples]).proba, base[samples], atol=1e-8)
    np.testing.assert_allclose(po.infer(renamed, p[:, classes]).proba, base[:, classes], atol=1e-8)


def test_inputs_are_left_alone():
    _, label, q, t = model_world(n=100)
    p = q @ t
    before = (label.copy(), p.copy())
    po.infer(label, p)
    np.testing.assert_array_equal(label, before[0])
    np.testing.assert_array_equal(p, before[1])
