"""ELR+ against the paper, step by step, and against the slips of its released code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.state import SampleTable
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock, Loss
from labelproof.data.dataset import Data
from labelproof.data.seeds import generator
from labelproof.engine.stages import fit
from labelproof.functional.mixing import Mixup
from labelproof.functional.regularisers import EPS
from labelproof.methods import CE, METHODS, ELRPlus
from tests.reference.oracles import cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, settings

N, D, K = 11, 3, 4


def networks(seed: int = 0) -> Nets:
    torch.manual_seed(seed)
    return Nets([nn.Linear(D, K), nn.Linear(D, K)], twins=True).double().train()


def ready(classes: int = K, **options: Any) -> ELRPlus:
    method = ELRPlus(**options)
    method.setup(Classification(classes), N, nn.Identity())
    return method


def tables(method: Any) -> tuple[SampleTable, SampleTable]:
    return method.h1, method.h2


def at(step: int, per_epoch: int = 2) -> Clock:
    return Clock(step // per_epoch, 9, step % per_epoch, per_epoch, generator(0, "test", 0, step))


def draw(rng: np.random.Generator, rows: int = 6) -> Batch:
    x = torch.from_numpy(rng.normal(size=(rows, D)))
    return Batch(torch.from_numpy(rng.permutation(N)[:rows]), (x,), torch.from_numpy(rng.integers(0, K, rows)))


def train(method: ELRPlus, nets: Nets, batch: Batch, now: Clock, lr: float = 0.5) -> Loss:
    """A step of plain gradient descent, as the engine takes it."""
    nets.zero_grad()
    loss = method.loss(nets, batch, now)
    loss.value.backward()
    with torch.no_grad():
        for p in nets.peers.parameters():
            p.sub_(p.grad, alpha=lr)
    method.after_step(nets, batch, now)
    return loss


class Paper:
    """ELR+ on two linear networks in NumPy: its losses, targets, twins and gradient steps, in loops."""

    def __init__(self, nets: Nets, lam: float, beta: float) -> None:
        self.lam, self.beta = lam, beta
        self.w = [net.weight.detach().numpy().copy() for net in nets]
        self.b = [net.bias.detach().numpy().copy() for net in nets]
        self.tw, self.tb = [w.copy() for w in self.w], [b.copy() for b in self.b]
        self.h = [np.zeros((N, K)), np.zeros((N, K))]

    def step(self, batch: Batch, mix: Mixup | None, lam: float, decay: float, lr: float = 0.5) -> tuple[float, Any]:
        x, index, y = batch.x.numpy(), batch.index.numpy(), one_hot(batch.target.numpy(), K)
        share = 1.0 if mix is None else mix.lam
        perm = np.arange(len(x)) if mix is None else mix.perm.numpy()
        seen = [x @ w.T + b for w, b in zip(self.tw, self.tb, strict=True)]
        total = 0.0
        for k in (0, 1):
            p = softmax(seen[1 - k])
            for i, row in enumerate(index):
                self.h[k][row] = self.beta * self.h[k][row] + (1 - self.beta) * p[i]
        for k in (0, 1):
            mx, my, q = np.zeros_like(x), np.zeros((len(x), K)), np.zeros((len(x), K))
            for i in range(len(x)):
                mx[i] = share * x[i] + (1 - share) * x[perm[i]]
                my[i] = share * y[i] + (1 - share) * y[perm[i]]
                q[i] = share * self.h[k][index[i]] + (1 - share) * self.h[k][index[perm[i]]]
            z = mx @ self.w[k].T + self.b[k]
            p, ce, grad = np.clip(softmax(z), EPS, 1 - EPS), cross_entropy(z, my), np.zeros_like(z)
            for i in range(len(x)):
                inner = np.dot(q[i], p[i])
                total += (ce[i] + lam * np.log(1 - inner)) / len(x)
                for c in range(K):  # Lemma 1 of the paper, for soft labels
                    grad[i, c] = (p[i, c] - my[i, c] - lam * p[i, c] * (q[i, c] - inner) / (1 - inner)) / len(x)
            self.w[k] -= lr * grad.T @ mx
            self.b[k] -= lr * grad.sum(0)
        for k in (0, 1):
            self.tw[k] = decay * self.tw[k] + (1 - decay) * self.w[k]
            self.tb[k] = decay * self.tb[k] + (1 - decay) * self.b[k]
        return total, np.stack(seen)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
@pytest.mark.parametrize(("lam", "beta", "lam_ramp", "twin_ramp"), [(3.0, 0.7, 0, 0), (1.0, 0.9, 5, 6)])
def test_equals_the_paper_over_several_steps(
    mixup: float, lam: float, beta: float, lam_ramp: int, twin_ramp: int
) -> None:
    rng, nets = np.random.default_rng(0), networks()
    method = ready(lam=lam, beta=beta, mixup=mixup, lam_ramp=lam_ramp, twin_ramp=twin_ramp, twin_decay=0.8)
    paper = Paper(nets, lam, beta)
    for s in range(8):
        batch, now = draw(rng), at(s)
        mix = Mixup.draw(mixup, batch.x, at(s).rng) if mixup else None
        reached = np.exp(-5 * (1 - min(s / lam_ramp, 1)) ** 2) if lam_ramp else 1.0
        rising = np.exp(-5 * (1 - min((s + 1) / twin_ramp, 1)) ** 2) * 0.8 if twin_ramp else min(1 - 1 / (s + 1), 0.8)
        want, seen = paper.step(batch, mix, reached * lam, rising)
        got = train(method, nets, batch, now)
        assert float(got.value.detach()) == pytest.approx(want, rel=1e-5)
        np.testing.assert_allclose(got.out.numpy(), seen, atol=1e-5)
        for k in (0, 1):
            np.testing.assert_allclose(tables(method)[k].values.numpy(), paper.h[k], atol=1e-6)
            np.testing.assert_allclose(nets[k].weight.detach().numpy(), paper.w[k], atol=1e-5)
            np.testing.assert_allclose(nets.twins[k].weight.numpy(), paper.tw[k], atol=1e-5)
            np.testing.assert_allclose(nets.twins[k].bias.numpy(), paper.tb[k], atol=1e-5)


def test_targets_are_those_of_the_other_network() -> None:
    method, nets, batch = ready(beta=0.0), networks(), draw(np.random.default_rng(0))
    method.loss(nets, batch, at(0))
    for k in (0, 1):
        want = nets.twins[1 - k](batch.x).softmax(1).float()
        torch.testing.assert_close(tables(method)[k].rows(batch.index), want)


def test_the_parts_are_logged_apart() -> None:
    """The sum is negative late in training, by design, and tells little."""
    loss = ready(lam=5.0).loss(networks(), draw(np.random.default_rng(0)), at(0))
    assert float(loss.value.detach()) == pytest.approx(2 * float(loss.log["ce"] + 5 * loss.log["elr"]), rel=1e-5)


def test_both_networks_share_one_split_and_one_vector_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slip P1. The released code draws both twice: one network's validation samples train the other."""
    data, used = blobs(97, flips=0.3), {}
    plain = ELRPlus.loss

    def spy(self: ELRPlus, nets: Nets, batch: Batch, now: Clock) -> Loss:
        used.update(zip(batch.index.tolist(), batch.target.tolist(), strict=True))
        return plain(self, nets, batch, now)

    monkeypatch.setattr(ELRPlus, "loss", spy)
    r = fit(ELRPlus(), factory(data), data, settings(validation_fraction=0.25))
    first, second = (set(np.flatnonzero(h.values.sum(1).numpy())) for h in tables(r.method))
    assert first == second == set(r.rows.tolist()) == set(used)
    assert not first & set(r.held.tolist())
    assert all(data.y[i] == label for i, label in used.items()), "the labels of the data, for both"


