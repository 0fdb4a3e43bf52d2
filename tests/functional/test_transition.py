"""Transition matrices: what is accepted, inverted and estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelproof.functional.transition import anchor_transition, calibrate, check_transition, invert_transition

GOOD = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.0, 1.0]]


def pairflip(rate: float, classes: int) -> torch.Tensor:
    eye = torch.eye(classes, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(1, 1)


@pytest.mark.parametrize(
    "given",
    [GOOD, tuple(map(tuple, GOOD)), np.array(GOOD), np.array(GOOD, np.float32), torch.tensor(GOOD)],
    ids=["lists", "tuples", "numpy", "numpy fp32", "torch"],
)
def test_every_form_of_table_is_accepted(given: Any) -> None:
    got = check_transition(given, 3)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, GOOD, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-15)


def test_the_result_is_a_copy() -> None:
    for mine in (np.array(GOOD), torch.tensor(GOOD, dtype=torch.float64)):
        check_transition(mine, 3)[0, 0] = 7
        assert float(mine[0, 0]) == 0.9


def test_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array(GOOD))
    np.savetxt(tmp_path / "t.csv", np.array(GOOD), delimiter=",")
    for name in ("t.npy", "t.csv"):
        for path in (tmp_path / name, str(tmp_path / name)):
            np.testing.assert_allclose(check_transition(path, 3), GOOD)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n0.9,0.1\n0.1,0.9\n")
    with pytest.raises(ValueError, match=r"transition='.*t\.csv' is not a table of numbers; give 2 rows of 2, or the"):
        check_transition(str(tmp_path / "t.csv"), 2)
    (tmp_path / "t.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"transition='.*t\.npy' is not a table of numbers"):
        check_transition(str(tmp_path / "t.npy"), 2)
    for missing in ("nowhere.csv", "nowhere.npy", "0.8,0.2", "", "."):
        with pytest.raises(ValueError, match=r"transition='.*' cannot be read"):
            check_transition(missing, 2)


def test_a_named_data_frame_must_be_in_the_order_of_the_classes() -> None:
    classes = ["rot", "gelb"]
    frame = pd.DataFrame([[0.4, 0.6], [0.0, 1.0]], index=classes, columns=classes)
    with pytest.raises(ValueError, match=r"rows \['rot', 'gelb'\] .* both must be the classes in sorted order"):
        check_transition(frame, 2)
    ordered = frame.loc[sorted(classes), sorted(classes)]
    assert check_transition(ordered, 2).tolist() == [[1.0, 0.0], [0.6, 0.4]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([["a", "b"], [1, 0]], r"transition=\[\['a', 'b'\], \[1, 0\]\] is not a table of numbers; give 2 rows of 2"),
        ([[1.0, 0.0], [1.0]], "is not a table of numbers; give 2 rows of 2"),
        (np.eye(3), r"transition has shape \(3, 3\) and must be \(2, 2\): a row for each true class"),
        ([0.5, 0.5], r"transition has shape \(2,\) and must be \(2, 2\)"),
        ([[1.1, -0.1], [0.0, 1.0]], r"transition\[0\]\[1\]=-0\.1 must be a probability, in \[0, 1\]"),
        ([[1.0, 0.0], [np.nan, 1.0]], r"transition\[1\]\[0\]=nan must be a probability"),
        ([[0.9, 0.1], [0.3, 0.6]], "row 1 of transition sums to 0.9 and must sum to 1$"),
        ([[0.9, 0.3], [0.1, 0.7]], r"row \d of transition sums to .* and must sum to 1 \(its columns do: transpose it"),
        ([[90, 10], [20, 80]], "row 0 of transition sums to 100 and must sum to 1$"),
    ],
)
def test_bad_matrices_are_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_transition(given, 2)


@given(st.floats(0, 0.45), st.integers(2, 12))
def test_the_inverse_is_one(rate: float, classes: int) -> None:
    t = pairflip(rate, classes)
    np.testing.assert_allclose(t @ invert_transition(t).double(), np.eye(classes), atol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.5 + 1e-6])
def test_singular_matrices_are_refused_with_the_condition_number(rate: float) -> None:
    with pytest.raises(ValueError, match=r"condition number is \d.*allowed up to 10000.*use method 'forward'"):
        invert_transition(pairflip(rate, 10))
    with pytest.raises(ValueError, match=r"condition number is (infinite|\d).*use method 'forward'"):
        invert_transition(torch.full((3, 3), 1 / 3))


@pytest.mark.parametrize("percentile", [None, 97.0, 92.0, 100.0])
def test_anchors_are_found_where_there_are_some(percentile: float | None) -> None:
    """Calibrated predictions with enough certain samples of each class: T comes back exactly."""
    rng = np.random.default_rng(0)
    t = pairflip(0.45, 10).numpy()
    clean = np.concatenate([np.repeat(np.eye(10), 100, axis=0), rng.dirichlet(np.ones(10), 50)])
    got = anchor_transition(rng.permutation(clean @ t), percentile)
    np.testing.assert_allclose(got, t, atol=1e-12)


def test_the_percentile_filters_outliers() -> None:
    """Two of 200 samples of class 0 are absurdly sure; the anchor is the surest of the others."""
    p = np.full((200, 2), 0.5)
    p[:100] = [0.7, 0.3]
    p[100:] = [0.2, 0.8]
    p[[5, 80]] = [[0.999, 0.001], [0.99, 0.01]]
    np.testing.assert_allclose(anchor_transition(p, 97.0), [[0.7, 0.3], [0.2, 0.8]])
    np.testing.assert_allclose(anchor_transition(p, 100)[0], [0.999, 0.001])


def slow_anchors(p: np.ndarray, percentile: float) -> np.ndarray:
    """Literal: of the samples not above the percentile of p_i, the first of those with the largest p_i."""
    rows = []
    for i in range(p.shape[1]):
        bound = np.percentile(p[:, i], percentile, method="lower")
        best = -1
        for n in range(len(p)):
            if p[n, i] <= bound and (best < 0 or p[n, i] > p[best, i]):
                best = n
        rows.append(p[best] / p[best].sum())
    return np.array(rows)


@given(st.integers(1, 60), st.integers(2, 5), st.sampled_from([1.0, 50.0, 90.0, 97.0, 100.0]), st.integers(0, 9))
def test_anchors_equal_the_literal_rule(n: int, classes: int, percentile: float, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), n).round(1) + 0.01  # rounded: many ties
    got = anchor_transition(p, percentile)
    np.testing.assert_allclose(got, slow_anchors(p, percentile), atol=1e-12)
    np.testing.assert_allclose(got.sum(1), 1)


def test_ties_go_to_the_first_sample() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])
    for _ in range(3):
        assert anchor_transition(p, 100)[0].tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_many_classes_are_not_filtered_by_default() -> None:
    """At 100 classes the 97th percentile drops every sample of a class; the paper leaves the filter out there."""
    clean = np.repeat(np.eye(100), 5, axis=0)
    np.testing.assert_allclose(anchor_transition(clean), np.eye(100))
    few = np.repeat(np.eye(10), 50, axis=0)
    few[0] = [1.001, 0, 0, 0, 0, 0, 0, 0, 0, 0.2]  # an outlier
    np.testing.assert_allclose(anchor_transition(few), np.eye(10))


def test_bad_predictions_are_named() -> None:
    with pytest.raises(ValueError, match=r"prob has shape \(0, 3\) and must be \(n, K\) with at least one sample"):
        anchor_transition(np.empty((0, 3)))
    with pytest.raises(ValueError, match=r"prob has shape \(4,\)"):
        anchor_transition(np.ones(4))
    with pytest.raises(ValueError, match=r"prob\[1\]=\[nan, 1\.0\] is not a row of probabilities; .* lower its lr"):
        anchor_transition([[0.5, 0.5], [np.nan, 1.0]])
    with pytest.raises(ValueError, match=r"prob\[0\]=\[-0\.5, 1\.5\] is not a row"):
        anchor_transition([[-0.5, 1.5]])
    with pytest.raises(ValueError, match=r"percentile=0 must lie in \(0, 100\]; 100 filters nothing"):
        anchor_transition([[0.5, 0.5]], 0)


def test_calibration_finds_the_temperature() -> None:
    """Labels drawn from p; predictions twice as sharp, or half as sharp, come back."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 20_000)
    labels = np.array([rng.choice(4, p=row) for row in p[:10_000]])
    for power in (0.5, 1.0, 2.0, 8.0):
        sharp = p**power / (p**power).sum(1, keepdims=True)
        got = calibrate(sharp, np.arange(10_000), labels)
        assert got.shape == (20_000, 4)
        np.testing.assert_allclose(got, p, atol=0.03)


def test_calibration_survives_certainty() -> None:
    """Predictions of exactly 0 and 1, wrong and right, or all right: finite, and the order of classes is kept."""
    sure = np.eye(3)[[0, 1, 2, 0]]
    for labels in ([0, 1, 2, 1], [0, 1, 2, 0], [1, 2, 0, 1]):
        got = calibrate(sure, [0, 1, 2, 3], labels)
        assert torch.isfinite(got).all()
        assert (got.argmax(1).numpy() == sure.argmax(1)).all()


def test_calibration_needs_held_out_samples() -> None:
    with pytest.raises(ValueError, match="held is empty: calibration needs labels the network was not trained on"):
        calibrate([[0.5, 0.5]], [], [])
