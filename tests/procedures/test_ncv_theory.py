"""The theory of noisy cross-validation: equations against loops and simulation, and its verification with a stub."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from labelproof.core.method import Fit
from labelproof.data import noise
from labelproof.data.dataset import Data
from labelproof.engine.stages import Stages
from labelproof.engine.training import Training
from labelproof.methods import CE
from labelproof.procedures import ncv_theory
from labelproof.procedures.ncv_theory import (
    asymmetric,
    asymmetric_rate,
    selected_noise,
    symmetric,
    symmetric_rate,
    theory,
    verify,
)
from tests.toy import blobs, factory, line
from tests.toy import settings as run_settings

RATES = (0, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9, 1)
#: Published for ten classes, four digits.
TABLE = {
    ("symmetric", "accuracy"): (1, 0.6444, 0.3778, 0.2778, 0.2000, 0.1111, 0.1000, 0.1111),
    ("symmetric", "precision"): (1, 0.9931, 0.9529, 0.9000, 0.8000, 0.3600, 0.1000, 0),
    ("asymmetric", "accuracy"): (1, 0.6800, 0.5200, 0.5000, 0.5200, 0.6800, 0.8200, 1),
    ("asymmetric", "precision"): (1, 0.9412, 0.6923, 0.5000, 0.3077, 0.0588, 0.0122, 0),
    ("symmetric", "recall"): (1, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1, 0),
    ("asymmetric", "recall"): (1, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1, 0),
}
CLOSED = {"symmetric": symmetric, "asymmetric": asymmetric}
CELLS = [(kind, what, rate, cell) for (kind, what), row in TABLE.items() for rate, cell in zip(RATES, row, strict=True)]
Rate = st.floats(0, 1)
Classes = st.integers(2, 100)


def nominal(kind: str, rate: float, classes: int) -> np.ndarray:
    """T as the noise itself states it."""
    kind = {"asymmetric": "pairflip"}.get(kind, kind)
    found = noise.inject(np.arange(classes), kind, rate, num_classes=classes).nominal
    assert found is not None
    return found


@pytest.mark.parametrize(("kind", "what", "rate", "cell"), CELLS)
def test_the_table_of_the_paper(kind: str, what: str, rate: float, cell: float) -> None:
    assert round(getattr(CLOSED[kind](rate, 10), what), 4) == pytest.approx(cell, abs=1e-9)
    assert round(getattr(theory(nominal(kind, rate, 10)), what), 4) == pytest.approx(cell, abs=1e-9)


@settings(deadline=None)
@given(st.sampled_from(sorted(CLOSED)), Rate, Classes)
def test_closed_forms_are_the_general_form_of_their_matrix(kind: str, rate: float, classes: int) -> None:
    closed, T = CLOSED[kind](rate, classes), nominal(kind, rate, classes)
    np.testing.assert_allclose(closed.confusion, T, rtol=0, atol=1e-15)
    general = theory(T)
    np.testing.assert_allclose(closed[:3], general[:3], rtol=0, atol=1e-12)
    np.testing.assert_allclose(general.confusion, T, rtol=0, atol=1e-15)


@settings(deadline=None)
@given(st.sampled_from(sorted(CLOSED)), Rate, st.integers(2, 8), st.integers(0, 2**20))
def test_where_all_classes_err_alike_their_shares_do_not_matter(kind: str, rate: float, K: int, seed: int) -> None:
    prior = np.random.default_rng(seed).dirichlet(np.ones(K))
    np.testing.assert_allclose(theory(nominal(kind, rate, K), prior)[:3], CLOSED[kind](rate, K)[:3], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_general_form_by_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K = 2 + seed
    T, counts = rng.dirichlet(np.full(K, 0.4), K), rng.integers(1, 100, K)
    agree = both = clean = 0.0
    for i in range(K):
        share = counts[i] / counts.sum()
        for j in range(K):
            agree += share * T[i, j] * T[i, j]
        both += share * T[i, i] * T[i, i]
        clean += share * T[i, i]
    expected = (agree, both / agree, both / clean)
    np.testing.assert_allclose(theory(T, counts)[:3], expected, rtol=1e-12)
    np.testing.assert_allclose(theory(T.tolist(), (counts / counts.sum()).tolist())[:3], expected, rtol=1e-12)
    assert selected_noise(T, counts) == pytest.approx(1 - both / agree, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_labels_and_predictions_drawn_apart_from_each_other_do_what_it_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    K, n = 5, 200_000
    T, prior = rng.dirichlet(np.full(K, 0.5), K), rng.dirichlet(np.ones(K))
    truth = rng.choice(K, n, p=prior)
    cdf = T.cumsum(1)[truth]
    cdf[:, -1] = 1
    given_label, predicted = ((cdf < rng.random((n, 1))).sum(1) for _ in range(2))
    selected, clean = given_label == predicted, given_label == truth
    expected = theory(T, prior)
    measured = (selected.mean(), clean[selected].mean(), selected[clean].mean())
    for value, p, size in zip(measured, expected[:3], (n, selected.sum(), clean.sum()), strict=True):
        assert abs(value - p) < 4.5 * math.sqrt(p * (1 - p) / size)
    for i in range(K):
        row, size = np.bincount(predicted[truth == i], minlength=K), (truth == i).sum()
        np.testing.assert_array_less(np.abs(row / size - expected.confusion[i]), 4.5 * np.sqrt(0.25 / size))


@settings(deadline=None)
@given(Rate, Classes)
def test_rates_come_back_from_their_accuracy(rate: float, classes: int) -> None:
    # Nearer the turning point a rounded accuracy stands for many rates.
    if rate < (classes - 1) / classes - 1e-3:
        found = symmetric_rate(symmetric(rate, classes).accuracy, classes)
        assert found.valid
        assert found.rate == pytest.approx(rate, abs=1e-12)
    found = asymmetric_rate(asymmetric(rate, classes).accuracy)
    assert found.valid
    if abs(rate - 0.5) > 1e-3:
        assert found.rate == pytest.approx(min(rate, 1 - rate), abs=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1), Classes)
def test_every_accuracy_above_chance_belongs_to_the_rate_it_is_told(accuracy: float, classes: int) -> None:
    assume(accuracy >= 1 / classes)
    assert symmetric(symmetric_rate(accuracy, classes).rate, classes).accuracy == pytest.approx(accuracy, abs=1e-12)
    if accuracy >= 0.5:
        assert asymmetric(asymmetric_rate(accuracy).rate, classes).accuracy == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("classes", range(2, 60))
def test_chance_itself_is_the_end_of_the_range(classes: int) -> None:
    at, below = symmetric_rate(1 / classes, classes), symmetric_rate(1 / classes - 1e-6, classes)
    assert at.valid
    assert at.rate == pytest.approx((classes - 1) / classes, abs=1e-7)
    assert below == ((classes - 1) / classes, False)


def test_accuracies_that_no_rate_leads_to() -> None:
    assert symmetric_rate(0, 10) == (0.9, False)
    assert asymmetric_rate(0) == (0.5, False)
    assert asymmetric_rate(0.499) == (0.5, False)
    assert asymmetric_rate(0.5) == (0.5, True)
    assert symmetric_rate(1, 10) == (0, True)


def test_the_symmetric_inverse_is_wrong_of_asymmetric_noise() -> None:
    # The released code applies it to any noise, on a grid of 0.001: 0.286 for a rate of 0.4.
    assert math.ceil(1000 * symmetric_rate(asymmetric(0.4, 10).accuracy, 10).rate) == 286
    assert asymmetric_rate(asymmetric(0.4, 10).accuracy).rate == pytest.approx(0.4, abs=1e-12)


def test_noise_left_among_the_selected() -> None:
    found = [selected_noise(symmetric(rate, 10).confusion) for rate in (0.2, 0.5, 0.8)]
    np.testing.assert_allclose(found, [0.0069, 0.100, 0.640], atol=5e-5)
    assert selected_noise(asymmetric(0.4, 10).confusion) == pytest.approx(0.3077, abs=5e-5)
    assert selected_noise(symmetric(1, 10).confusion) == 1


def test_classes_that_are_never_wrong_and_classes_that_always_are() -> None:
    T = np.eye(4)
    T[0] = [0, 1, 0, 0]
    assert theory(T, [1, 0, 0, 0])[:3] == (1, 0, 0)  # no clean label: recall is its limit
    assert theory(T, [0, 1, 1, 0])[:3] == (1, 1, 1)
    assert theory(T, [1, 1, 1, 1])[:3] == (1, 0.75, 1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: theory([[0.5, 0.6], [0, 1]]), "row 0 of transition sums to 1.1 and must sum to 1"),
        (lambda: theory(np.eye(3), [1, 1]), r"prior has shape \(2,\) and must be \(3,\)"),
        (lambda: theory(np.eye(2), [1, -1]), r"prior=\[1, -1\] must hold shares or counts: finite, none below 0"),
        (lambda: theory(np.eye(2), [0, 0]), "not all of them 0"),
        (lambda: theory(np.eye(2), [math.nan, 1]), "must hold shares or counts"),
        (lambda: symmetric(1.2, 10), r"rate=1.2 must be in \[0, 1\], a share and not per cent"),
        (lambda: asymmetric(math.nan, 10), r"rate=nan must be in \[0, 1\]"),
        (lambda: symmetric(0.2, 1), "num_classes=1 must be a whole number, at least 2"),
        (lambda: symmetric(0.2, 2.5), "num_classes=2.5 must be a whole number"),  # type: ignore[arg-type]
        (lambda: symmetric_rate(64, 10), r"accuracy=64 must be in \[0, 1\]"),
        (lambda: asymmetric_rate(-0.1), r"accuracy=-0.1 must be in \[0, 1\]"),
    ],
)
def test_nonsense_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


class Neighbour(Fit):
    """Trains nothing: the nearest sample's label, which is memorising to perfection. Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def all(self, plans: Any) -> list[Any]:
        self.asked.append(list(plans))
        return super().all(plans)

    def __call__(self, method: Any, data: Data, /, **how: Any) -> Any:
        known = KNeighborsClassifier(1).fit(data.x, data.y)
        return SimpleNamespace(predict=lambda x: np.eye(data.num_classes)[known.predict(x)])


