"""The Cauchy loss against its definition. On a real table: test_huber.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Regression
from labelproof.core.types import Batch, Clock, Loss
from labelproof.methods import Cauchy

CLOCK = Clock(0, 1, 0, 1, torch.Generator())
MEDIAN = {1: 0.674490, 2: 1.177410}  # of the norm of a standard normal vector


def method(dims: int = 1, **options: float) -> tuple[Cauchy, Nets]:
    m = Cauchy(**options)
    m.setup(Regression(dims), 20, nn.Identity())
    return m, Nets([nn.Identity()])


def step(m: Cauchy, nets: Nets, f: Any, y: Any) -> tuple[Loss, torch.Tensor]:
    x = torch.tensor(f).float().requires_grad_()
    return m.loss(nets, Batch(torch.arange(len(x)), (x,), torch.tensor(y).float()), CLOCK), x


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(("c", "decay"), [(2.3849, 0.9), (0.5, 0.0), (9.0, 0.5)])
def test_equals_the_definition_over_several_batches(c: float, decay: float, dims: int) -> None:
    rng, s = np.random.default_rng(0), None
    m, nets = method(dims, c=c, decay=decay)
    for scale in (1.0, 0.5, 3.0):
        f, y = scale * rng.standard_t(1.5, size=(9, dims)), rng.normal(size=(9, dims))
        square = [sum(v * v for v in row) for row in f - y]
        off = f - y - np.sort(f - y, axis=0)[4]
        new = sorted(np.sqrt(sum(v * v for v in row)) for row in off)[4] / MEDIAN[dims]
        s = new if s is None else decay * s + (1 - decay) * new
        rho = [(c * s) ** 2 / 2 * np.log(1 + q / (c * s) ** 2) for q in square]
        w = np.array([1 / (1 + q / (c * s) ** 2) for q in square])
        got, x = step(m, nets, f, y)
        assert float(m.scale.value) == pytest.approx(s, rel=1e-5)
        assert got.value.item() == pytest.approx(sum(rho) / 9, rel=1e-5)
        np.testing.assert_allclose(got.trust, w, rtol=1e-4)  # type: ignore[arg-type]
        got.value.backward()
        np.testing.assert_allclose(x.grad, w[:, None] * (f - y) / 9, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_gross_errors_lose_their_pull() -> None:
    m, nets = method()
    y = np.random.default_rng(0).normal(size=(20, 1))
    y[:3] = [[30.0], [1e3], [-1e5]]
    got, x = step(m, nets, np.zeros((20, 1)), y)
    got.value.backward()
    pull = 20 * x.grad.abs()[:, 0]  # type: ignore[union-attr]
    assert float(pull.max()) <= 2.3849 * float(m.scale.value) / 2 * (1 + 1e-5)
    assert pull[0] > 10 * pull[1] > 100 * pull[2] > 0
    assert (got.trust[:3] < 0.02).all()  # type: ignore[index]


def test_passes_in_evaluation_mode_leave_the_scale() -> None:
    m, nets = method()
    nets.eval()
    got, _ = step(m, nets, [[0.0], [0.0]], [[1.0], [3.0]])
    assert torch.isfinite(got.value), "before the first step its own scale is used"
    assert m.scale.value.isnan()
    nets.train()
    step(m, nets, [[0.0], [0.0]], [[1.0], [3.0]])
    before = m.scale.value.clone()
    nets.eval()
    got, _ = step(m, nets, [[0.0], [0.0]], [[100.0], [300.0]])
    assert torch.equal(m.scale.value, before)
    torch.testing.assert_close(got.trust, 1 / (1 + (torch.tensor([100.0, 300.0]) / (2.3849 * before)) ** 2))
    assert list(m.state_dict()) == ["scale.value"], "in every checkpoint"


def test_residuals_of_nothing_are_finite() -> None:
    m, nets = method()
    got, x = step(m, nets, np.zeros((5, 1)), [[0.0], [0.0], [0.0], [2.0], [-2.0]])
    got.value.backward()
    assert torch.isfinite(got.value)
    assert got.trust[:3].tolist() == [1, 1, 1]  # type: ignore[index]
    assert x.grad.sign()[:, 0].tolist() == [0, 0, 0, -1, 1]  # type: ignore[union-attr]


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"c=-1 must lie in \(0, inf\)"):
        Cauchy(c=-1)
    with pytest.raises(ValueError, match=r"decay=1 must lie in \[0, 1\)"):
        Cauchy(decay=1)
