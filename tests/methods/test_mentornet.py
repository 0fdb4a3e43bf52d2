"""MentorNet against loops written from the paper: the predefined curriculum, the learned one, and what trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.engine.stages import fit
from labelproof.functional.curriculum import percentile, self_paced_weights
from labelproof.methods.ce import CE
from labelproof.methods.mentornet import MentorNet, MentorNetDD
from tests.reference.oracles import cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, settings, streams

N, M, K = 9, 6, 4
RNG = np.random.default_rng(0)
STEPS = [(3 * RNG.normal(size=(N, K)), RNG.integers(0, K, N)) for _ in range(5)]
CLEAN = 2 * RNG.normal(size=(M, K)), RNG.integers(0, K, M)


def at(epoch: int, step: int = 0) -> Clock:
    return Clock(epoch, 10, step, 4, torch.Generator())


def batch(z: Any, y: Any, clean: Any = CLEAN) -> Batch:
    side = Batch(torch.arange(len(clean[0])), (torch.tensor(clean[0]).float(),), torch.tensor(clean[1]))
    x = torch.tensor(z).float().requires_grad_()
    return Batch(torch.arange(len(x)), (x,), torch.tensor(y), {"clean": side})


def pth(each: Any, share: float) -> float:
    """The smallest loss that at least the share of losses does not exceed."""
    return min(a for a in each if sum(b <= a for b in each) >= share * len(each) - 1e-9)


def predefined(each: Any, lam1: float, lam2: float) -> Any:
    v = np.zeros(len(each))
    for i, loss in enumerate(each):
        if lam2 == 0:
            v[i] = 1 if loss <= lam1 else 0
        else:
            v[i] = min(max(1 - (loss - lam1) / lam2, 0), 1)
    return v


@pytest.mark.parametrize(("share", "lam2"), [(0.75, 1.0), (0.7, 0.0), (0.5, 3.0), (1.0, 0.0)])
def test_predefined_curriculum_is_the_papers(share: float, lam2: float) -> None:
    m, nets, average = MentorNet(noise_rate=1 - share, lam2=lam2, burn_in=0.0), Nets([nn.Identity()]), None
    m.setup(Classification(K), N, nets[0])
    for step, (z, y) in enumerate(STEPS):
        each = cross_entropy(z.astype(np.float32).astype(float), one_hot(y, K))
        new = pth(each, share)
        average = new if average is None else 0.5 * average + 0.5 * new
        v = predefined(each, average, lam2)
        b = batch(z, y)
        got = m.loss(nets, b, at(0, step % 4))
        assert got.trust is not None
        assert m.lam1.item() == pytest.approx(average, rel=1e-5)
        np.testing.assert_allclose(got.trust.numpy(), v, atol=1e-5)
        assert got.value.item() == pytest.approx(sum(v * each) / max(sum(v), 1e-9), rel=1e-5)
        got.value.backward()
        want = v[:, None] * (softmax(z) - one_hot(y, K)) / max(sum(v), 1e-9)
        np.testing.assert_allclose(b.x.grad.numpy(), want, atol=1e-5)  # type: ignore[union-attr]


def test_the_closed_form_minimises_the_papers_objective() -> None:
    grid = np.linspace(0, 1, 10_001)
    for loss, lam1, lam2 in RNG.uniform(0.1, 3, size=(20, 3)):
        best = grid[np.argmin(grid * loss + lam2 * grid**2 / 2 - (lam1 + lam2) * grid)]
        got = self_paced_weights(torch.tensor([loss]), torch.tensor(lam1), lam2)
        assert got.item() == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.75, 1.0])
def test_percentile_keeps_its_share_whatever_the_size(share: float) -> None:
    for n in (1, 2, 10, 13, 128):
        each = torch.rand(n, generator=torch.Generator().manual_seed(n))
        assert float(percentile(each, share)) == pytest.approx(pth(each.tolist(), share))
        assert percentile(each.repeat(2), share) == percentile(each, share), "the batch written twice"
    assert percentile(torch.tensor([1.0, torch.nan, 2.0]), 0.6) == 2, "one NaN does not spoil it"


def test_all_samples_count_during_burn_in_and_the_average_runs() -> None:
    m, nets = MentorNet(burn_in=0.3, noise_rate=0.5, lam2=0.0), Nets([nn.Identity()])
    m.setup(Classification(K), N, nets[0])
    kept = [float(m.loss(nets, batch(*STEPS[0]), at(e)).trust.mean()) for e in range(5)]  # type: ignore[union-attr]
    assert kept == pytest.approx([1, 1, 1, 5 / 9, 5 / 9])
    assert list(m.state_dict()) == ["lam1"]


def test_nothing_easy_enough_is_a_loss_of_zero() -> None:
    """Equal losses that have risen since: every one is far above the average, and none is trained on."""
    m, nets = MentorNet(burn_in=0.0, lam2=0.1), Nets([nn.Identity()])
    m.setup(Classification(2), 4, nets[0])
    small, large = np.tile([4.0, 0.0], (4, 1)), np.tile([0.0, 4.0], (4, 1))
    assert m.loss(nets, batch(small, [0] * 4), at(0)).trust.tolist() == [1] * 4, "ties with the threshold count"
    b = batch(large, [0] * 4)
    got = m.loss(nets, b, at(0))
    assert got.trust.tolist() == [0] * 4  # type: ignore[union-attr]
    got.value.backward()
    assert got.value.item() == 0
    assert not b.x.grad.any()  # type: ignore[union-attr]


def test_an_average_spoilt_by_a_batch_begins_anew() -> None:
    m, nets = MentorNet(burn_in=0.0), Nets([nn.Identity()])
    m.setup(Classification(K), N, nets[0])
    m.loss(nets, batch(np.full((N, K), np.nan), STEPS[0][1]), at(0))
    m.loss(nets, batch(*STEPS[1]), at(0))
    each = cross_entropy(STEPS[1][0], one_hot(STEPS[1][1], K))
    assert m.lam1.item() == pytest.approx(pth(each, 0.75), rel=1e-5)


def mentor(theta: dict[str, Any], each: float, lam1: float, label: int, percent: int) -> float:
    """Equation (3) for one sample."""
    z = [each, each - lam1, *theta["label"][label], *theta["percent"][percent]]
    out = theta["last.bias"][0]
    for row, bias, weight in zip(theta["hidden.weight"], theta["hidden.bias"], theta["last.weight"][0], strict=True):
        out += weight * np.tanh(sum(a * b for a, b in zip(row, z, strict=True)) + bias)
    return float(1 / (1 + np.exp(-out)))


def mentor_loss(theta: dict[str, Any], lam1: float, percent: int) -> float:
    """Equation (5) by loops, over CLEAN."""
    z, y = CLEAN
    p, total = softmax(z), 0.0
    for i in range(len(z)):
        for j in range(z.shape[1]):
            v = mentor(theta, -np.log(p[i, j]), lam1, j, percent)
            total -= 0.5 * np.log(v) if j == y[i] else 0.5 * p[i, j] / (1 - p[i, y[i]]) * np.log(1 - v)
    return float(total / len(z))


def learned(seed: int = 1, **options: Any) -> tuple[MentorNetDD, Nets, dict[str, Any]]:
    """A mentor with random parameters on a student that hands its input through."""
    m, nets = MentorNetDD(**options), Nets([nn.Identity()])
    m.setup(Classification(K), N, nets[0])
    torch.manual_seed(seed)
    for p in m.parameters():
        nn.init.normal_(p, std=0.7)
    return m, nets, {name: p.detach().double().numpy() for name, p in m.named_parameters()}


def test_learned_weights_and_both_losses_are_the_papers() -> None:
    m, nets, theta = learned()
    average = None
    for step, (z, y) in enumerate(STEPS):
        epoch, percent = step, int(100 * (step + 3 / 4) / 10)
        each = cross_entropy(z, one_hot(y, K))
        average = pth(each, 0.75) if average is None else 0.5 * average + 0.5 * pth(each, 0.75)
        v = np.array([mentor(theta, each[i], average, y[i], percent) for i in range(N)])
        b = batch(z, y)
        got = m.loss(nets, b, at(epoch, 3))
        np.testing.assert_allclose(got.trust.numpy(), v, atol=1e-5)  # type: ignore[union-attr]
        want = sum(v * each) / sum(v) + mentor_loss(theta, average, percent)
        assert got.value.item() == pytest.approx(want, rel=1e-5)
        assert got.log["mentor"].item() == pytest.approx(mentor_loss(theta, average, percent), rel=1e-5)
        got.value.backward()
        want = v[:, None] * (softmax(z) - one_hot(y, K)) / sum(v)
        np.testing.assert_allclose(b.x.grad.numpy(), want, atol=1e-5)  # type: ignore[union-attr]


def test_the_mentor_learns_from_verified_labels_alone() -> None:
    """Its gradient by finite differences of (5): nothing of the student's loss reaches it."""
    m, nets, theta = learned()
    z, y = STEPS[0]
    m.loss(nets, batch(z, y), at(3, 1)).value.backward()
    lam1, step = pth(cross_entropy(z, one_hot(y, K)), 0.75), 1e-5
    for name, p in m.named_parameters():
        for index in np.ndindex(tuple(p.shape)):
            if name == "percent" and index[0] != 32:
                assert p.grad[index] == 0  # type: ignore[index]
                continue
            ends = []
            for sign in (1, -1):
                moved = {k: a.copy() for k, a in theta.items()}
                moved[name][index] += sign * step
                ends.append(mentor_loss(moved, lam1, 32))
            assert p.grad[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-4)  # type: ignore[index]


