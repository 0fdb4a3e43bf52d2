"""The noise read off simulated networks, weak or memorising: kind, rate and precision against what was simulated."""

from __future__ import annotations

import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest

from labelproof.procedures.ncv_theory import asymmetric, symmetric, theory
from labelproof.procedures.noise_model import NoiseModel, _symmetric, flipped, label_precision, noise_model
from tests.procedures.stub import draw


class Simulated(NamedTuple):
    true: np.ndarray
    given: np.ndarray
    prob: np.ndarray

    @property
    def precision(self) -> float:
        """Share of right labels among those that are predicted."""
        agree = self.prob.argmax(1) == self.given
        return float((self.true == self.given)[agree].mean())

    @property
    def rate(self) -> float:
        return float((self.true != self.given).mean())


def simulate(
    T: np.ndarray,
    n: int = 20_000,
    *,
    sure: float,
    share: float = 0.0,
    memory: float = 8.0,
    seen: float = 0.0,
    prior: Any = None,
    seed: int = 0,
) -> Simulated:
    """A network whose true class gets a bonus, and in a share of the cases a label drawn from T anew another one.

    Args:
        T: the noise.
        n: samples.
        sure: bonus of the true class over errors of standard deviation 1.
        share: of the samples for which it says what it memorised of samples nearby.
        memory: bonus of that label.
        seen: weight of what every network sees of noise: the logarithm of T.
        prior: of the true classes.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    k = len(T)
    true = rng.choice(k, n, p=prior)
    given, other = draw(T, true, rng), draw(T, true, rng)
    z = sure * np.eye(k)[true] + rng.normal(size=(n, k)) + seen * np.log(T + 1e-3)[true]
    z += (rng.random(n) < share)[:, None] * memory * np.eye(k)[other]
    p = np.exp(z - z.max(1, keepdims=True))
    return Simulated(true, given, (p / p.sum(1, keepdims=True)).astype(np.float32))


def told(s: Simulated, rate: float | None = None) -> NoiseModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what it has to say is in `doubt`
        return noise_model(s.given, s.prob, rate)


#: Networks: one that knows the classes, a weak one, the one of the theory (soft), and one between.
NETWORKS: dict[str, dict[str, float]] = {
    "accurate": {"sure": 9.0},
    "weak": {"sure": 2.0},
    "memorising": {"sure": 2.0, "share": 1.0},
    "partly": {"sure": 4.0, "share": 0.5},
}


def close(rate: float, s: Simulated, k: int, weak: bool) -> float:
    """Tolerance: four standard errors of (2) with the fewest ranks; a weak network has errors among the lowest too."""
    m = max(1, k // 4)
    p = rate * m / (k - 1)
    return 4 * (k - 1) / m * float(np.sqrt(p * (1 - p) / len(s.given))) + (0.045 if weak else 0.01)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("k", [4, 10, 100])
def test_symmetric_noise(k: int, rate: float, network: str) -> None:
    if rate > (k - 1) / k:
        return
    T = symmetric(rate, k).confusion
    s = simulate(T, **NETWORKS[network])
    found = told(s)
    tolerance = close(rate, s, k, network == "weak")
    assert found.kind == "symmetric"
    assert found.rate == pytest.approx(s.rate, abs=tolerance)
    assert found.rate == pytest.approx(rate, abs=0.05), "what the issue asks for"
    np.testing.assert_allclose(found.transition, symmetric(found.rate, k).confusion, atol=1e-12)
    assert found.agreement == pytest.approx((s.prob.argmax(1) == s.given).mean())
    assert found.precision == pytest.approx(s.precision, abs=0.07 if rate == 0.8 else 0.02)
    assert not found.doubt or (rate == 0.8 and network == "memorising"), "it agrees as little as chance"


@pytest.mark.parametrize("prior", ["even", "uneven"])
@pytest.mark.parametrize("network", ["accurate", "memorising", "partly"])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("k", [3, 4, 10])
def test_pair_flips(k: int, rate: float, network: str, prior: str) -> None:
    """Slip I3: flips of .4 are not taken for symmetric noise of .286, whatever the network memorised."""
    T = asymmetric(rate, k).confusion
    pi = None if prior == "even" else np.linspace(1, 2, k) / np.linspace(1, 2, k).sum()
    s = simulate(T, prior=pi, **NETWORKS[network])
    found = told(s)
    assert found.kind == "pairflip"
    assert found.rate == pytest.approx(s.rate, abs=0.03)
    assert found.precision == pytest.approx(s.precision, abs=0.03)
    assert found.doubt == ("of three classes, pair flips explain any noise" if k == 3 else "")
    if network != "memorising":  # the theory cannot tell which way classes flip: agreement is the same both ways
        np.testing.assert_allclose(found.transition, asymmetric(found.rate, k).confusion, atol=1e-12)
    assert (found.transition > 0).sum() == 2 * k


@pytest.mark.parametrize("rate", [0.2, 0.4])
@pytest.mark.parametrize("k", [10, 100])
def test_pair_flips_that_the_network_expects(k: int, rate: float) -> None:
    """Trained networks give the next class a high probability: its labels are no floor under the ranks."""
    s = simulate(asymmetric(rate, k).confusion, sure=2.0 if k == 10 else 3.0, seen=0.3)
    assert (s.prob.argmax(1) == s.true).mean() < 0.99
    found = told(s)
    assert found.kind == "pairflip"
    assert found.rate == pytest.approx(s.rate, abs=0.03)
    assert found.precision == pytest.approx(s.precision, abs=0.03)


@pytest.mark.parametrize("kind", ["symmetric", "pairflip"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("k", [3, 4, 10, 11, 100])
def test_hard_predictions_of_the_theory(k: int, rate: float, kind: str) -> None:
    T = (symmetric if kind == "symmetric" else asymmetric)(rate, k).confusion
    rng = np.random.default_rng(k)
    true = rng.integers(0, k, 40_000)
    given, predicted = draw(T, true, rng), draw(T, true, rng)
    found = told(Simulated(true, given, np.eye(k)[predicted]))
    if k > 3:
        assert found.rate == pytest.approx(rate, abs=0.03)
        assert found.kind == kind
        assert found.precision == pytest.approx(theory(T).precision, abs=0.02)
    else:  # of three classes both kinds make the same table: off by one either way alike
        assert found.kind == "pairflip"
        assert found.rate == pytest.approx(rate, abs=0.11 if kind == "symmetric" else 0.03)


def test_rings_of_any_shape_are_found_where_both_ways_are_alike() -> None:
    """Flips along a 3-ring and a 5-ring in an order of their own, seen by the network of the theory."""
    order = np.random.default_rng(4).permutation(8)
    following = np.empty(8, dtype=int)
    for ring in (order[:3], order[3:]):
        following[ring] = np.roll(ring, 1)
    T = 0.7 * np.eye(8) + 0.3 * np.eye(8)[following]
    rng = np.random.default_rng(0)
    true = rng.integers(0, 8, 40_000)
    found = told(Simulated(true, draw(T, true, rng), np.eye(8)[draw(T, true, rng)]))
    assert found.kind == "pairflip"
    assert found.rate == pytest.approx(0.3, abs=0.02)
    back = np.argsort(following)
    other = found.transition - np.diag(np.diag(found.transition))
    for i in range(8):
        assert other[i].argmax() in (following[i], back[i])


def test_a_ring_that_is_known_goes_its_way_beside_one_that_is_not() -> None:
    """The network memorised a ring of four alone, of which an assignment makes pairs in some draws."""
    k, rate = 8, 0.3
    known, other = np.array([5, 1, 6, 3]), np.array([0, 2, 4, 7])
    following = np.empty(k, dtype=int)
    for ring in (known, other):
        following[ring] = np.roll(ring, 1)
    T = (1 - rate) * np.eye(k) + rate * np.eye(k)[following]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        true = rng.integers(0, k, 20_000)
        said = np.where(np.isin(true, known), true, draw(T, true, rng))
        found = told(Simulated(true, draw(T, true, rng), np.eye(k)[said]))
        assert found.kind == "pairflip"
        assert found.rate == pytest.approx(rate, abs=0.02)
        away = found.transition - np.diag(np.diag(found.transition))
        assert (away.argmax(1) == following)[known].all()


@pytest.mark.parametrize("network", ["accurate", "partly"])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_three_classes(rate: float, network: str) -> None:
    """Pairs explain any noise of three classes: what is alike in both directions must be told by the ranks."""
    s = simulate(symmetric(rate, 3).confusion, **NETWORKS[network])
    found = told(s)
    assert found.rate == pytest.approx(rate, abs=0.03)
    assert found.precision == pytest.approx(s.precision, abs=0.02)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.35])
@pytest.mark.parametrize("network", ["accurate", "weak", "partly"])
def test_two_classes_take_the_full_matrix(rate: float, network: str) -> None:
    s = simulate(symmetric(rate, 2).confusion, **NETWORKS[network])
    found = told(s)
    assert found.kind == "transition"
    assert found.rate == pytest.approx(s.rate, abs=0.08 if network == "partly" else 0.03)
    np.testing.assert_allclose(found.transition.sum(1), 1)


@pytest.mark.parametrize("network", ["accurate", "weak", "partly"])
def test_uneven_classes(network: str) -> None:
    """One class has half of the samples, the rarest one in ninety."""
    prior = np.array([45, 13, 9, 7, 5, 4, 3, 2, 1, 1]) / 90
    T = symmetric(0.3, 10).confusion
    s = simulate(T, prior=prior, **NETWORKS[network])
    found = told(s)
    assert found.kind == "symmetric"
    assert found.rate == pytest.approx(s.rate, abs=close(0.3, s, 10, True))
    assert found.precision == pytest.approx(s.precision, abs=0.02)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_other_noise_takes_the_full_matrix(rate: float) -> None:
    """Two classes taken for each other, and others left alone."""
    T = np.eye(10)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (5, 9)):
        T[i, i], T[i, j] = 1 - rate, rate
    s = simulate(T, sure=7.0, seen=0.4)
    found = told(s)
    assert found.kind == "transition"
    assert found.rate == pytest.approx(s.rate, abs=0.03)
    assert found.transition[0, 1] == pytest.approx(rate, abs=0.05)
    assert found.precision == pytest.approx(s.precision, abs=0.03)


@pytest.mark.parametrize("sure", [1.0, 3.0])
def test_a_floor_with_other_noise_on_top_is_not_symmetric(sure: float) -> None:
    """As with human labels: some are wrong at random, more of them for a class that looks alike."""
    k, like = 10, [(0, 2), (3, 5), (4, 7), (1, 9), (8, 6)]
    T = symmetric(0.15, k).confusion
    for a, b in like:
        for i, j in ((a, b), (b, a)):
            T[i, i], T[i, j] = T[i, i] - 0.25, T[i, j] + 0.25
    s = simulate(T, sure=sure, seen=1.0)
    found = told(s)
    assert s.rate == pytest.approx(0.4, abs=0.02)
    assert found.kind == "transition"
    assert found.rate == pytest.approx(s.rate, abs=0.1)
    assert floor_of(s) < 0.25, "the floor alone would have been taken for all of it"


def floor_of(s: Simulated) -> float:
    """The floor."""
    k = s.prob.shape[1]
    cells = np.bincount(s.prob.argmax(1) * k + s.given, minlength=k * k).reshape(k, k)
    found = _symmetric(s.given, s.prob, cells)
    assert found is not None
    return found


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("k", [4, 10, 20])
def test_a_few_disagreements_are_no_pairs(k: int, n: int) -> None:
    """Where hardly a label of each class disagrees, each disagrees with one class at most."""
    kinds = {told(simulate(symmetric(0.08, k).confusion, n, sure=9.0, seed=i)).kind for i in range(8)}
    assert "pairflip" not in kinds


@pytest.mark.parametrize("network", ["accurate", "weak"])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_right_labels(network: str, k: int) -> None:
    s = simulate(np.eye(k), **NETWORKS[network])
    found = told(s)
    assert found.rate == pytest.approx(0, abs=0.03 if k != 3 or network == "accurate" else 0.1)
    assert found.precision == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "other"])
def test_a_told_rate_is_taken(k: int, rate: float, kind: str) -> None:
    T = {"symmetric": symmetric, "pairflip": asymmetric}.get(kind, symmetric)(0.3, k).confusion
    if kind == "other":
        T = np.eye(k)
        T[0, 0], T[0, 1] = 0.5, 0.5
    found = told(simulate(T, 5000, sure=6.0), rate)
    assert found.rate == min(rate, 0.95)
    np.testing.assert_allclose(found.transition.sum(1), 1)
    assert (found.transition >= -1e-12).all()
    assert 0 <= found.precision <= 1
    if kind != "other" and k > 3:
        assert np.diag(found.transition) == pytest.approx(1 - rate)
        assert found.kind == kind


@pytest.mark.parametrize("k", [2, 3, 4, 10])
@pytest.mark.parametrize("kind", ["one class", "tied", "two values", "opposed"])
@pytest.mark.parametrize("rate", [None, 0.4])
def test_predictions_that_say_nothing_are_doubted(k: int, kind: str, rate: float | None) -> None:
    rng = np.random.default_rng(0)
    given = rng.integers(0, k, 500)
    prob = {
        "one class": np.eye(k)[np.zeros(500, int)],
        "tied": np.full((500, k), 1 / k),
        "two values": np.where(np.arange(k) < k / 2, 1.5, 0.5)[None].repeat(500, 0) / k,
        "opposed": np.eye(k)[(given + 1) % k],
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = noise_model(given, prob.astype(np.float32), rate)
    assert "no more than the most frequent label would" in found.doubt
    assert 0 <= found.rate <= 0.95
    assert np.isfinite(found.transition).all()
    np.testing.assert_allclose(found.transition.sum(1), 1)
    assert np.isnan(found.precision) if kind == "opposed" else 0 <= found.precision <= 1


def test_ties_take_their_share_of_each_place() -> None:
    """Probabilities rounded to few values rank like those before, on average."""
    T = symmetric(0.4, 10).confusion
    s = simulate(T, sure=3.0)
    coarse = s._replace(prob=np.round(s.prob * 25) / 25)
    assert (np.sort(coarse.prob, 1)[:, 0] == np.sort(coarse.prob, 1)[:, 2]).mean() > 0.6
    a, b = told(s), told(coarse)
    assert a.kind == b.kind == "symmetric"
    assert b.rate == pytest.approx(a.rate, abs=0.03)


def test_two_others_each_are_neither_symmetric_nor_pairs() -> None:
    k = 10
    T = np.eye(k) * 0.6 + np.roll(np.eye(k), 1, 1) * 0.2 + np.roll(np.eye(k), 3, 1) * 0.2
    s = simulate(T, sure=5.0, seen=0.5)
    found = told(s)
    assert found.kind == "transition"
    assert found.rate == pytest.approx(s.rate, abs=0.05)


def test_label_precision_against_a_loop() -> None:
    """Equation (5) where (1) holds exactly: among the agreeing, sum over i of J_ii T_ii."""
    rng = np.random.default_rng(0)
    T = rng.dirichlet(np.ones(5), 5) * 0.3 + np.eye(5) * 0.7
    J = rng.dirichlet(np.ones(25)).reshape(5, 5)
    C = J @ T
    agreeing = sum(C[i, i] for i in range(5))
    right = sum(J[i, i] * T[i, i] for i in range(5))
    assert label_precision(C, T) == pytest.approx(right / agreeing)
    assert label_precision(1000 * C, T) == pytest.approx(right / agreeing), "counts or shares"
    assert label_precision(C.T, T) != pytest.approx(right / agreeing), "rows are the predicted class"
    assert label_precision(np.eye(5) / 5, np.eye(5)) == 1
    assert np.isnan(label_precision(np.roll(np.eye(5), 1, 0), np.eye(5)))
    assert label_precision(np.eye(5), np.full((5, 5), 0.2)) <= 1, "a matrix that has no inverse"


@pytest.mark.parametrize(("rate", "k"), [(0.2, 10), (0.5, 10), (0.8, 10), (0.3, 4)])
def test_label_precision_of_the_theory(rate: float, k: int) -> None:
    """6d: LP from J = T' / K and C = J T."""
    for make in (symmetric, asymmetric):
        T = make(rate, k).confusion
        if np.linalg.cond(T) < 1e6:
            assert label_precision(T.T @ T / k, T) == pytest.approx(theory(T).precision)


def test_flipped() -> None:
    following = np.array([2, 0, 1])
    T = flipped(0.3, following)
    for i in range(3):
        assert T[i, i] == pytest.approx(0.7)
        assert T[i, following[i]] == pytest.approx(0.3)
    np.testing.assert_allclose(T.sum(1), 1)


@pytest.mark.parametrize("k", [10, 100])
def test_twenty_thousand_samples_take_less_than_a_second(k: int) -> None:
    s = simulate(symmetric(0.4, k).confusion, sure=3.0)
    began = time.perf_counter()
    told(s)
    assert time.perf_counter() - began < 1
