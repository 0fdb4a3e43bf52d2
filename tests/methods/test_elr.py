"""ELR against the paper, and against the slips of its released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.functional.regularisers import elr_term
from labelproof.methods import ELR
from tests.reference.oracles import elr, elr_gradient

CLOCK = Clock(0, 1, 0, 1, torch.Generator())


def method(n: int = 20, classes: int = 4, **options: float) -> ELR:
    m = ELR(**options)
    m.setup(Classification(classes), n, nn.Identity())
    return m


@pytest.mark.parametrize(("lam", "beta"), [(3.0, 0.7), (1.0, 0.9), (7.0, 0.0)])
def test_equals_the_paper_over_several_visits(lam: float, beta: float) -> None:
    rng = np.random.default_rng(0)
    m, t = method(lam=lam, beta=beta), np.zeros((20, 4))
    for _ in range(4):
        rows, z, y = rng.permutation(20)[:7], 3 * rng.normal(size=(7, 4)), rng.integers(0, 4, 7)
        want, t[rows] = elr(z, y, t[rows], lam, beta)
        batch = Batch(torch.from_numpy(rows), (torch.from_numpy(z).float(),), torch.from_numpy(y))
        got = m.loss(Nets([nn.Identity()]), batch, CLOCK)
        assert float(got.value) == pytest.approx(want, rel=1e-5)
        np.testing.assert_allclose(m.t.values.numpy(), t, atol=1e-6)


def test_gradient_is_the_closed_form_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    z, y, rows = rng.normal(size=(6, 4)), rng.integers(0, 4, 6), np.arange(6)
    m = method(lam=3.0, beta=0.7)
    logits = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    batch = Batch(torch.from_numpy(rows), (logits,), torch.from_numpy(y))
    m.loss(Nets([nn.Identity()]), batch, CLOCK).value.backward()
    t = m.t.values[:6].double().numpy()
    np.testing.assert_allclose(logits.grad, elr_gradient(z, y, t, 3.0), atol=1e-6)


def test_regulariser_starts_at_nothing_and_is_bounded() -> None:
    m = method(beta=0.7)
    z = torch.zeros(2, 4)
    batch = Batch(torch.tensor([0, 1]), (z,), torch.tensor([0, 1]))
    first = m.loss(Nets([nn.Identity()]), batch, CLOCK).log["elr"]
    assert float(first) == pytest.approx(np.log(1 - 0.3 * 0.25), rel=1e-4)
    sure = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert float(elr_term(sure, sure)) == pytest.approx(np.log(1e-4), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_certain_predictions_stay_finite_in_every_precision(dtype: torch.dtype) -> None:
    """1 - 1e-4 is 1.0 in fp16 and bf16: the released code's clamp does nothing there and the loss is -inf."""
    m = method(n=3, lam=3.0, beta=0.0)
    z = torch.tensor([[50.0, 0, 0, 0]] * 3, dtype=dtype, requires_grad=True)
    batch = Batch(torch.arange(3), (z,), torch.zeros(3, dtype=torch.long))
    for _ in range(3):
        loss = m.loss(Nets([nn.Identity()]), batch, CLOCK).value
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_the_table_is_in_the_state_dict_and_moves_with_the_module() -> None:
    m = method()
    assert [k for k in m.state_dict() if "t." in k] == ["t.store.values"]
    assert m.to(torch.float64).t.values.dtype == torch.float64


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"beta=1\.0 must lie in \[0, 1\)"):
        ELR(beta=1.0)
    with pytest.raises(ValueError, match=r"lam=-1 must lie in \[0, inf\)"):
        ELR(lam=-1)
