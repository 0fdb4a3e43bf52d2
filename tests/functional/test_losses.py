"""Per-sample losses against loops straight from the papers: hard and soft labels, underflow, half precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelproof.functional.losses import (
    backward_corrected,
    bootstrapped_cross_entropy,
    cauchy,
    cross_entropy,
    forward_corrected,
    generalised_cross_entropy,
    huber,
    mean_absolute_error,
)
from tests.reference.oracles import Floats, one_hot, softmax

B, K = 11, 4
RNG = np.random.default_rng(0)
Z = 2 * RNG.normal(size=(B, K))
Y = RNG.integers(0, K, B)
SOFT = RNG.dirichlet(np.ones(K), B)
T = 0.6 * np.eye(K) + 0.4 * RNG.dirichlet(np.ones(K), K)
T /= T.sum(1, keepdims=True)

Oracle = Callable[[Floats, Floats], float]
Library = Callable[[Tensor, Tensor], Tensor]


def bootstrap_oracle(beta: float, hard: bool) -> Oracle:
    def each(p: Floats, y: Floats) -> float:
        own = np.eye(K)[p.argmax()] if hard else p
        return -sum((beta * y[k] + (1 - beta) * own[k]) * np.log(p[k]) for k in range(K))

    return each


def gce_oracle(q: float) -> Oracle:
    return lambda p, y: sum(y[k] * (1 - p[k] ** q) / q for k in range(K))


def mae_oracle(p: Floats, y: Floats) -> float:
    return sum(abs(p[k] - y[k]) for k in range(K))


def forward_oracle(p: Floats, y: Floats) -> float:
    return -sum(y[k] * np.log(sum(p[i] * T[i, k] for i in range(K))) for k in range(K))


def backward_oracle(p: Floats, y: Floats) -> float:
    inverse = np.linalg.inv(T)
    return sum(y[k] * inverse[k, j] * -np.log(p[j]) for k in range(K) for j in range(K))


CASES: dict[str, tuple[Library, Oracle]] = {
    "hard bootstrapping": (
        lambda z, y: bootstrapped_cross_entropy(z, y, beta=0.8, hard=True),
        bootstrap_oracle(0.8, True),
    ),
    "soft bootstrapping": (
        lambda z, y: bootstrapped_cross_entropy(z, y, beta=0.95, hard=False),
        bootstrap_oracle(0.95, False),
    ),
    "gce": (lambda z, y: generalised_cross_entropy(z, y, 0.7), gce_oracle(0.7)),
    "gce, q = 1": (lambda z, y: generalised_cross_entropy(z, y, 1.0), gce_oracle(1.0)),
    "mae": (mean_absolute_error, mae_oracle),
    "forward": (lambda z, y: forward_corrected(z, y, torch.from_numpy(T)), forward_oracle),
    "backward": (lambda z, y: backward_corrected(z, y, torch.from_numpy(T), floor=0.0), backward_oracle),
}
cases = pytest.mark.parametrize(("loss", "oracle"), CASES.values(), ids=CASES.keys())
losses = pytest.mark.parametrize("loss", [loss for loss, _ in CASES.values()], ids=CASES.keys())


@cases
@pytest.mark.parametrize("target", [Y, SOFT, one_hot(Y, K)], ids=["classes", "soft", "one-hot"])
def test_equals_the_paper(loss: Library, oracle: Oracle, target: np.ndarray) -> None:
    y = target if target.ndim == 2 else one_hot(target, K)
    got = loss(torch.from_numpy(Z), torch.from_numpy(target))
    assert got.dtype == torch.float32
    assert got.shape == (B,)
    np.testing.assert_allclose(got, [oracle(p, q) for p, q in zip(softmax(Z), y, strict=True)], atol=2e-6)


@cases
def test_gradient_is_that_of_the_paper(loss: Library, oracle: Oracle) -> None:
    """By finite differences of the oracle: nothing is detached that should not be (soft bootstrapping's p)."""
    z = torch.from_numpy(Z).requires_grad_()
    loss(z, torch.from_numpy(SOFT)).sum().backward()
    want, h = np.zeros_like(Z), 1e-6
    for i in range(B):
        for k in range(K):
            step = h * np.eye(K)[k]
            up, down = (oracle(softmax(Z[i : i + 1] + s)[0], SOFT[i]) for s in (step, -step))
            want[i, k] = (up - down) / (2 * h)
    np.testing.assert_allclose(z.grad, want, atol=1e-5)


EXTREME = torch.tensor([[0.0, 500, 0, 0], [500, 0, 0, 0], [-1e4, 0, 1e4, 0], [0, 0, 0, 0], [3e4, -3e4, 0, 0]])
EXTREME_Y = torch.tensor([0, 0, 0, 3, 1])


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_finite_where_probabilities_underflow(loss: Library, dtype: torch.dtype, soft: bool) -> None:
    z = EXTREME.to(dtype, copy=True).requires_grad_()
    y = torch.eye(K)[EXTREME_Y] if soft else EXTREME_Y
    got = loss(z, y)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [Y, SOFT], ids=["classes", "soft"])
