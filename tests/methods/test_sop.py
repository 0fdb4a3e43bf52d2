"""SOP and SOP+ against loops written from the paper, and against the slips of the released code (demand.md 2.3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.engine.stages import fit
from labelproof.methods import SOP, SOPPlus
from tests.reference.oracles import softmax
from tests.toy import blobs, factory, settings

N, K = 9, 4
RNG = np.random.default_rng(0)
Z, STRONG = 2 * RNG.normal(size=(2, N, K))
Y = RNG.integers(0, K, N)
U, V = 0.6 * RNG.normal(size=(N, 1)), 0.6 * RNG.normal(size=(N, K))
NOW = Clock(0, 1, 0, 1, torch.Generator())


def oracle(
    z: np.ndarray, u: np.ndarray, v: np.ndarray, strong: np.ndarray | None = None, frozen: np.ndarray | None = None
) -> float:
    """Equations (1) to (4) by loops; `frozen` is v where the gradient of v must not come from."""
    p, frozen = softmax(z), v if frozen is None else frozen
    q = np.zeros_like(p)
    ce = mse = 0.0
    for i in range(len(z)):
        y = np.eye(K)[Y[i]]
        claimed = np.clip(u[i] ** 2 * y, 0, 1)
        missed, fixed = (np.clip(w[i] ** 2 * (1 - y), 0, 1) for w in (v, frozen))
        q[i] = np.maximum(p[i] + claimed - fixed, 1e-4)
        q[i] = np.clip(q[i] / q[i].sum(), 1e-4, 1)
        ce -= float(np.log(q[i][Y[i]]))
        mse += float(((np.eye(K)[z[i].argmax()] + claimed - missed - y) ** 2).sum())
    total = (ce + mse) / len(z)
    if strong is not None:
        s = softmax(strong)
        total += 0.9 * float((p * (np.log(p) - np.log(s))).sum()) / len(z)
        total += 0.1 * float(np.mean([-np.log(np.clip(q[:, k].mean(), 1e-4, 1)) for k in range(K)]))
    return total


def ready(method: Method) -> tuple[Method, Nets, Batch, torch.Tensor]:
    """The method with u and v as above, on a network that hands its input through."""
    method.setup(Classification(K), N, nn.Identity())
    with torch.no_grad():
        method.u.weight.copy_(torch.from_numpy(U))
        method.v.weight.copy_(torch.from_numpy(V))
    z = torch.from_numpy(Z).float().requires_grad_()
    views = (z, torch.from_numpy(STRONG).float())[: len(method.views)]
    return method, Nets([nn.Identity()]), Batch(torch.arange(N), views, torch.from_numpy(Y)), z


@pytest.mark.parametrize(("kind", "strong"), [(SOP, None), (SOPPlus, STRONG)])
def test_loss_is_the_papers(kind: type[Method], strong: np.ndarray | None) -> None:
    method, nets, batch, _ = ready(kind())
    assert method.loss(nets, batch, NOW).value.item() == pytest.approx(oracle(Z, U, V, strong), rel=1e-5)


def test_gradients_of_u_and_v_follow_the_papers_pattern() -> None:
    """u from both terms, v from the squared error alone (released code: V is detached in the prediction)."""
    method, nets, batch, _ = ready(SOP())
    method.loss(nets, batch, NOW).value.backward()
    step = 1e-5
    for name, start in (("u", U), ("v", V)):
        want = np.zeros_like(start)
        for at in np.ndindex(start.shape):
            ends = []
            for sign in (1, -1):
                moved = start.copy()
                moved[at] += sign * step
                ends.append(oracle(Z, moved, V) if name == "u" else oracle(Z, U, moved, frozen=V))
            want[at] = (ends[0] - ends[1]) / (2 * step)
        got = getattr(method, name).weight.grad.to_dense().numpy()
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_network_is_taught_by_cross_entropy_alone() -> None:
    """The squared error sees hard predictions: nothing of it reaches the network."""
    method, nets, batch, z = ready(SOP())
    method.loss(nets, batch, NOW).value.backward()
    step, want = 1e-5, np.zeros_like(Z)
    for at in np.ndindex(Z.shape):
        up, down = Z.copy(), Z.copy()
        up[at] += step
        down[at] -= step
        want[at] = (oracle(up, U, V) - oracle(down, U, V)) / (2 * step)  # no argmax changes within a step
    np.testing.assert_allclose(z.grad.numpy(), want, atol=1e-4)


def test_starts_as_cross_entropy_and_predicts_without_u_and_v() -> None:
    method, nets, batch, _ = ready(SOP())
    with torch.no_grad():
        method.u.weight.zero_()
        method.v.weight.zero_()
    log = method.loss(nets, batch, NOW).log
    assert log["ce"].item() == pytest.approx(-np.log(softmax(Z)[np.arange(N), Y]).mean(), rel=1e-3)
    torch.testing.assert_close(method.predict(nets, batch.x), batch.x.softmax(1))


def test_u_and_v_have_optimisers_of_their_own() -> None:
    method, nets, _, _ = ready(SOP(lr_u=3, lr_v=7))
    nets = Nets([nn.Linear(2, 2)])
    optimizers = method.optimizers(nets, lambda params: torch.optim.SGD(params, 0.02, momentum=0.9, weight_decay=1e-3))
    for name, lr in (("u", 3), ("v", 7)):
        (group,) = optimizers[name].param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (lr, 0, 0)
        assert "initial_lr" not in group, "no schedule"


def test_the_errors_it_learns_are_those_of_the_wrong_labels() -> None:
    data = blobs(400, flips=0.3)
    r = fit(SOP(), factory(data, 256), data, settings(epochs=40, batch_size=64, weight_decay=0.0))
    u = r.method.u.weight[:, 0].square().clamp(max=1).detach().numpy()
    wrong = data.y != data.truth
    assert u[wrong].mean() > 5 * u[~wrong].mean()
    v = r.method.v.weight.square().clamp(max=1).detach().numpy()
    sure = wrong & (v.max(1) > 0.1)
    assert (v.argmax(1) == data.truth)[sure].mean() > 0.9, "v names the true class"


def test_two_views_are_different_and_go_through_one_forward_pass() -> None:
    data, calls = blobs(96), []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x.detach())
            return super().forward(x)

    fit(SOPPlus(), lambda k: Counted(8, 3), data, settings(epochs=1, batch_size=32))
    training = [x for x in calls if len(x) == 64]
    assert len(training) == 3
    weak, strong = training[0].chunk(2)
    assert not torch.equal(weak, strong)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"lr_u=0 must lie in \(0, inf\)"):
        SOP(lr_u=0)
    with pytest.raises(ValueError, match=r"balance=-1 must lie in \[0, inf\)"):
        SOPPlus(balance=-1)
