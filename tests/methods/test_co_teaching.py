"""Co-teaching against the paper, and against the slips of its released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification, Regression, Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.methods import CoTeaching
from labelproof.methods import co_teaching as module
from tests.reference.oracles import co_teaching, cross_entropy, one_hot
from tests.toy import blobs, factory, settings


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


def both_ways(nets: Nets, b: Batch, task: Task, **options: float) -> list[tuple[Loss, list[torch.Tensor]]]:
    """Loss and gradients of the last epochs in one pass, and in two."""
    results = []
    for how in ("never", "always"):
        m = CoTeaching(num_gradual=1, score_first=how, **options)
        m.setup(task, len(b.x), nets[0])
        nets.zero_grad()
        loss = m.loss(nets, b, at(20))
        loss.value.backward()
        assert float(loss.log["score_first"]) == (how == "always")
        results.append((loss, [p.grad.clone() for p in nets.parameters()]))
    return results


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["classes", "values", "ties"])
def test_scoring_first_is_the_same_update(rate: float, kind: str) -> None:
    torch.manual_seed(0)
    b = batch(32)
    task: Task = Classification(4)
    if kind == "values":
        task, b = Regression(4), b._replace(target=torch.randn(32, 4))
    elif kind == "ties":  # constant losses: both forms must break ties alike
        b = b._replace(views=(torch.ones(32, 5),), target=torch.zeros(32, dtype=torch.long))
    nets = Nets([nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)])
    (one, g1), (two, g2) = both_ways(nets, b, task, noise_rate=rate)
    torch.testing.assert_close(one.value, two.value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(g1, g2, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.out, two.out)
    assert torch.equal(one.trust, two.trust)


def test_with_batchnorm_only_the_kept_rows_normalise_and_statistics_move_once() -> None:
    torch.manual_seed(0)
    nets = Nets([nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)) for _ in range(2)])
    b, m = batch(32), CoTeaching(noise_rate=0.5, num_gradual=1, score_first="always")
    m.setup(Classification(4), 32, nets[0])
    loss = m.loss(nets, b, at(20))
    for net, w in zip(nets, loss.trust, strict=True):
        inputs = net[0](b.x)[w.bool()]
        assert int(net[1].num_batches_tracked) == 1
        torch.testing.assert_close(net[1].running_mean, 0.1 * inputs.mean(0))
        torch.testing.assert_close(net[1].running_var, 0.9 + 0.1 * inputs.var(0))
    torch.testing.assert_close(loss.out[0], nn.functional.batch_norm(nets[0][0](b.x), None, None, training=True))


def test_two_passes_where_they_are_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(how: str, rate: float, rows: int = 32, *layers: nn.Module) -> bool:
        nets = Nets([nn.Sequential(nn.Linear(5, 4), *layers) for _ in range(2)])
        m = CoTeaching(noise_rate=rate, num_gradual=10, score_first=how)
        m.setup(Classification(4), rows, nets[0])
        first, last = (float(m.loss(nets, batch(rows), at(e)).log["score_first"]) for e in (0, 20))
        assert first == (how == "always" and rows > 1), "nearly all rows are kept in the first epoch"
        return bool(last)

    assert taken("auto", 0.5)
    assert not taken("auto", 0.3), "dearer than one pass"
    assert not taken("auto", 0.5, 32, nn.BatchNorm1d(4)), "another update"
    assert taken("always", 0.1, 32, nn.BatchNorm1d(4))
    assert not taken("never", 0.9)
    assert not taken("always", 0.9, 1), "too few rows for BatchNorm"
    monkeypatch.setattr(module, "world_size", lambda: 2)
    m, nets = CoTeaching(noise_rate=0.9, score_first="always"), networks()
    assert not m._scores_first(0.1, 32), "ranks keep different numbers of rows"
    assert not nets[0].weight.grad


def test_scoring_without_gradient_leaves_none_out_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights cast to half precision without gradient are kept by older versions of torch: they must be dropped."""
    dropped, plain = [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (dropped.append(True), plain()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (_, g1), (_, g2) = both_ways(networks(), batch(32), Classification(4), noise_rate=0.5)
        assert dropped == [True], "between the two passes"
    torch.testing.assert_close(g1, g2, atol=0.05, rtol=0.05)


def test_it_trains_the_same_network_either_way() -> None:
    data = blobs(200, flips=0.4)
    found = [
        fit(CoTeaching(noise_rate=0.5, num_gradual=2, score_first=how), factory(data), data, settings(epochs=6))
        for how in ("never", "auto")
    ]
    torch.testing.assert_close(dict(found[0].nets.state_dict()), dict(found[1].nets.state_dict()), atol=1e-4, rtol=1e-3)
    assert [row["score_first"] for row in found[1].history] == [0, 1, 1, 1, 1, 1]
    assert not any(row["score_first"] for row in found[0].history)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"score_first='often' must be 'auto', 'always' or 'never'"):
        CoTeaching(score_first="often")
    with pytest.raises(ValueError, match=r"noise_rate=1\.0 must lie in \[0, 1\)"):
        CoTeaching(noise_rate=1.0)
    with pytest.raises(ValueError, match=r"num_gradual=0 must lie in \[1, inf\)"):
        CoTeaching(num_gradual=0)
