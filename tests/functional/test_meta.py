"""The meta-gradient against finite differences of the whole step, and the tape against torch's own forward mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from labelproof.core.nets import still_statistics
from labelproof.functional.meta import Tape, derivative, meta_gradient, shares
from labelproof.networks import build

B, M, K = 7, 5, 3


def problem() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, K))
    g = torch.Generator().manual_seed(1)
    x, there = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (B, M))
    y, y_there = (torch.randint(0, K, (n,), generator=g) for n in (B, M))
    return net.double(), x, y, there, y_there, torch.rand(B, generator=g, dtype=torch.float64)


def judge(out: Tensor, y: Tensor, kind: str) -> Tensor:
    return F.cross_entropy(out, y) if kind == "ce" else 2 * (1 - out.softmax(1)[torch.arange(len(y)), y]).mean()


@pytest.mark.parametrize("kind", ["ce", "mae"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "normalised"])
@pytest.mark.parametrize("part", ["3.", ""])
def test_meta_gradient_is_that_of_the_whole_step(part: str, reduction: Any, kind: str) -> None:
    """Each weight moved, the step taken again in float64, the meta loss measured again."""
    net, x, y, there, y_there, v = problem()
    params = {name: p for name, p in net.named_parameters() if name.startswith(part)}
    rate = 0.3

    def after(weight: Any) -> float:
        c = {"mean": weight / B, "sum": weight, "normalised": weight / sum(weight)}[reduction]
        loss = sum(float(a) * b for a, b in zip(c, F.cross_entropy(net(x), y, reduction="none"), strict=True))
        down = torch.autograd.grad(loss, list(params.values()))
        moved = {name: p.detach() - rate * d for (name, p), d in zip(params.items(), down, strict=True)}
        return float(judge(functional_call(net, moved, there), y_there, kind).detach())

    each = F.cross_entropy(net(x), y, reduction="none")
    meta, got = meta_gradient(
        each,
        v,
        params,
        rate=rate,
        reduction=reduction,
        meta_loss=lambda p: judge(functional_call(net, p, there), y_there, kind),
        losses=lambda p: F.cross_entropy(functional_call(net, p, x), y, reduction="none"),
    )
    assert float(meta) == pytest.approx(after(v.numpy()), rel=1e-10)
    h, want = 1e-5, []
    for i in range(B):
        moved = [v.numpy() + sign * h * np.eye(B)[i] for sign in (1, -1)]
        want.append((after(moved[0]) - after(moved[1])) / (2 * h))
    assert max(map(abs, want)) > 1e-3
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-9)
    each.sum().backward()  # the graph is still there, for the real step


def test_shares_by_hand_and_weights_that_are_all_0() -> None:
    v = torch.tensor([0.2, 0.6, 0.0])
    np.testing.assert_allclose(shares(v, "mean"), [0.2 / 3, 0.2, 0])
    np.testing.assert_allclose(shares(v, "sum"), v)
    np.testing.assert_allclose(shares(v, "normalised"), [0.25, 0.75, 0])
    assert shares(torch.zeros(3), "normalised").tolist() == [0, 0, 0]


class Odd(nn.Module):
    """Whatever the tape remembers or must compute again: dropout, pooling, a residual, frozen statistics."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.plain = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.fixed = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False).eval()
        self.bare = nn.BatchNorm1d(16, affine=False)
        self.inplace, self.head = inplace, nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x))
        shortcut = F.max_pool2d(h, 2)
        h = F.dropout(F.max_pool2d(torch.relu(self.fixed(h)), 2, 2), 0.5, True)
        out = self.plain(h)
        if self.inplace:
            out += shortcut
        else:
            out = out + shortcut
        return self.head(self.bare(F.adaptive_avg_pool2d(out.relu(), 2).flatten(1)))


def both_ways(net: nn.Module, x: Tensor, direction: list[Tensor]) -> tuple[Tensor, Tensor, Tape]:
    """The derivative by the tape, and by finite differences."""
    tape, params = Tape(x.device), dict(net.named_parameters())
    state = torch.get_rng_state()
    with tape.recording():
        net(x)
    after, values = torch.get_rng_state(), [kept[0].clone() for kept in tape.kept]
    with tape.replaying():
        got = derivative(lambda p: functional_call(net, p, x), params, direction)
    assert all(torch.equal(k[0], v) for k, v in zip(tape.kept, values, strict=True)), "the graph's values are its own"
    assert torch.equal(torch.get_rng_state(), after), "the tape's replay draws nothing of the run's numbers"
    ends, h = [], 1e-6
    for sign in (1, -1):
        torch.set_rng_state(state)
        moved = {k: p.detach() + sign * h * d for (k, p), d in zip(params.items(), direction, strict=True)}
        with torch.no_grad():
            ends.append(functional_call(net, moved, x))
    torch.set_rng_state(after)
    return got, (ends[0] - ends[1]) / (2 * h), tape


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_tape_gives_the_derivative_of_the_pass_it_heard(inplace: bool, channels_last: bool) -> None:
    torch.manual_seed(3)
    net, x = Odd(inplace=inplace).double(), torch.randn(6, 2, 8, 8, dtype=torch.float64)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    direction = [torch.randn_like(p) for p in net.parameters()]
    got, want, tape = both_ways(net, x, direction)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    overwritten = [k[0]._version != v for k, v in zip(tape.kept, tape.versions, strict=True)]
    assert any(overwritten) == inplace, "what was overwritten is computed again"


@pytest.mark.parametrize("name", ["cnn", "resnet32", "cnn-gn"])
def test_built_in_networks(name: str) -> None:
    """Against torch's own rules, which compute everything once more."""
    torch.manual_seed(0)
    net, x = build(name, (3, 8, 8), K).double(), torch.randn(8, 3, 8, 8, dtype=torch.float64)
    params = {k: p.detach() for k, p in net.named_parameters()}
    direction = [torch.randn_like(p) for p in params.values()]
    tape = Tape(x.device)
    with tape.recording():
        net(x)
    with tape.replaying():
        got = derivative(lambda p: functional_call(net, p, x), params, direction)
    with still_statistics(net):
        _, want = jvp(lambda p: functional_call(net, p, x), (params,), (dict(zip(params, direction, strict=True)),))
    assert float(want.abs().max()) > 0.1
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_remembered_layers_are_not_computed_again() -> None:
    """The convolution is called for the derivative alone: once for its weight, and once more if its input moves."""
    net, x = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    tape = Tape(x.device)
    with tape.recording():
        out = net(x)
    tape.kept[0] = (torch.full_like(out, math.pi),)
    tape.versions = [0]
    with tape.replaying(), torch.no_grad():
        assert float(net(x).mean()) == pytest.approx(math.pi), "values come from the tape"
