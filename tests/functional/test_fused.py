"""The closed forms against autograd of the plain equations, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labelproof.functional import fused, regularisers, sop


def logits(b: int, k: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    z = scale * torch.randn(b, k, generator=torch.Generator().manual_seed(0))
    return z.to(dtype).requires_grad_()


@pytest.mark.parametrize(("k", "scale"), [(2, 1.0), (5, 3.0), (50, 6.0), (5, 40.0)])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_elr_is_the_plain_one(k: int, scale: float, beta: float) -> None:
    g = torch.Generator().manual_seed(1)
    z, y = logits(64, k, scale), torch.randint(0, k, (64,), generator=g)
    t = torch.rand(64, k, generator=g).softmax(1)
    want = regularisers.elr_terms(z, y, t, lam=3.0, beta=beta)
    got = fused.elr_terms(z, y, t.clone(), lam=3.0, beta=beta)
    for name in ("loss", "ce", "reg", "t"):
        a, b = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(a.detach(), b.detach(), atol=2e-4, rtol=1e-4)
    weights = torch.rand(64, generator=g)
    (a,), (b,) = (torch.autograd.grad((each.loss * weights).sum(), z) for each in (got, want))
    torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-3)  # fp32, where 1 - <p, t> is near 1e-4


@pytest.mark.parametrize("std", [1e-8, 0.3, 1.5])
@pytest.mark.parametrize(("k", "scale"), [(2, 1.0), (5, 3.0), (50, 6.0), (5, 40.0)])
def test_sop_is_the_plain_one(k: int, scale: float, std: float) -> None:
    g = torch.Generator().manual_seed(1)
    z, y = logits(64, k, scale), torch.randint(0, k, (64,), generator=g)
    u, v = ((std * torch.randn(64, n, generator=g)).requires_grad_() for n in (1, k))
    want, got = sop.sop_terms(z, y, u, v), fused.sop_terms(z, y, u, v)
    for name in ("loss", "ce", "mse"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-4, check_stride=False)
    weights = torch.rand(64, generator=g)
    grads = [torch.autograd.grad((each.loss * weights).sum(), (z, u, v)) for each in (got, want)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_elr_gradient_by_finite_differences() -> None:
    """With beta = 1 the targets do not depend on the logits, which the derivative leaves out in any case."""
    z, y = logits(6, 4, dtype=torch.float64), torch.arange(6) % 4
    t = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    assert torch.autograd.gradcheck(lambda z: fused.elr_terms(z, y, t, lam=3.0, beta=1.0).loss, (z,))


def test_sop_gradient_by_finite_differences() -> None:
    """In u of the whole loss; in z and v of the parts that train them."""
    g = torch.Generator().manual_seed(1)
    z, y = logits(6, 4, dtype=torch.float64), torch.arange(6) % 4
    u, v = ((0.5 * torch.randn(6, n, dtype=torch.float64, generator=g)).requires_grad_() for n in (1, 4))
    assert torch.autograd.gradcheck(lambda z, u: fused.sop_terms(z, y, u, v.detach()).loss, (z, u))
    (got,) = torch.autograd.grad(fused.sop_terms(z, y, u, v).loss.sum(), v)
    step, want = 1e-6, torch.zeros_like(v)
    for i in range(6):
        for k in range(4):
            nudge = torch.zeros_like(v)
            nudge[i, k] = step
            up, down = (fused.sop_terms(z, y, u, v.detach() + s * nudge).mse[i] for s in (1, -1))
            want[i, k] = (up - down) / (2 * step)
    torch.testing.assert_close(got, want.detach(), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_get_half_precision_gradients(dtype: torch.dtype) -> None:
    z = (50 * torch.eye(4)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused.elr_terms(z, torch.tensor([0, 0, 0, 0]), torch.eye(4), lam=3.0, beta=0.7).loss
        loss = loss + fused.sop_terms(z, torch.tensor([0, 0, 0, 0]), torch.zeros(4, 1), torch.zeros(4, 4)).loss
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == dtype
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(loss).all()


def test_backward_may_be_called_again() -> None:
    z = logits(4, 3)
    loss = fused.elr_terms(z, torch.tensor([0, 1, 2, 0]), torch.zeros(4, 3), lam=3.0, beta=0.7).loss.sum()
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