def test_autocast_changes_nothing(loss: Library, dtype: torch.dtype, target: np.ndarray) -> None:
    """A matrix product would be downcast and lose three digits."""
    z, y = torch.from_numpy(Z).float(), torch.from_numpy(target)
    with torch.autocast("cpu", dtype):
        got = loss(z, y)
    assert torch.equal(got, loss(z, y))


@losses
def test_the_logits_are_not_modified(loss: Library) -> None:
    z, y = torch.from_numpy(Z).float(), torch.from_numpy(SOFT).float()
    copies = z.clone(), y.clone()
    loss(z, y)
    assert torch.equal(z, copies[0])
    assert torch.equal(y, copies[1])


def test_the_identity_corrects_nothing() -> None:
    z, y, eye = torch.from_numpy(Z), torch.from_numpy(Y), torch.eye(K)
    torch.testing.assert_close(forward_corrected(z, y, eye), cross_entropy(z, y))
    torch.testing.assert_close(backward_corrected(z, y, eye, floor=0.0), cross_entropy(z, y))


def test_forward_has_cross_entropys_gradient_where_p_underflows() -> None:
    """With log(sum + eps) or a clamp it would be 0: such a sample could never be learned."""
    z = torch.tensor([[0.0, 500.0]], requires_grad=True)
    forward_corrected(z, torch.tensor([0]), torch.eye(2)).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[-1.0, 1.0]]


