"""The pieces of DivideMix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from labelproof.functional.mixing import Mixup
from labelproof.functional.mixmatch import (
    class_shares,
    clean_probability,
    co_targets,
    divide,
    min_max,
    mixmatch_terms,
    negative_entropy,
    sharpen,
)


def two_modes(n: int = 300, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    losses = np.concatenate([rng.normal(0.1, 0.05, n), rng.normal(0.8, 0.1, n // 2)]).clip(0, 1)
    return torch.from_numpy(losses).float()


def test_sharpening_squares_and_divides() -> None:
    p = torch.rand(5, 7).softmax(1)
    torch.testing.assert_close(sharpen(p, 0.5), p**2 / (p**2).sum(1, keepdim=True))
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_sharpening_keeps_certainty_and_does_not_underflow() -> None:
    assert sharpen(torch.tensor([0.0, 1.0]), 0.5).tolist() == [0.0, 1.0]
    even = sharpen(torch.full((1000,), 1e-3), 0.05)  # 1e-3 to the power of 20 is 0 in fp32
    torch.testing.assert_close(even, torch.full((1000,), 1e-3))


def test_min_max_by_hand() -> None:
    """D5: constant losses are 0 / 0 in the released code."""
    losses = torch.tensor([[2.0, 7.0, torch.nan, 1.0], [4.0, 7.0, torch.inf, torch.nan], [3.0, 7.0, torch.nan, 3.0]])
    want = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 1.0]])
    assert torch.equal(min_max(losses), want)


def test_the_posterior_is_that_of_the_lower_mean() -> None:
    losses = two_modes()
    x = losses.double().numpy()[:, None]
    oracle = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=3).fit(x)
    want = np.zeros(len(x))
    for i in range(len(x)):  # Bayes' rule with the fitted parameters
        density = [
            oracle.weights_[c]
            * np.exp(-((x[i, 0] - oracle.means_[c, 0]) ** 2) / (2 * oracle.covariances_[c, 0, 0]))
            / np.sqrt(oracle.covariances_[c, 0, 0])
            for c in range(2)
        ]
        want[i] = density[int(np.argmin(oracle.means_[:, 0]))] / sum(density)
    got = clean_probability(losses, seed=3)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
    assert bool((got[:300] > 0.5).float().mean() > 0.98)
    assert bool((got[300:] < 0.5).float().mean() > 0.98)


def test_the_division_is_a_function_of_the_seed() -> None:
    assert torch.equal(clean_probability(two_modes(), 7), clean_probability(two_modes(), 7))


@pytest.mark.filterwarnings("error")  # neither sklearn's ConvergenceWarning nor a division by 0
@pytest.mark.parametrize("losses", [[0.0] * 9, [0.0], [0.0, 1.0], [0.0] * 8 + [1.0]])
def test_losses_that_hardly_divide_give_probabilities(losses: list[float]) -> None:
    w = clean_probability(torch.tensor(losses), seed=0)
    assert bool(((w >= 0) & (w <= 1)).all())
    if len(set(losses)) == 1:
        assert bool((w == 1).all())


def test_a_network_that_would_believe_nobody_believes_everybody() -> None:
    """D7: an empty labelled part."""
    losses = torch.stack([torch.linspace(0, 1, 450), two_modes()], 1)
    plain = torch.stack([clean_probability(column, 0) for column in losses.T], 1)
    assert torch.equal(divide(losses, 0.5, seed=0), plain)
    threshold = 0.99995
    assert plain[:, 0].max() < threshold < plain[:, 1].max()
    w = divide(losses, threshold, seed=0)
    assert bool((w[:, 0] == 1).all())
    assert torch.equal(w[:, 1], plain[:, 1])


def test_shares_of_classes_are_never_zero() -> None:
    torch.testing.assert_close(class_shares(torch.tensor([1, 1, 1]), 3), torch.tensor([1 / 6, 4 / 6, 1 / 6]))


def test_targets_by_hand() -> None:
    p = torch.tensor([[[0.6, 0.4], [0.2, 0.8]], [[0.4, 0.6], [0.9, 0.1]]])
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    w = torch.tensor([[0.9, 0.5], [0.3, 0.75]])  # exactly the threshold is not above it
    q, labelled = co_targets(p, label, w, 0.5, 1.0)
    assert labelled.tolist() == [[1, 0], [0, 1]]
    torch.testing.assert_close(q[0], torch.tensor([[0.06, 0.94], [0.55, 0.45]]))
    torch.testing.assert_close(q[1], torch.tensor([[0.5, 0.5], [0.975, 0.025]]))
    torch.testing.assert_close(co_targets(p, label, w, 0.5, 0.5)[0], sharpen(q, 0.5))


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_an_empty_part_adds_nothing_and_stays_attached(kept: float) -> None:
    logits = torch.randn(2, 6, 3, requires_grad=True)
    q, prior = torch.rand(2, 6, 3).softmax(2), torch.full((3,), 1 / 3)
    terms = mixmatch_terms(logits, q, torch.full((2, 6), kept), prior)
    assert terms[1 if kept else 0] == 0
    terms[1 if kept else 0].backward(retain_graph=True)
    assert not logits.grad.any()
    terms.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_a_class_that_is_never_predicted_costs_much_but_not_infinity() -> None:
    logits = torch.tensor([[[200.0, 0.0]] * 4], requires_grad=True)
    term = mixmatch_terms(logits, torch.eye(2)[[0] * 4][None], torch.ones(1, 4), torch.tensor([0.5, 0.5]))[2]
    term.backward()
    assert 5 < term < 20
    assert bool(logits.grad.isfinite().all())


def test_negative_entropy_of_certainty_has_a_gradient() -> None:
    logits = torch.tensor([[300.0, 0.0], [0.0, 0.0]], requires_grad=True)
    each = negative_entropy(logits)
    torch.testing.assert_close(each, torch.tensor([0.0, -np.log(2)], dtype=torch.float32))
    each.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_alpha_zero_mixes_nothing() -> None:
    x = torch.randn(5, 2)
    assert torch.equal(Mixup.draw(0.0, x, torch.Generator())(x), x)
    assert not torch.equal(Mixup.draw(4.0, x, torch.Generator().manual_seed(0))(x), x)