class Always(Fit):
    """Predicts what the first column of the inputs says, moved by `shift` classes."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def __call__(self, method: Any, data: Data, /, **how: Any) -> Any:
        K = data.num_classes
        return SimpleNamespace(predict=lambda x: np.eye(K)[(x[:, 0].astype(int) + self.shift) % K])


def plain(n: int = 400, classes: int = 4, seed: int = 0) -> Data:
    """Samples whose first column is their class and whose second is their number."""
    y = np.random.default_rng(seed).choice(classes, n, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    return Data(np.stack([y, np.arange(n)], 1).astype(np.float32), y, classes=np.array(list("abcdefgh"))[:classes])


def digits() -> Data:
    X, y = load_digits(return_X_y=True)
    return Data(X.astype(np.float32), y, classes=np.arange(10))


def test_what_is_trained_and_with_what() -> None:
    data, fit, method, rates = plain(), Neighbour(), CE(), [0, 0.25, 1]
    verify(fit, method, data, kind="pairflip", rates=rates, seed=3)
    (plans,) = fit.asked
    assert [plan.stage for plan in plans] == ["theory-pairflip-0", "theory-pairflip-0.25", "theory-pairflip-1"]
    halves = [set(plan.data.ids) for plan in plans]
    assert halves[0] == halves[1] == halves[2]
    assert len(halves[0]) == 200
    assert plans[0].data.x is plans[1].data.x  # one copy, however many rates
    np.testing.assert_allclose(np.bincount(plans[0].data.truth), np.bincount(data.y) / 2, atol=1)
    for plan, rate in zip(plans, rates, strict=True):
        noisy = noise.inject(data.y, "pairflip", rate, seed=3, num_classes=4).labels
        np.testing.assert_array_equal(plan.data.y, noisy[plan.data.ids])
        np.testing.assert_array_equal(plan.data.truth, data.y[plan.data.ids])
        assert plan.method is method
    assert data.truth is None
    other = Neighbour()
    verify(other, method, data, kind="pairflip", rates=rates, seed=4)
    assert set(other.asked[0][0].data.ids) != halves[0]


def test_every_number_by_loops() -> None:
    data, shift, rates, seed = plain(), 1, (0.0, 0.3, 1.0), 5
    found = verify(Always(shift), CE(), data, kind="symmetric", rates=rates, seed=seed)
    catch = Neighbour()
    verify(catch, CE(), data, kind="symmetric", rates=rates, seed=seed)
    for r, (rate, plan) in enumerate(zip(rates, catch.asked[0], strict=True)):
        injected = noise.inject(data.y, "symmetric", rate, seed=seed, num_classes=4)
        trained, noisy, row = set(plan.data.ids), injected.labels, found.table.loc[r]
        agree = clean = both = memorised = 0
        M = np.zeros((4, 4))
        for i in range(len(data)):
            predicted = (data.y[i] + shift) % 4
            if i in trained:
                memorised += predicted == noisy[i]
                continue
            agree += predicted == noisy[i]
            clean += data.y[i] == noisy[i]
            both += predicted == noisy[i] == data.y[i]
            M[data.y[i], predicted] += 1
        assert row["rate"] == rate
        assert row["realised"] == injected.rate
        assert row["accuracy"] == pytest.approx(agree / 200)
        assert row["precision"] == pytest.approx(both / agree if agree else math.nan, nan_ok=True)
        assert row["recall"] == pytest.approx(both / clean if clean else math.nan, nan_ok=True)
        assert row["memorised"] == pytest.approx(memorised / 200)
        expected = theory(injected.transition, np.bincount(data.y))
        assert row[["accuracy_theory", "precision_theory", "recall_theory"]].tolist() == pytest.approx(expected[:3])
        M /= M.sum(1, keepdims=True)
        np.testing.assert_allclose(found.measured[r], M)
        np.testing.assert_allclose(found.transition[r], injected.transition)
        assert row["confusion"] == pytest.approx(np.abs(M - injected.transition).max())


def test_shares_of_nothing_are_no_numbers() -> None:
    wrong = verify(Always(1), CE(), plain(), kind="pairflip", rates=[0, 1])
    assert wrong.table["accuracy"].tolist() == [0, 1]
    assert math.isnan(wrong.table["precision"][0])  # nothing is selected
    assert wrong.table["precision"][1] == 0
    assert wrong.table["recall"][0] == 0
    assert math.isnan(wrong.table["recall"][1])  # nothing is clean
    assert wrong.table["recall_theory"].tolist() == [1, 0]
    distance = wrong.distance()
    assert distance.loc["recall"].tolist() == [1, 1, 0]
    nothing = verify(Always(1), CE(), plain(), kind="pairflip", rates=[0]).distance()
    assert math.isnan(nothing.loc["precision", "largest"])


def test_what_memorises_and_else_errs_nowhere_is_as_the_theory_says() -> None:
    found = verify(Neighbour(), CE(), digits(), rates=[0, 0.2, 0.5, 0.8, 1])
    assert (found.table["memorised"] == 1).all()
    distance = found.distance()
    assert list(distance.index) == ["accuracy", "precision", "recall", "confusion"]
    assert distance.loc["accuracy", "largest"] < 0.05  # about 900 samples, of which 1 in 80 is really misread
    assert distance["mean"].max() < 0.05
    off = (found.table["accuracy"] - found.table["accuracy_theory"]).abs()
    assert distance.loc["accuracy", "largest"] == off.max()
    assert distance.loc["accuracy", "mean"] == pytest.approx(off.mean())
    assert distance.loc["accuracy", "rate"] == found.table["rate"][off.idxmax()]
    cells = np.abs(found.measured - found.transition)
    assert distance.loc["confusion", "mean"] == pytest.approx(cells.mean())
    assert distance.loc["confusion", "largest"] == pytest.approx(cells.max())


@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "elr-sym", "asymmetric", "flip2"])
def test_lines_run_through_what_the_realised_noise_leads_to(kind: str) -> None:
    found = verify(Neighbour(), CE(), digits(), kind=kind, rates=[0, 0.3, 0.7], seed=2)
    at = found.lines.set_index("rate")
    assert len(at) == 101
    for row in found.table.itertuples():
        for name in ncv_theory.QUANTITIES:
            assert at.loc[row.rate, name] == pytest.approx(getattr(row, f"{name}_theory"), abs=0.04)
    closed = {"symmetric": symmetric, "pairflip": asymmetric}.get(kind)
    if closed:
        for rate, row in at.iterrows():
            assert row.tolist() == pytest.approx(closed(rate, 10)[:3], abs=1e-12)


def test_a_class_of_a_single_sample_is_no_error() -> None:
    data = plain()
    y = np.where(data.y == 3, 2, data.y)
    y[17] = 3
    alone = replace(data, y=y)
    found = verify(Neighbour(), CE(), alone, rates=[0.2])
    assert np.isnan(found.measured[0, 3]).all()  # it is in the half trained on
    assert np.isfinite(found.measured[0, :3]).all()
    assert np.isfinite(found.distance().to_numpy()).all()


def test_the_summary_is_text() -> None:
    text = str(verify(Neighbour(), CE(), digits(), kind="pairflip", rates=[0, 0.4]))
    assert text.startswith("noise pairflip: measured on the half not trained on")
    assert "accuracy_theory" in text
    assert "largest" in text
    assert "0.400" in text


def test_real_trainings_resume_from_their_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(blobs(200, spread=0.2), truth=None)
    how = {"factory": factory(data), "settings": run_settings(), "stamp": {"method": "CE()"}, "folder": tmp_path}
    found = verify(Stages(**how), CE(), data, rates=[0, 0.4])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theory-symmetric-0", "theory-symmetric-0.4"]
    assert found.table["accuracy"][0] > 0.95
    monkeypatch.setattr(Training, "run_batch", lambda *_: pytest.fail("trained again"))
    again = verify(Stages(**how, resume=True), CE(), data, rates=[0, 0.4])
    assert again.table.equals(found.table)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (blobs(40), {}, "data 'data' has given labels beside true ones: verify.. puts noise of its own into clean"),
        (line(40), {}, "data 'data' has no classes: the theory is about wrong classes"),
        (plain(3), {}, "has 3 samples: two halves need at least 4"),
        (plain(), {"kind": "symetric"}, "unknown noise kind 'symetric', did you mean 'symmetric'"),
        (plain(), {"kind": "instance-dependent"}, "kind='instance-dependent' is no noise with a rate that depends on"),
        (plain(), {"kind": "pdn-instance"}, "there are: symmetric, pairflip, asymmetric, flip, flip2, and the presets"),
        (plain(), {"kind": "transition"}, "kind='transition' is no noise with a rate"),
        (plain(), {"kind": "sign-flip"}, "kind='sign-flip' is no noise with a rate"),
        (plain(), {"rates": []}, r"rates is empty: give noise rates in \[0, 1\]"),
        (plain(), {"rates": [0.1, 20]}, r"rates=20 must be in \[0, 1\], a share and not per cent"),
        (plain(), {"rates": [0.1, 0.2, 0.1]}, r"rates=\[0.1, 0.2, 0.1\] holds 0.1 more than once"),
    ],
)
def test_what_cannot_be_verified_is_refused_before_any_training(data: Data, options: Any, said: str) -> None:
    fit = Neighbour()
    with pytest.raises(ValueError, match=said):
        verify(fit, CE(), data, **options)
    assert not fit.asked