def test_weighted_labels_are_safe_without_targets() -> None:
    """Slip P2. y⊙q / Σ(y⊙q) is 0/0 where the target has nothing on the labels; and it is off unless asked for."""
    batch, now = draw(np.random.default_rng(0)), at(0)
    sure = networks()
    with torch.no_grad():
        for twin in sure.twins:
            twin.weight.zero_()
            twin.bias.copy_(torch.tensor([0.0, 900, 0, 0]))  # softmax is 0 elsewhere, to the last bit
    losses = [float(ready(reweight=r, mixup=0.0).loss(sure, batch, now).value.detach()) for r in (False, True)]
    assert np.isfinite(losses).all()
    assert losses[0] == losses[1], "a single class keeps its weight, whatever the target"
    assert not ELRPlus().reweight


def test_weighted_labels_follow_the_targets() -> None:
    batch, nets = draw(np.random.default_rng(0)), networks()
    method, mix = ready(reweight=True, beta=0.0), Mixup.draw(1.0, batch.x, at(0).rng)
    got = method.loss(nets, batch, at(0)).log["ce"]
    want = []
    for k in (0, 1):
        q = mix(nets.twins[1 - k](batch.x).softmax(1)).numpy()
        y = mix(torch.from_numpy(one_hot(batch.target.numpy(), K))).numpy() * q
        want.extend(cross_entropy(nets[k](mix(batch.x)).detach().numpy(), y / y.sum(1, keepdims=True)))
    assert float(got) == pytest.approx(np.mean(want), rel=1e-5)