def test_the_mentor_has_an_optimiser_of_its_own() -> None:
    m, _, _ = learned(lr_mentor=0.03)
    nets = Nets([nn.Linear(2, K)])
    made = m.optimizers(nets, lambda params: torch.optim.SGD(params, 0.1, momentum=0.9))
    assert list(made) == ["nets", "mentor"]
    (group,) = made["mentor"].param_groups
    assert len(group["params"]) == len(list(m.parameters())) == 6
    assert group["lr"] == 0.03
    assert "initial_lr" not in group, "no schedule"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_those_of_full_precision(dtype: torch.dtype) -> None:
    m, nets, _ = learned()
    torch.manual_seed(0)
    nets = Nets([nn.Linear(K, K)])
    b = batch(*STEPS[0])
    full = m.loss(nets, b, at(0))
    m.lam1.fill_(torch.nan)
    with torch.autocast("cpu", dtype=dtype):
        half = m.loss(nets, b, at(0))
    assert half.value.dtype == half.trust.dtype == torch.float32  # type: ignore[union-attr]
    torch.testing.assert_close(half.trust, full.trust, atol=0.02, rtol=0)
    nn.init.constant_(nets[0].weight, 1e4)  # losses of 1e4 and more, whose difference fp16 could not hold
    with torch.autocast("cpu", dtype=dtype):
        assert torch.isfinite(m.loss(nets, b, at(0)).value)


