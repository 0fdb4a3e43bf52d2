"""The inequalities of docs/agnostic-corruption.md, on random and adversarial corruptions, with the library's filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labelproof.core.task import Classification
from labelproof.functional.gradnorm import gradient_norms
from labelproof.functional.select import smallest


def kept(norms: np.ndarray, rate: float) -> np.ndarray:
    """What the library keeps."""
    return smallest(torch.from_numpy(norms), 1 - rate).numpy() > 0


def attacked(right: np.ndarray, wrong: int, size: float, how: str, rng: np.random.Generator) -> np.ndarray:
    """`(n, d)` gradients, the first `wrong` of which an adversary replaced who sees all others."""
    g, largest = right.copy(), np.linalg.norm(right[wrong:], axis=1).max()
    away = -right[wrong:].mean(axis=0)
    away = away / max(np.linalg.norm(away), 1e-12)
    if how == "random":
        g[:wrong] = size * rng.standard_normal(g[:wrong].shape)
    elif how == "hidden":  # as large as the largest right one: never dropped first, and all to one side
        g[:wrong] = away * largest * (1 - 1e-9)
    elif how == "median":
        g[:wrong] = away * np.median(np.linalg.norm(right[wrong:], axis=1))
    else:
        g[:wrong] = away * size * largest
    return g


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(4, 80), d=st.integers(1, 6), rate=st.floats(0, 0.9), share=st.floats(0, 1),
    size=st.sampled_from([0.0, 0.5, 1.0, 3.0, 1e3, 1e9]),
    how=st.sampled_from(["random", "hidden", "median", "gross"]), seed=st.integers(0, 9999),
)  # fmt: skip
def test_the_mean_of_the_kept_gradients(
    n: int, d: int, rate: float, share: float, size: float, how: str, seed: int
) -> None:
    """Lemma 1: off by at most 2 b M / m <= 2 eps M / (1 - eps), whatever the corruption."""
    rng = np.random.default_rng(seed)
    right = rng.standard_normal((n, d)) * rng.gamma(1, size=(n, 1)) + rng.standard_normal(d)
    wrong = math.floor(share * rate * n)  # at most eps n
    g = attacked(right, wrong, size, how, rng)
    mask = kept(np.linalg.norm(g, axis=1), rate)
    m, b = mask.sum(), mask[:wrong].sum()
    rate = 1 - m / n  # the share really dropped: the batch is cut at a whole sample
    assert wrong <= n - m
    largest = np.linalg.norm(g[wrong:], axis=1).max()
    off = np.linalg.norm(g[mask].mean(axis=0) - g[wrong:].mean(axis=0))
    slack = 1 + 1e-9
    assert np.linalg.norm(g[mask], axis=1).max() <= largest * slack
    assert off <= 2 * (n - wrong - m + b) * largest / (n - wrong) * slack + 1e-12
    assert off <= 2 * rate * largest / (1 - rate) * slack + 1e-12
    others = np.flatnonzero(~mask[wrong:])[:b] + wrong  # the same number of right samples
    same = np.concatenate([g[wrong:][mask[wrong:]], g[others]])
    assert len(same) == m
    assert np.linalg.norm(g[mask].mean(axis=0) - same.mean(axis=0)) <= 2 * b * largest / m * slack + 1e-12


def test_the_lemma_is_met_with_equality() -> None:
    """So no smaller constant will do: half to the right, half of them replaced by the opposite."""
    g = np.array([[-1.0]] * 2 + [[1.0]] * 4)  # n = 6, eps = 1/3, M = 1; ties go to the earlier rows, the wrong ones
    mask = kept(np.abs(g[:, 0]), 1 / 3)
    assert mask.tolist() == [True] * 4 + [False] * 2
    assert abs(g[mask].mean() - g[2:].mean()) == pytest.approx(2 * (1 / 3) / (2 / 3))


def regression(seed: int, n: int = 400, d: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    w = rng.standard_normal(d)
    return x, w, x @ w + 0.3 * rng.standard_normal(n), rng


def corrupt(kind: str, x: np.ndarray, y: np.ndarray, wrong: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """Targets in which the first `wrong` are not right."""
    y = y.copy()
    direction = rng.standard_normal(x.shape[1])
    y[:wrong] = {
        "lie": y[:wrong] + size * x[:wrong] @ direction,
        "flip": -y[:wrong],
        "constant": np.full(wrong, size),
        "hidden": y[:wrong] + 0.6 * np.sign(x[:wrong] @ direction),
    }[kind]
    return y


@pytest.mark.parametrize("kind", ["lie", "flip", "constant", "hidden"])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4])
def test_where_training_comes_to_rest(kind: str, rate: float) -> None:
    """Theorem 2: (2 eps M / (1 - eps) + rest) / mu bounds the distance at any weights, M, rest measured there."""
    for seed, size in enumerate([0.5, 5.0, 1e3, 1e6]):
        x, _, y, rng = regression(seed)
        wrong = int(rate * len(y))
        y = corrupt(kind, x, y, wrong, size, rng)
        right = np.linalg.lstsq(x[wrong:], y[wrong:], rcond=None)[0]
        mu = np.linalg.eigvalsh(x[wrong:].T @ x[wrong:] / (len(y) - wrong))[0]
        found, errors = np.zeros(x.shape[1]), []
        for step in range(150):
            g = (x @ found - y)[:, None] * x
            mask = kept(np.linalg.norm(g, axis=1), rate)
            rest = g[mask].mean(axis=0)
            largest = np.linalg.norm(g[wrong:], axis=1).max()
            bound = (2 * rate * largest / (1 - rate) + np.linalg.norm(rest)) / mu
            errors.append(np.linalg.norm(found - right))
            assert errors[-1] <= bound * (1 + 1e-9), (seed, step)
            found = found - 0.3 * rest
        if rate <= 0.2:  # at 0.4 targets that are all near 0, where training begins, are what it settles on
            assert errors[-1] < 0.5


def test_squared_error_grows_with_the_corruption_and_the_filter_does_not() -> None:
    x, w, y, rng = regression(7)
    found: dict[str, list[float]] = {"all": [], "kept": []}
    state = rng.bit_generator.state
    for size in (10.0, 1e3, 1e5):
        rng.bit_generator.state = state
        bad = corrupt("lie", x, y, 80, size, rng)
        v = np.zeros(5)
        for _ in range(300):
            g = (x @ v - bad)[:, None] * x
            v = v - 0.3 * g[kept(np.linalg.norm(g, axis=1), 0.2)].mean(axis=0)
        found["kept"].append(float(np.linalg.norm(v - w)))
        found["all"].append(float(np.linalg.norm(np.linalg.lstsq(x, bad, rcond=None)[0] - w)))
    assert found["all"][1] / found["all"][0] == pytest.approx(100, rel=0.1)
    assert found["all"][2] / found["all"][1] == pytest.approx(100, rel=0.01)
    assert max(found["kept"]) < 0.1


def small_loss_large_gradient(far: float) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """The example of the page: four right rows, one wrong row far out whose loss is the smallest.

    Two features, three classes. The network likes class 0 by the first feature alone; the second, which only the last
    row has, it does not use yet.
    """
    net = nn.Linear(2, 3, bias=False).double()
    net.weight.data = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).double()
    x = torch.tensor([[0.4, 0.0], [0.6, 0.0], [0.8, 0.0], [1.0, 0.0], [1.5, far]]).double()
    return net, x, torch.tensor([0, 0, 0, 0, 0])  # the last one's right class is 1


@pytest.mark.parametrize("far", [10.0, 1e3, 1e6])
def test_filtering_by_loss_bounds_nothing_in_classification(far: float) -> None:
    net, x, y = small_loss_large_gradient(far)
    task, out = Classification(3), net(x)
    losses = task.loss(out, y).detach()
    assert losses.argmin() == 4
    norms, _ = gradient_norms(net, x, lambda o: task.loss(o, y))
    largest = float(norms[:4].max())
    g = torch.stack([torch.autograd.grad(loss, net.weight, retain_graph=True)[0] for loss in task.loss(net(x), y)])
    right = g[:4].mean(dim=0)

    def off(score: torch.Tensor) -> float:
        return float((g[smallest(score, 0.8) > 0].mean(dim=0) - right).norm())

    assert off(norms) <= 2 * 0.2 * largest / 0.8
    by_output = task.residual(out.detach(), y).norm(dim=1)  # prl-l: the last row is smallest at the outputs, too
    assert off(losses) == pytest.approx(off(by_output))
    assert off(losses) > 0.02 * far
    assert off(by_output * (1 + x.square().sum(1)).sqrt()) <= 2 * 0.2 * largest / 0.8  # prl-l with features=True
