"""NT-Xent against loops over the equation, closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from labelproof.functional.contrast import nt_xent


def by_loops(z1: NDArray[np.float64], z2: NDArray[np.float64], tau: float) -> float:
    """Equation 1 of the paper, one anchor after the other."""
    b = len(z1)
    z = [row / math.sqrt((row * row).sum()) for row in [*z1, *z2]]
    total = 0.0
    for i in range(2 * b):
        j = (i + b) % (2 * b)
        below = sum(math.exp(z[i] @ z[k] / tau) for k in range(2 * b) if k != i)
        total -= math.log(math.exp(z[i] @ z[j] / tau) / below)
    return total / (2 * b)


def draw(b: int, p: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    z1, z2 = 3 * torch.randn(2, b, p, generator=rng, dtype=torch.float64)
    return z1.to(dtype), z2.to(dtype)


@given(st.integers(1, 9), st.integers(1, 6), st.sampled_from([0.1, 0.5, 1.0, 3.0]), st.integers(0, 20))
def test_equals_loops(b: int, p: int, tau: float, seed: int) -> None:
    z1, z2 = draw(b, p, seed, torch.float64)
    want = by_loops(z1.numpy(), z2.numpy(), tau)
    assert float(nt_xent(z1, z2, tau)) == pytest.approx(want, abs=1e-9)
    assert float(nt_xent(z1.float(), z2.float(), tau)) == pytest.approx(want, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("b", [2, 5, 64])
@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
def test_closed_forms(b: int, tau: float) -> None:
    collapsed = torch.ones(b, 8)
    torch.testing.assert_close(nt_xent(collapsed, collapsed, tau), torch.tensor(math.log(2 * b - 1)))
    apart = torch.eye(2 * b)
    torch.testing.assert_close(nt_xent(apart[:b], apart[b:], tau), torch.tensor(math.log(2 * b - 1)))
    agreeing = torch.eye(b)
    want = math.log(1 + 2 * (b - 1) * math.exp(-1 / tau))
    torch.testing.assert_close(nt_xent(agreeing, 7 * agreeing, tau), torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_neither_order_nor_length_of_rows_matters() -> None:
    z1, z2 = draw(12, 5)
    value = nt_xent(z1, z2)
    torch.testing.assert_close(nt_xent(z2, z1), value)
    perm = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nt_xent(z1[perm], z2[perm]), value)
    torch.testing.assert_close(nt_xent(z1 * torch.rand(12, 1).add(0.1), 1000 * z2), value)
    assert abs(nt_xent(z1[perm], z2) - value) > 0.05, "who belongs together does matter"
    assert abs(nt_xent(z1, z2, 0.1) - value) > 0.05


def test_gradient_is_that_of_finite_differences() -> None:
    z1, z2 = (z.requires_grad_() for z in draw(5, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(nt_xent, (z1, z2))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.1), (z1, z2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_precision_under_autocast(dtype: torch.dtype) -> None:
    z1, z2 = draw(64, 16)
    want = nt_xent(z1, z2, 0.05)
    with torch.autocast("cpu", dtype=dtype):
        got = nt_xent(z1, z2, 0.05)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    half = nt_xent(z1.to(dtype), z2.to(dtype), 0.05)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, want, rtol=0.02, atol=0)


def test_extremes_stay_finite() -> None:
    z1, z2 = draw(6, 3)
    for a, b, tau in (
        (z1, z2, 1e-3),
        (z1 * 1e-20, z2 * 1e15, 0.5),
        (torch.zeros(6, 3), z2, 0.5),
        (z1[:1], z2[:1], 0.5),
    ):
        leaves = [z.clone().requires_grad_() for z in (a, b)]
        value = nt_xent(*leaves, tau)
        value.backward()
        assert value.isfinite()
        assert all(z.grad is not None and z.grad.isfinite().all() for z in leaves)
    assert nt_xent(z1[:1], z2[:1]) == 0, "one sample has nothing to be told apart from"


@pytest.mark.parametrize(("a", "b"), [((4, 3), (4, 2)), ((4, 3), (5, 3)), ((4,), (4,)), ((2, 2, 2), (2, 2, 2))])
def test_shapes_that_do_not_fit_are_named(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z1 and z2 have shapes \(.*\) and \(.*\): both must be \(B, P\)"):
        nt_xent(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_temperatures_must_be_positive(tau: float) -> None:
    with pytest.raises(ValueError, match=r"temperature=.* must be above 0; 0.5 is usual"):
        nt_xent(torch.ones(2, 2), torch.ones(2, 2), tau)
