"""LARS against its equations in NumPy."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from labelproof.engine.lars import LARS

Array = NDArray[np.float64]


def by_hand(
    w: list[Array], grads: list[list[Array]], lr: list[float], m: float, decay: float, trust: float
) -> list[Array]:
    w = [a.copy() for a in w]
    v = [np.zeros_like(a) for a in w]
    for step, rate in zip(grads, lr, strict=True):
        for i, g in enumerate(step):
            d, local = g, 1.0
            if w[i].ndim > 1:
                d = g + decay * w[i]
                above, below = np.sqrt((w[i] ** 2).sum()), np.sqrt((d**2).sum())
                local = trust * above / below if above > 0 and below > 0 else 1.0
            v[i] = m * v[i] + rate * local * d
            w[i] = w[i] - v[i]
    return w


SHAPES = [(4, 3), (5,), (2, 3, 3, 3), (), (3, 1)]


def problem(steps: int = 6) -> tuple[list[Array], list[list[Array]]]:
    rng = np.random.default_rng(0)
    return (
        [np.asarray(rng.normal(size=s)) for s in SHAPES],
        [[np.asarray(rng.normal(size=s)) for s in SHAPES] for _ in range(steps)],
    )


def run(optimizer: LARS, params: list[nn.Parameter], grads: list[list[Array]], lr: list[float]) -> None:
    for step, rate in zip(grads, lr, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p, g in zip(params, step, strict=True):
            p.grad = torch.from_numpy(g.copy()).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize(("m", "decay", "trust"), [(0.9, 1e-6, 0.001), (0.9, 0.3, 0.02), (0.0, 0.1, 1.0)])
def test_equals_the_equations(m: float, decay: float, trust: float) -> None:
    w, grads = problem()
    lr = [4.0, 4.0, 1.0, 0.5, 0.5, 0.0]
    params = [nn.Parameter(torch.from_numpy(a.copy())) for a in w]
    run(LARS(params, lr=4.0, momentum=m, weight_decay=decay, trust=trust), params, grads, lr)
    for p, want in zip(params, by_hand(w, grads, lr, m, decay, trust), strict=True):
        np.testing.assert_allclose(p.detach(), want, rtol=1e-12)


def test_zero_weights_and_zero_gradients_move_as_sgd_does() -> None:
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    LARS([zero, still], lr=0.5, weight_decay=0.0).step()
    assert torch.equal(zero, torch.full((2, 2), -0.5))
    assert torch.equal(still, torch.ones(2, 2))


def test_parameters_without_gradients_stay() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([a, b], lr=1.0)
    optimizer.step()
    b.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(a, torch.ones(2, 2))
    assert torch.equal(b, torch.zeros(2))
    assert a not in optimizer.state


def test_each_group_has_its_own_values() -> None:
    w, grads = problem()
    params = [nn.Parameter(torch.from_numpy(a.copy())) for a in w]
    groups: list[dict[str, Any]] = [
        {"params": params[:2], "trust": 0.1, "momentum": 0.5},
        {"params": params[2:], "weight_decay": 0.2},
    ]
    run(LARS(groups, lr=1.0), params, grads, [1.0] * 6)
    first = by_hand(w[:2], [g[:2] for g in grads], [1.0] * 6, 0.5, 1e-6, 0.1)
    second = by_hand(w[2:], [g[2:] for g in grads], [1.0] * 6, 0.9, 0.2, 0.001)
    for p, want in zip(params, first + second, strict=True):
        np.testing.assert_allclose(p.detach(), want, rtol=1e-12)


def test_saved_and_loaded_it_goes_on_bit_by_bit() -> None:
    w, grads = problem()
    lr = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    whole = [nn.Parameter(torch.from_numpy(a.copy()).float()) for a in w]
    run(LARS(whole, lr=1.0), whole, grads, lr)
    params = [nn.Parameter(torch.from_numpy(a.copy()).float()) for a in w]
    optimizer = LARS(params, lr=1.0)
    run(optimizer, params, grads[:3], lr[:3])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = [nn.Parameter(p) for p in saved["params"]]
    other = LARS(again, lr=9.0, momentum=0.1, weight_decay=0.5, trust=0.7)
    other.load_state_dict(saved["optimizer"])
    run(other, again, grads[3:], lr[3:])
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    for key, state in other.state_dict()["state"].items():
        assert set(state) == {"momentum_buffer"}, key


def test_a_closure_gives_its_loss_and_a_schedule_its_rates() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([w], lr=1.0, weight_decay=0.0, trust=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = w.sum()
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == 7
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_it_trains_a_network_at_a_rate_that_sgd_cannot_take() -> None:
    """The step is a share of each layer's weights, however large the gradient."""
    x = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()

    def trained(make: Any) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = make([*net.parameters()])
        for _ in range(60):
            loss = 1000 * nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            for p in net.parameters():
                if p.ndim == 1 and p.grad is not None:
                    p.grad /= 1000
            optimizer.step()
        return float(loss.detach() / 1000)

    assert trained(lambda p: LARS(p, lr=1.0, trust=0.02)) < 0.2
    assert trained(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9)) > 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be at least 0"),
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be at least 0"),
        ({"trust": 0.0}, "trust=0.0 must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 1.0, **options})  # type: ignore[arg-type]
