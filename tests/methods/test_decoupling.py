"""Decoupling against its rule: who is updated, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.methods import CE, METHODS, Decoupling
from tests.reference.oracles import cross_entropy, one_hot
from tests.toy import blobs, factory, settings


def networks(seed: int = 0, classes: int = 4) -> Nets:
    torch.manual_seed(seed)
    return Nets([nn.Linear(5, classes), nn.Linear(5, classes)])


def batch(n: int, seed: int = 0, classes: int = 4) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.arange(n), (torch.randn(n, 5, generator=g),), torch.randint(0, classes, (n,), generator=g))


def loss(nets: Nets, b: Batch, epoch: int = 20, classes: int = 4, **options: float) -> Loss:
    method = Decoupling(**options)
    method.setup(Classification(classes), len(b.x), nets[0])
    return method.loss(nets, b, Clock(epoch, 30, 0, 1, torch.Generator()))


@pytest.mark.parametrize(("n", "classes"), [(32, 4), (9, 2), (1, 2)])
@pytest.mark.parametrize("floor", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("epoch", [0, 2, 3, 20])
def test_equals_the_rule(n: int, classes: int, floor: float, epoch: int) -> None:
    nets, b = networks(classes=classes), batch(n, classes=classes)
    z = [net(b.x).detach().double().numpy() for net in nets]
    each = [cross_entropy(out, one_hot(b.target.numpy(), classes)) for out in z]
    want, differ = 0.0, []
    for i in range(n):
        differ.append(bool(z[0][i].argmax() != z[1][i].argmax()))
    learned = [True] * n if epoch < 3 else differ
    for ell in each:
        total = sum(ell[i] for i in range(n) if learned[i])
        want += total / max(floor * n, sum(learned), 1e-9)
    got = loss(nets, b, epoch, classes, warmup=3, floor=floor)
    assert float(got.value.detach()) == pytest.approx(want, rel=1e-5)
    assert got.trust.bool().tolist() == learned
    assert float(got.log["disagree"]) == pytest.approx(np.mean(differ))


def test_few_samples_in_dispute_move_little() -> None:
    """One of 100: under the floor of 0.1 its gradient is a tenth of that of a mean over one."""
    b = batch(100)
    nets = networks()
    nets[1].load_state_dict(nets[0].state_dict())
    out = nets[0](b.x)
    closest = (out.topk(2, 1).values @ torch.tensor([1.0, -1.0])).argmin()
    first, second = out[closest].topk(2).indices
    with torch.no_grad():
        nets[1].bias[second] += 1.01 * (out[closest, first] - out[closest, second])
    results = []
    for floor in (0.1, 0.0):
        nets.zero_grad()
        result = loss(nets, b, floor=floor)
        assert int(result.trust.sum()) == 1
        result.value.backward()
        results.append(nets[0].weight.grad.clone())
    torch.testing.assert_close(results[0], results[1] / 10)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_no_dispute_moves_nothing(floor: float) -> None:
    nets, b = networks(), batch(16)
    nets[1].load_state_dict(nets[0].state_dict())
    optimizer = torch.optim.SGD(nets.parameters(), lr=1.0)
    before = nets[0].weight.detach().clone()
    result = loss(nets, b, floor=floor)
    assert float(result.value.detach()) == 0
    result.value.backward()
    optimizer.step()
    assert torch.equal(nets[0].weight, before)
    assert not result.trust.any()


def test_each_network_follows_its_own_loss_alone() -> None:
    nets, b = networks(), batch(32)
    result = loss(nets, b, floor=0.0)
    result.value.backward()
    rows = result.trust.bool()
    twin = nn.Linear(5, 4)
    twin.load_state_dict(nets[1].state_dict())
    nn.functional.cross_entropy(twin(b.x[rows]), b.target[rows]).backward()
    torch.testing.assert_close(nets[1].weight.grad, twin.weight.grad)


def test_it_beats_cross_entropy_where_labels_are_wrong() -> None:
    data, test = blobs(400, flips=0.4), blobs(600, seed=50)
    how = settings(epochs=40, batch_size=64, weight_decay=0.0)
    ce, own = (
        fit(m, factory(data, 256), data, how, test=test).history[-1]["test_accuracy"] for m in (CE(), Decoupling())
    )
    assert own > ce + 0.05


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"warmup=-1 must lie in \[0, inf\)"):
        Decoupling(warmup=-1)
    with pytest.raises(ValueError, match=r"floor=1\.5 must lie in \[0, 1\]"):
        Decoupling(floor=1.5)


@pytest.mark.parametrize("name", ["decoupling", "co-teaching+", "dividemix"])
def test_a_warm_up_longer_than_training_is_said(name: str) -> None:
    data = blobs()
    with pytest.warns(UserWarning, match="warmup=3 lasts for all epochs=3: the method itself never begins"):
        fit(METHODS[name](warmup=3), factory(data), data, settings(epochs=3))
