"""DivideMix against its paper, and against the slips of its released code."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.data.dataset import Data
from labelproof.engine.stages import fit
from labelproof.functional.mixmatch import clean_probability
from labelproof.methods import CE, DivideMix
from tests.reference.oracles import Floats, cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, same, settings

K, N, B = 4, 20, 12


def networks(seed: int = 0, outputs: int = K) -> Nets:
    torch.manual_seed(seed)
    return Nets([nn.Linear(5, outputs), nn.Linear(5, outputs)])


def batch(n: int = B, seed: int = 0, classes: int = K) -> Batch:
    g = torch.Generator().manual_seed(seed)
    views = torch.randn(n, 5, generator=g), torch.randn(n, 5, generator=g)
    return Batch(torch.randperm(N, generator=g)[:n], views, torch.randint(0, classes, (n,), generator=g))


def at(epoch: int, step: int = 0, epochs: int = 30, seed: int = 5) -> Clock:
    return Clock(epoch, epochs, step, 4, torch.Generator().manual_seed(seed))


def divided(w: Any = None, outputs: int = K, **options: Any) -> tuple[DivideMix, Nets]:
    """A method after a division with these probabilities (N, 2): column k is what network k is told."""
    m, nets = DivideMix(**{"warmup": 2, **options}), networks(outputs=outputs)
    m.setup(Classification(outputs), N, nets[0])
    w = torch.rand(N, 2, generator=torch.Generator().manual_seed(9)) if w is None else torch.full((N, 2), w)
    m.doubt.write(torch.arange(N), 1 - w)
    return m, nets


def scan_of(losses: torch.Tensor, target: torch.Tensor) -> Any:
    """A scan in another order than that of the ids, of networks whose losses are known."""
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(1))

    def scan(f: Any, *, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return order, torch.cat([losses[order], target[order, None].float()], 1)

    return scan


def two_modes(seed: int, n: int = N) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.where(rng.random(n) < 0.5, rng.normal(0.3, 0.1, n), rng.normal(3, 0.4, n))).float()


# -------------------------------------------------------------------------------------------------- the oracle


def linear(x: Floats, net: nn.Module) -> Floats:
    return x @ net.weight.detach().double().numpy().T + net.bias.detach().double().numpy()


def one_network(
    k: int, train: nn.Module, nets: Nets, b: Batch, w: Floats, pi: Floats, lam: float, ell: float, perm: NDArray[Any]
) -> tuple[float, float, float]:
    """Equations (3) to (6) for network k, sample by sample. `train` is trained, `nets` make the guesses."""
    views = [v.double().numpy() for v in b.views]
    n, classes = len(b.target), len(pi)
    guess = [[softmax(linear(v, net)) for v in views] for net in nets]
    q, kept = np.zeros((n, classes)), np.zeros(n, dtype=bool)
    for i in range(n):
        own = (guess[k][0][i] + guess[k][1][i]) / 2
        everybody = sum(guess[j][m][i] for j in range(2) for m in range(2)) / 4
        kept[i] = w[i] > 0.5
        label = one_hot(b.target.numpy(), classes)[i]
        mean = w[i] * label + (1 - w[i]) * own if kept[i] else everybody
        q[i] = mean**2 / (mean**2).sum()
    x, q, kept = np.concatenate(views), np.concatenate([q, q]), np.concatenate([kept, kept])
    mixed_x, mixed_q = np.zeros_like(x), np.zeros_like(q)
    for i in range(2 * n):
        mixed_x[i] = ell * x[i] + (1 - ell) * x[perm[i]]
        mixed_q[i] = ell * q[i] + (1 - ell) * q[perm[i]]
    z = linear(mixed_x, train)
    p, ce = softmax(z), cross_entropy(z, mixed_q)
    lx = sum(ce[i] for i in range(2 * n) if kept[i]) / max(kept.sum(), 1)
    lu = sum(((p[i] - mixed_q[i]) ** 2).sum() for i in range(2 * n) if not kept[i]) / classes / max((~kept).sum(), 1)
    penalty = sum(pi[c] * np.log(pi[c] / p[:, c].mean()) for c in range(classes))
    return lx, lu, lx + lam * lu + penalty


def draws(alpha: float, rows: int, seed: int = 5) -> list[tuple[float, NDArray[Any]]]:
    g, found = torch.Generator().manual_seed(seed), []
    for _ in range(2):
        a, b = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64), generator=g).tolist()
        found.append((max(a, b) / (a + b), torch.randperm(rows, generator=g).numpy()))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_step_equals_the_paper(seed: int) -> None:
    m, nets = divided()
    m.pi.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    b, now = batch(seed=seed), at(6, step=1)
    w = (1 - m.doubt.rows(b.index)).double().numpy()
    lam = 25 * (6 + 1 / 4 - 2) / 16
    oracle = [
        lambda net, k=k, d=d: one_network(k, net, guessing, b, w[:, k], m.pi.double().numpy(), lam, *d)
        for k, d in enumerate(draws(4.0, 2 * B))
    ]
    guessing = nets
    want = [oracle[k](nets[k]) for k in range(2)]
    got = m.loss(nets, b, now)
    assert float(got.value.detach()) == pytest.approx(sum(t[2] for t in want), rel=1e-5)
    assert float(got.log["lx"].detach()) == pytest.approx(want[0][0] + want[1][0], rel=1e-5)
    assert float(got.log["lu"].detach()) == pytest.approx(want[0][1] + want[1][1], rel=1e-5)
    np.testing.assert_array_equal(got.trust.numpy(), w.T > 0.5)
    torch.testing.assert_close(got.out, torch.stack([net(b.x) for net in nets]))
    got.value.backward()
    guessing = Nets([nn.Linear(5, K), nn.Linear(5, K)])  # targets are no function of what is trained
    guessing.load_state_dict(nets.state_dict())
    for k, net in enumerate(nets):
        for place in [(0, 0), (1, 3), (3, 2)]:
            values = []
            for h in (1e-3, -1e-3):
                net.weight.data[place] += h
                values.append(oracle[k](net)[2])
                net.weight.data[place] -= h
            assert float(net.weight.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-3, abs=2e-4)


def test_the_weight_of_guesses_rises_and_stays() -> None:
    """Linear from the end of the warm-up, by steps, never above lambda_u."""
    m, nets = divided(alpha=0.0, ramp=4)
    weights = []
    for epoch, step in [(2, 0), (2, 2), (3, 0), (6, 0), (29, 3)]:
        loss = m.loss(nets, batch(), at(epoch, step))
        rest = loss.value - loss.log["lx"] - loss.log["penalty"]
        weights.append(float((rest / loss.log["lu"]).detach()))
    assert weights == pytest.approx([0, 25 / 8, 25 / 4, 25, 25], abs=1e-3)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_warm_up_is_cross_entropy_on_the_first_view(penalty: float) -> None:
    m, nets = divided(confidence_penalty=penalty)
    b = batch()
    want = 0.0
    for net in nets:
        z = linear(b.x.double().numpy(), net)
        p = softmax(z)
        want += cross_entropy(z, one_hot(b.target.numpy(), K)).mean() + penalty * (p * np.log(p)).sum(1).mean()
    loss = m.loss(nets, b, at(1))
    assert float(loss.value.detach()) == pytest.approx(want, rel=1e-5)
    assert loss.trust is None


# ------------------------------------------------------------------------------------------------ the division


def test_each_network_is_told_what_the_other_found() -> None:
    """Co-divide; rows go by id, whatever the order of the scan (D12)."""
    m, nets = DivideMix(warmup=2), networks()
    m.setup(Classification(K), N, nets[0])
    losses, target = torch.stack([two_modes(0), two_modes(1)], 1), torch.arange(N) % K
    m.after_epoch(nets, scan_of(losses, target), at(1))
    scaled = (losses - losses.amin(0)) / (losses.amax(0) - losses.amin(0))
    w = torch.stack([clean_probability(scaled[:, k], 0) for k in range(2)], 1)
    torch.testing.assert_close(1 - m.doubt.dense(), w.flip(1), atol=1e-3, rtol=0)
    assert (m.doubt.dense()[:, 0] - m.doubt.dense()[:, 1]).abs().max() > 0.9, "the networks differ"
    b = batch()
    assert torch.equal(m.loss(nets, b, at(2)).trust[0], (1 - m.doubt.rows(b.index)[:, 0] > 0.5).float())


@pytest.mark.parametrize(("epoch", "divides"), [(0, False), (1, True), (5, True), (28, True), (29, False)])
def test_divides_from_the_end_of_the_warm_up_while_an_epoch_follows(epoch: int, divides: bool) -> None:
    m, nets = DivideMix(warmup=2), networks()
    m.setup(Classification(K), N, nets[0])
    m.after_epoch(nets, scan_of(torch.stack([two_modes(0), two_modes(1)], 1), torch.zeros(N)), at(epoch))
    assert bool(m.doubt.dense().any()) is divides


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 1.386, torch.nan, torch.inf])
def test_constant_or_overflown_losses_leave_every_label_believed(value: float) -> None:
    """D5: the released code divides 0 by 0."""
    m, nets = DivideMix(warmup=2), networks()
    m.setup(Classification(K), N, nets[0])
    m.after_epoch(nets, scan_of(torch.full((N, 2), value), torch.arange(N) % K), at(3))
    assert not m.doubt.dense().any()
    loss = m.loss(nets, batch(), at(4))
    assert bool(loss.value.isfinite())
    assert loss.log["labelled"] == 1


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_an_empty_part_is_safe(w: float) -> None:
    """D7: the released code crashes."""
    m, nets = divided(w)
    loss = m.loss(nets, batch(), at(20))
    loss.value.backward()
    assert loss.log["lx" if w == 0 else "lu"] == 0
    assert loss.log["labelled"] == w
    for net in nets:
        assert bool(net.weight.grad.isfinite().all())
        assert bool(net.weight.grad.any())


def test_the_prior_is_that_of_the_labels() -> None:
    """D9: 3 : 1 in two classes, where the released code pulls towards 1 : 1."""
    target = (torch.arange(N) % 4 == 0).long()
    for uniform, want in ((False, [16 / 22, 6 / 22]), (True, [0.5, 0.5])):
        m, nets = DivideMix(warmup=2, uniform_prior=uniform), networks(outputs=2)
        m.setup(Classification(2), N, nets[0])
        m.after_epoch(nets, scan_of(torch.stack([two_modes(0), two_modes(1)], 1), target), at(1))
        torch.testing.assert_close(m.pi, torch.tensor(want))


# ----------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("epochs", "warm"), [(1, 1), (9, 1), (40, 4)])
def test_the_warm_up_needs_no_data_set_of_the_paper(epochs: int, warm: int) -> None:
    """D2: a tenth of the epochs; D8: and no argument asks for the noise rate."""
    m, nets = DivideMix(), networks()
    m.setup(Classification(K), N, nets[0])
    assert m.loss(nets, batch(), at(warm - 1, 3, epochs)).trust is None
    assert m.loss(nets, batch(), at(warm, 0, epochs)).trust is not None
    assert not [name for name in inspect.signature(DivideMix).parameters if "rate" in name or "noise" in name]


def test_the_same_seed_gives_the_same_run() -> None:
    """D10: the released code's mixup is not seeded; D1: nor is N a constant here."""
    data = blobs(97, flips=0.3)
    runs = [fit(DivideMix(), factory(data), data, settings(epochs=4, seed=s)) for s in (0, 0, 1)]
    states = [{**r.nets.state_dict(), **r.method.state_dict()} for r in runs]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    assert runs[0].method.doubt.num_samples == 97


