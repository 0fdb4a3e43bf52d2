"""Co-teaching+ against the paper, and against the slips of its released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.methods import CE, CoTeachingPlus
from tests.reference.oracles import Floats, co_teaching, cross_entropy, one_hot
from tests.toy import blobs, factory, settings


def co_teaching_plus(
    z1: Floats, z2: Floats, y: np.ndarray, epoch: int, rate: float, gradual: int, warmup: int
) -> tuple[float, set[int], set[int]]:
    """Yu et al. 2019 in epoch T = 1, 2, ...: (loss, D1, D2), straight from the four equations."""
    l1, l2 = (cross_entropy(z, one_hot(y, z.shape[1])) for z in (z1, z2))
    among = [i for i in range(len(y)) if z1[i].argmax() != z2[i].argmax()]
    if epoch <= warmup or not among:
        return co_teaching(l1, l2, epoch, rate, gradual, 1.0)
    count = max(1, int(np.floor((1 - rate * min(epoch / gradual, 1)) * len(among) + 1e-9)))
    d1, d2 = (set(sorted(among, key=lambda i: each[i])[:count]) for each in (l1, l2))
    return sum(l1[i] for i in d2) / count + sum(l2[i] for i in d1) / count, d1, d2


class Table(nn.Module):
    """Looks its outputs up by the first input: any two networks one wants."""

    def __init__(self, z: torch.Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.z[x[:, 0].long()]


def case(n: int, classes: int, seed: int = 0, alike: bool = False) -> tuple[Nets, Batch]:
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(2, n, classes, generator=g)
    if alike:
        z[1] = z[0] + 0.01
    batch = Batch(torch.arange(n), (torch.arange(n)[:, None].float(),), torch.randint(0, classes, (n,), generator=g))
    return Nets([Table(z[0]), Table(z[1])]), batch


def loss(nets: Nets, batch: Batch, epoch: int, **options: float) -> Loss:
    method = CoTeachingPlus(**options)
    method.setup(Classification(nets[0].z.shape[1]), len(batch.x), nets[0])
    return method.loss(nets, batch, Clock(epoch, 30, 0, 1, torch.Generator()))


def chosen(result: Loss) -> list[set[int]]:
    return [set(np.flatnonzero(row.numpy()).tolist()) for row in result.trust]


@pytest.mark.parametrize(("n", "classes"), [(40, 4), (24, 2), (7, 3), (2, 2), (1, 2)])
@pytest.mark.parametrize("epoch", [0, 2, 3, 9, 25])
@pytest.mark.parametrize("alike", [False, True])
def test_equals_the_paper(n: int, classes: int, epoch: int, alike: bool) -> None:
    nets, batch = case(n, classes, seed=n, alike=alike)
    got = loss(nets, batch, epoch, noise_rate=0.4, num_gradual=5, warmup=3)
    z = [net.z.detach().double().numpy() for net in nets]
    want, d1, d2 = co_teaching_plus(*z, batch.target.numpy(), epoch + 1, 0.4, 5, 3)
    assert float(got.value.detach()) == pytest.approx(want, rel=1e-5)
    assert chosen(got) == [d2, d1], "each network learns from what the other selected"
    assert float(got.log["disagree"]) == pytest.approx(np.mean(z[0].argmax(1) != z[1].argmax(1)))


def test_only_samples_in_dispute_move_the_networks() -> None:
    nets, batch = case(40, 4)
    result = loss(nets, batch, 20, noise_rate=0.4, warmup=0)
    result.value.backward()
    differ = nets[0].z.argmax(1) != nets[1].z.argmax(1)
    assert 4 < int(differ.sum()) < 40
    for net, w in zip(nets, result.trust, strict=True):
        assert torch.equal(net.z.grad.abs().sum(1) > 0, w > 0)
        assert not (w.bool() & ~differ).any()


def test_the_mean_is_divided_once_and_softmax_taken_once() -> None:
    """The released code feeds probabilities to cross-entropy and divides its mean by the number kept again."""
    nets, batch = case(40, 4)
    result = loss(nets, batch, 20, noise_rate=0.4, warmup=0)
    result.value.backward()
    rows = result.trust[0].bool()
    z = nets[0].z.detach().clone().requires_grad_()
    nn.functional.cross_entropy(z[rows], batch.target[rows]).backward()
    torch.testing.assert_close(nets[0].z.grad, z.grad)


def test_the_sample_with_id_0_counts_like_any_other() -> None:
    """There, ids are filtered by `!= 0`, and with id 0 the last sample in dispute is lost as well."""
    nets, batch = case(12, 2, seed=3)
    nets[0].z.data[0], nets[1].z.data[0] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    result = loss(nets, batch, 20, noise_rate=0.0, warmup=0)
    differ = nets[0].z.argmax(1) != nets[1].z.argmax(1)
    assert torch.equal(result.trust[0].bool(), differ)
    assert bool(differ[0])


def test_without_dispute_it_is_co_teaching() -> None:
    """There, all labels are trained on, wrong ones too."""
    nets, batch = case(20, 4, alike=True)
    result = loss(nets, batch, 20, noise_rate=0.4, warmup=0)
    result.value.backward()
    assert float(result.log["disagree"]) == 0
    assert result.trust.sum(1).tolist() == [12.0, 12.0]
    assert all(torch.isfinite(net.z.grad).all() for net in nets)


def test_an_overflowing_loss_does_no_harm() -> None:
    nets, batch = case(20, 4)
    for net in nets:
        net.z.data[0] = torch.tensor([torch.nan, 0, 0, 0])
    result = loss(nets, batch, 20, noise_rate=0.4, warmup=0)
    assert torch.isfinite(result.value)
    assert not result.trust[:, 0].any()


def test_it_beats_cross_entropy_where_labels_are_wrong() -> None:
    data, test = blobs(400, flips=0.4), blobs(600, seed=50)
    how = settings(epochs=40, batch_size=64, weight_decay=0.0)
    ce, plus = (
        fit(m, factory(data, 256), data, how, test=test).history[-1]["test_accuracy"]
        for m in (CE(), CoTeachingPlus(noise_rate=0.4, warmup=5))
    )
    assert plus > ce + 0.05


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_rate=1\.0 must lie in \[0, 1\)"):
        CoTeachingPlus(noise_rate=1.0)
    with pytest.raises(ValueError, match=r"num_gradual=0 must lie in \[1, inf\)"):
        CoTeachingPlus(num_gradual=0)
    with pytest.raises(ValueError, match=r"warmup=-1 must lie in \[0, inf\)"):
        CoTeachingPlus(warmup=-1)