def test_a_label_that_t_rules_out_has_a_large_loss_and_no_gradient() -> None:
    z = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = forward_corrected(z, torch.tensor([1]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(1e4, rel=1e-3)
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-6


probabilities = st.lists(st.floats(0.01, 1), min_size=K, max_size=K).map(lambda v: np.array(v) / sum(v))


@given(st.lists(probabilities, min_size=K, max_size=K).map(lambda rows: 0.3 * np.array(rows) + 0.7 * np.eye(K)))
def test_backward_is_unbiased(transition: Floats) -> None:
    """Over the noise its mean is the clean loss, for every sample and class: T (T^-1 l) = l, whatever l is."""
    t, z = torch.from_numpy(transition), torch.from_numpy(Z)
    for floor in (0.0, 0.5):
        noisy = torch.stack([backward_corrected(z, torch.full((B,), j), t, floor=floor) for j in range(K)], 1)
        clean = -z.softmax(1).clamp(min=floor / K).log()
        torch.testing.assert_close(noisy.double() @ t.T, clean, atol=1e-5, rtol=1e-5)


@given(probabilities)
def test_forwards_minimiser_is_the_clean_posterior(eta: Floats) -> None:
    """One x of clean posterior eta, labels drawn through T: there the gradient is 0, and no other p has less loss."""
    t = torch.from_numpy(T)
    noisy = (torch.from_numpy(eta) @ t)[None]
    z = torch.from_numpy(np.log(eta))[None].requires_grad_()
    best = forward_corrected(z, noisy, t)
    best.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() < 1e-6
    others = torch.from_numpy(RNG.normal(size=(200, K)))
    assert (forward_corrected(others, noisy.expand(200, K), t) >= best.detach() - 1e-6).all()


def test_bootstrapping_ends() -> None:
    """beta = 1 is cross-entropy; beta = 0 no longer sees the label."""
    z, y = torch.from_numpy(Z), torch.from_numpy(Y)
    for hard in (True, False):
        torch.testing.assert_close(bootstrapped_cross_entropy(z, y, beta=1.0, hard=hard), cross_entropy(z, y))
        blind = [bootstrapped_cross_entropy(z, labels, beta=0.0, hard=hard) for labels in (y, (y + 1) % K)]
        assert torch.equal(*blind)


RHO: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float, float], float]]] = {
    "huber": (huber, lambda n, k: n * n / 2 if n <= k else k * (n - k / 2)),
    "cauchy": (cauchy, lambda n, k: k * k / 2 * np.log(1 + (n / k) ** 2)),
}
PULL: dict[str, Callable[[float, float], float]] = {
    "huber": lambda n, k: min(1.0, k / n),
    "cauchy": lambda n, k: 1 / (1 + (n / k) ** 2),
}


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("k", [0.3, 1.345, 20.0])
@pytest.mark.parametrize("name", sorted(RHO))
def test_regression_losses_are_rho_of_the_norm_and_pull_by_its_derivative(name: str, k: float, dims: int) -> None:
    ours, rho = RHO[name]
    r = torch.tensor(RNG.normal(size=(40, dims)) * np.logspace(-3, 4, 40)[:, None], requires_grad=True)
    norms = [float(np.sqrt((row**2).sum())) for row in r.detach().numpy()]
    each = ours(r, torch.tensor(k))
    np.testing.assert_allclose(each.detach(), [rho(n, k) for n in norms], rtol=1e-5)
    each.sum().backward()
    assert r.grad is not None
    want = np.array([PULL[name](n, k) for n in norms])[:, None] * r.detach().numpy()
    np.testing.assert_allclose(r.grad, want, rtol=1e-4)
    assert float(r.grad.norm(dim=1).max()) <= k * (1 if name == "huber" else 0.5) * (1 + 1e-5)


@pytest.mark.parametrize("name", sorted(RHO))
def test_regression_losses_at_nothing_on_the_edge_and_in_half_precision(name: str) -> None:
    """The norm has no gradient at 0; at |r| = k both of Huber's branches meet and one alone may count."""
    r = torch.tensor([[0.0, 0.0], [2.0, 0.0], [6e4, 6e4]], dtype=torch.float16, requires_grad=True)
    each = RHO[name][0](r, torch.tensor(2.0))
    assert each.dtype == torch.float32
    each.sum().backward()
    assert torch.isfinite(each).all()
    assert r.grad is not None
    assert r.grad[0].tolist() == [0, 0]
    assert r.grad[1].tolist() == [2 if name == "huber" else 1, 0]
    assert torch.isfinite(r.grad).all()


@pytest.mark.parametrize(("name", "constant"), [("huber", 1.345), ("cauchy", 2.3849)])
def test_default_constants_have_95_percent_efficiency_at_the_normal(name: str, constant: float) -> None:
    """(E psi')^2 / E psi^2 over the standard normal, by a sum over a fine grid."""
    x = torch.linspace(-9, 9, 180_001, dtype=torch.float64)[:, None].requires_grad_()
    (psi,) = torch.autograd.grad(RHO[name][0](x, torch.tensor(constant)).sum(), x)
    z, p = x.detach().numpy()[:, 0], psi.numpy()[:, 0]
    density = np.exp(-(z**2) / 2)
    density /= density.sum()
    slope = (p * z * density).sum()  # E psi' = E psi z at the normal
    assert slope**2 / (p**2 * density).sum() == pytest.approx(0.95, abs=1e-3)