@pytest.mark.parametrize("rows", [1, 2])
def test_two_classes_and_tiny_clean_batches(rows: int) -> None:
    """With K = 2 there is one wrong label, whatever its probability; here that is 0 in fp32."""
    m, nets = MentorNetDD(), Nets([nn.Identity()])
    m.setup(Classification(2), 2, nets[0])
    clean = np.array([[200.0, 0.0]] * rows), [0] * rows
    got = m.loss(nets, batch(np.zeros((2, 2)), [0, 1], clean), at(9, 3))
    got.value.backward()
    assert torch.isfinite(got.value)
    assert all(torch.isfinite(p.grad).all() for p in m.parameters())  # type: ignore[arg-type]


def test_it_finds_wrong_labels_and_beats_cross_entropy() -> None:
    data, clean = blobs(300, flips=0.4), blobs(600, seed=9)
    how = settings(epochs=30, weight_decay=0.0)
    base, fixed, asked = (
        fit(m, factory(data, 256), data, how, streams=streams(type(m)))
        for m in (CE(), MentorNet(noise_rate=0.4), MentorNetDD())
    )
    scores = [(f.predict(clean.x).argmax(1) == clean.y).mean() for f in (base, fixed, asked)]
    assert min(scores[1:]) > scores[0] + 0.08
    g, now = asked.method.g, Clock(29, 30, 0, 10, torch.Generator())
    v = g(torch.tensor([0.01, 1.0, 6.0]), asked.method.label[[0]], now).sigmoid()
    assert v[0] > 0.7
    assert v[2] < 0.2, "large losses have come to mean wrong"


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_rate=1 must lie in \[0, 1\)"):
        MentorNet(noise_rate=1)
    with pytest.raises(ValueError, match=r"lam2=-1 must lie in \[0, inf\)"):
        MentorNet(lam2=-1)
    with pytest.raises(ValueError, match=r"burn_in=1 must lie in \[0, 1\)"):
        MentorNet(burn_in=1)
    with pytest.raises(ValueError, match=r"lr_mentor=0 must lie in \(0, inf\)"):
        MentorNetDD(lr_mentor=0)
