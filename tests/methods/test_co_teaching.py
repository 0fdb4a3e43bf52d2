"""Co-teaching against the paper, and against the slips of its released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.methods import CoTeaching
from tests.reference.oracles import co_teaching, cross_entropy, one_hot


def networks(seed: int = 0) -> Nets:
    torch.manual_seed(seed)
    return Nets([nn.Linear(5, 4), nn.Linear(5, 4)])


def batch(n: int = 12, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.arange(n), (torch.randn(n, 5, generator=g),), torch.randint(0, 4, (n,), generator=g))


def at(epoch: int) -> Clock:
    return Clock(epoch, 30, 0, 1, torch.Generator())


@pytest.mark.parametrize(
    ("rate", "gradual", "exponent"), [(0.4, 10, 1.0), (0.45, 5, 2.0), (0.9, 1, 0.5), (0.0, 10, 1.0)]
)
@pytest.mark.parametrize("epoch", [0, 1, 4, 20])
def test_equals_the_paper(rate: float, gradual: int, exponent: float, epoch: int) -> None:
    m, nets, b = CoTeaching(noise_rate=rate, num_gradual=gradual, exponent=exponent), networks(), batch()
    m.setup(Classification(4), 12, nets[0])
    q = one_hot(b.target.numpy(), 4)
    l1, l2 = (cross_entropy(net(b.x).detach().double().numpy(), q) for net in nets)
    want, d1, d2 = co_teaching(l1, l2, epoch + 1, rate, gradual, exponent)
    got = m.loss(nets, b, at(epoch))
    assert float(got.value.detach()) == pytest.approx(want, rel=1e-5)
    assert got.trust is not None
    first, second = (set(np.flatnonzero(row.numpy())) for row in got.trust)
    assert (first, second) == (d2, d1), "each network learns from what the other selected"


def test_each_network_is_taught_by_the_other_alone() -> None:
    """The gradient of network 1 is that of its own mean loss over network 2's selection: divided once."""
    m, nets, b = CoTeaching(noise_rate=0.5, num_gradual=1), networks(), batch()
    m.setup(Classification(4), 12, nets[0])
    loss = m.loss(nets, b, at(5))
    loss.value.backward()
    chosen = loss.trust[0].bool()
    twin = nn.Linear(5, 4)
    twin.load_state_dict(nets[0].state_dict())
    nn.functional.cross_entropy(twin(b.x[chosen]), b.target[chosen]).backward()
    torch.testing.assert_close(nets[0].weight.grad, twin.weight.grad)


def test_the_exponent_stands_on_the_epoch() -> None:
    """tau^c, as in the released code, would change the final rate; T^c changes only how it is reached."""
    m, nets, b = CoTeaching(noise_rate=0.25, num_gradual=4, exponent=2.0), networks(), batch(16)
    m.setup(Classification(4), 16, nets[0])
    kept = [int(m.loss(nets, b, at(e)).trust[0].sum()) for e in range(6)]
    assert kept == [15, 12, 12, 12, 12, 12]  # 1 - .25 * min(T^2 / 4, 1) of 16, floored


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_rate=1\.0 must lie in \[0, 1\)"):
        CoTeaching(noise_rate=1.0)
    with pytest.raises(ValueError, match=r"num_gradual=0 must lie in \[1, inf\)"):
        CoTeaching(num_gradual=0)