def test_ramps_have_defaults_and_reach_their_values() -> None:
    """Slip P3 (a missing `coef_step` ends the run): both ramps are off unless asked for."""
    batch, nets = draw(np.random.default_rng(0)), networks()
    values = [float(ready(lam=2.0, lam_ramp=n).loss(nets, batch, at(6)).value.detach()) for n in (0, 6, 1000)]
    assert values[0] == values[1] < values[2], "log(1 − <q, p>) is negative: a smaller weight leaves more of the loss"


def test_twins_start_as_copies_and_average_statistics_too() -> None:
    """The released twins start from other random weights, and keep their own statistics, those of their own passes."""
    data = blobs(97)

    def network(k: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    r = fit(ELRPlus(twin_decay=0.0), network, data, settings(epochs=1))
    for peer, twin in zip(r.nets.peers, r.nets.twins, strict=True):
        for a, b in zip(peer.state_dict().values(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b)
    slow = fit(ELRPlus(twin_decay=0.9, twin_ramp=1), network, data, settings(epochs=1))
    mean, start = slow.nets.twins[0][1].running_mean, torch.zeros(16)
    assert not torch.allclose(mean, start)
    assert mean.norm() < slow.nets[0][1].running_mean.norm()


def test_the_passes_of_the_twins_build_no_graph_and_move_no_statistics() -> None:
    """Slip P7."""
    torch.manual_seed(0)
    nets = Nets([nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.Linear(5, K)) for _ in range(2)], twins=True)
    before = {k: v.clone() for k, v in nets.train().twins.state_dict().items()}
    batch = draw(np.random.default_rng(0))
    batch = batch._replace(views=(batch.x.float().requires_grad_(),))  # or there would be no graph in any case
    graphs = []
    for twin in nets.twins:
        twin.register_forward_hook(lambda net, _, out: graphs.append((out.requires_grad, net.training)))
    loss = ready().loss(nets, batch, at(0))
    loss.value.backward()
    assert graphs == [(False, False)] * 2
    assert not loss.out.requires_grad
    assert all(p.grad is None for p in nets.twins.parameters())
    assert all(torch.equal(v, before[k]) for k, v in nets.twins.state_dict().items())


def test_prediction_is_of_the_mean_of_logits() -> None:
    nets, x = networks(), torch.randn(5, D, dtype=torch.float64)
    want = ((nets[0](x) + nets[1](x)) / 2).softmax(1)
    torch.testing.assert_close(ready().predict(nets, x), want.float(), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(want, (nets[0](x).softmax(1) + nets[1](x).softmax(1)) / 2, atol=1e-3)


def test_belief_is_the_mean_of_both_tables_and_finite_for_samples_never_visited() -> None:
    data = blobs(97)
    r = fit(ELRPlus(), factory(data), data, settings(validation_fraction=0.2))
    rows = [h.values.numpy()[r.rows] for h in tables(r.method)]
    want = sum(h / h.sum(1, keepdims=True) for h in rows) / 2
    belief = r.belief()
    np.testing.assert_allclose(belief[r.rows], want, atol=1e-6)
    np.testing.assert_allclose(belief.sum(1), 1, atol=1e-5)
    for h in tables(r.method):  # as if one process of several had left a sample out of a run of one epoch
        h.values[r.rows[0]] = 0
    np.testing.assert_allclose(r.belief()[r.rows[0]], r.predict(data.x[r.rows[:1]])[0], atol=1e-6)


def test_outputs_that_overflow_do_not_poison_the_memory() -> None:
    method, nets, batch = ready(), networks(), draw(np.random.default_rng(0))
    method.loss(nets, batch, at(0))
    before = method.h1.values.clone()
    batch.x[0] = torch.inf
    method.loss(nets, batch, at(1))
    row = batch.index[0]
    assert torch.equal(method.h1.values[row], before[row])
    assert torch.isfinite(method.h1.values).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_single_row_and_two_classes(classes: int) -> None:
    torch.manual_seed(0)
    nets = Nets([nn.Linear(D, classes) for _ in range(2)], twins=True).train()
    batch = Batch(torch.tensor([4]), (torch.randn(1, D),), torch.tensor([1]))
    loss = ready(classes, reweight=True).loss(nets, batch, at(0))
    loss.value.backward()
    assert all(torch.isfinite(p.grad).all() for p in nets.peers.parameters())


def test_beats_cross_entropy_on_real_digits() -> None:
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    train_rows, test_rows = order[:900], order[900:]
    noisy = np.where(rng.random(900) < 0.5, rng.integers(0, 10, 900), y[train_rows])
    data = Data((x[train_rows] / 16).astype(np.float32), noisy, classes=np.arange(10), truth=y[train_rows])
    test = Data((x[test_rows] / 16).astype(np.float32), y[test_rows], classes=np.arange(10))
    how = settings(epochs=40, batch_size=64, lr=0.1)
    ours, base = (fit(m, factory(data, 256), data, how, test=test).history[-1] for m in (ELRPlus(), CE()))
    assert ours["test_accuracy"] > base["test_accuracy"] + 0.1


def test_bad_values_are_named() -> None:
    assert METHODS["elr+"] is ELRPlus
    with pytest.raises(ValueError, match=r"beta=1\.0 must lie in \[0, 1\)"):
        ELRPlus(beta=1.0)
    with pytest.raises(ValueError, match=r"mixup=-1 must lie in \[0, inf\)"):
        ELRPlus(mixup=-1)
    with pytest.raises(ValueError, match=r"twin_decay=1 must lie in \[0, 1\)"):
        ELRPlus(twin_decay=1)
    with pytest.raises(ValueError, match=r"twin_ramp=-1 must lie in \[0, inf\)"):
        ELRPlus(twin_ramp=-1)
    with pytest.raises(ValueError, match=r"lam_ramp=-1 must lie in \[0, inf\)"):
        ELRPlus(lam_ramp=-1)
    with pytest.raises(ValueError, match="ELRPlus has no hyper-parameter 'wc1'; it has lam, beta, mixup"):
        ELRPlus().set_params(wc1=1)  # slip P5: settings that nobody reads


def test_ramps_count_updates_where_gradients_are_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    decays: list[float] = []
    monkeypatch.setattr(Nets, "update_twins", lambda self, decay: decays.append(decay))
    data = blobs(96)
    fit(ELRPlus(), factory(data), data, settings(epochs=2, batch_size=16, accumulate=4))
    assert decays == pytest.approx([1 - 1 / s for s in (1, 2, 3, 4)])  # six batches make two updates
