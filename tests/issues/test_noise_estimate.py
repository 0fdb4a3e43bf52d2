"""`estimate_noise`: its parts agree with each other and with the table."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

import labelproof as lp
import labelproof.issues as li


def planted(n=3000, k=4, rate=0.25, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    labels = np.where(rng.random(n) < rate, (truth + rng.integers(1, k, n)) % k, truth)
    clean = rng.dirichlet(np.full(k, 0.5), n) * 0.3 + np.eye(k)[truth] * 0.7
    return truth, labels, (1 - rate) * clean + rate / (k - 1) * (1 - clean)


def test_parts_agree():
    truth, labels, p = planted()
    noise = lp.estimate_noise(labels, p, classes=["a", "b", "c", "d"])
    assert noise.rate == pytest.approx((truth != labels).mean(), abs=0.02)
    assert noise.interval[0] < noise.rate < noise.interval[1]
    assert noise.joint.sum() == pytest.approx(1)
    assert noise.rate == pytest.approx(1 - np.trace(noise.joint))
    np.testing.assert_allclose(noise.prior, noise.joint.sum(axis=1))
    np.testing.assert_allclose(noise.joint.sum(axis=0), np.bincount(labels) / 3000)
    np.testing.assert_allclose(noise.transition.sum(axis=1), 1)
    np.testing.assert_allclose(noise.transition, noise.joint / noise.prior[:, None], atol=0.01)
    np.testing.assert_array_equal(noise.classes, ["a", "b", "c", "d"])
    assert noise.rate == pytest.approx(li.find_issues(labels, p)["p_wrong"].mean())


def test_rows_of_the_transition_are_true_classes():
    """Only class 0 is mislabelled, always as 2: row 0, column 2."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    labels = np.where((truth == 0) & (rng.random(3000) < 0.3), 2, truth)
    p = (rng.dirichlet(np.ones(3), 3000) * 0.1 + np.eye(3)[truth] * 0.9) @ [[0.7, 0, 0.3], [0, 1, 0], [0, 0, 1]]
    noise = li.estimate_noise(labels, p)
    assert noise.transition[0, 2] == pytest.approx(0.3, abs=0.03)
    assert noise.transition[2, 0] < 0.02
    assert str(noise).endswith("most often 0 labelled 2 (" + f"{noise.transition[0, 2]:.1%} of 0)")


def test_text_and_immutability():
    _, labels, p = planted()
    noise = li.estimate_noise(labels, p)
    assert str(noise).startswith(f"{noise.rate:.1%} of the labels are wrong (95 % interval")
    with pytest.raises(dataclasses.FrozenInstanceError):
        noise.rate = 0.0


def test_interval_narrows_with_samples_but_not_to_nothing():
    widths = []
    for n in (300, 3000, 30_000):
        _, labels, p = planted(n=n)
        low, high = li.estimate_noise(labels, p).interval
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0.039


def test_fifty_thousand_labels_of_a_hundred_classes_take_two_seconds():
    _, labels, p = planted(n=50_000, k=100, rate=0.2)
    start = time.perf_counter()
    noise = li.estimate_noise(labels, p)
    assert time.perf_counter() - start < 8  # 1.4 s on one idle core; the margin is for busy machines
    assert noise.rate == pytest.approx(0.2, abs=0.02)