def test_held_out_samples_are_no_part_of_the_division() -> None:
    data = blobs(97, flips=0.3)
    r = fit(DivideMix(), factory(data), data, settings(epochs=4, validation_fraction=0.25))
    assert not r.method.doubt.dense()[r.held].any()
    assert r.method.doubt.dense()[r.rows].any()


def test_gradients_reach_every_weight_under_autocast() -> None:
    """Before torch 2.11 the casts of the guessing pass, made without gradient, were handed to the training pass."""
    m, nets = divided()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = m.loss(nets, batch(), at(9))
    loss.value.backward()
    assert all(p.grad is not None and p.grad.any() for p in nets.parameters())


def test_predicts_by_the_mean_of_logits() -> None:
    m, nets = divided()
    x = batch().x
    z = (nets[0](x) + nets[1](x)).detach().double().numpy() / 2
    np.testing.assert_allclose(m.predict(nets, x).detach().numpy(), softmax(z), atol=1e-6)


def test_beats_cross_entropy_on_digits_with_half_the_labels_wrong() -> None:
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    given = y.copy()
    wrong = rng.permutation(len(y))[: len(y) // 2]
    given[wrong] = (y[wrong] + rng.integers(1, 10, len(wrong))) % 10
    data = Data(x[:1000], given[:1000], classes=np.arange(10), truth=y[:1000])
    test = Data(x[1000:], y[1000:], classes=np.arange(10), truth=y[1000:])
    how = settings(epochs=12, batch_size=64, lr=0.1)
    ce, dm = (fit(m, factory(data, 128), data, how, test=test).history[-1] for m in (CE(), DivideMix()))
    assert dm["test_accuracy"] > ce["test_accuracy"] + 0.1
    assert dm["label_precision"] > 0.8
    assert dm["label_recall"] > 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"warmup": 0}, r"warmup=0 must lie in \[1, inf\)"),
        ({"threshold": 1.0}, r"threshold=1\.0 must lie in \[0, 1\)"),
        ({"temperature": 0.0}, r"temperature=0\.0 must lie in \(0, inf\)"),
        ({"alpha": -1.0}, r"alpha=-1\.0 must lie in \[0, inf\)"),
        ({"lambda_u": -1.0}, r"lambda_u=-1\.0 must lie in \[0, inf\)"),
        ({"ramp": 0}, r"ramp=0 must lie in \[1, inf\)"),
        ({"confidence_penalty": -0.1}, r"confidence_penalty=-0\.1 must lie in \[0, inf\)"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DivideMix(**options)
