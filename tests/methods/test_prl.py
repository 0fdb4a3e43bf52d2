"""PRL against the paper, and against the slips of its released code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import labelproof as lp
from labelproof.core.nets import Nets
from labelproof.core.task import Classification, Regression, Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.functional.mixing import Mixup
from labelproof.methods import METHODS, SelfPaced
from tests.reference.oracles import cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, settings

PRL = ["prl-l", "prl-g", "co-prl-l", "co-prl-g"]
N, F, C = 20, 5, 4
TASKS: dict[str, Task] = {"classes": Classification(C), "values": Regression(2)}


def at(epoch: int = 20, step: int = 0, seed: int = 0) -> Clock:
    return Clock(epoch, 30, step, 4, torch.Generator().manual_seed(seed))


def mlp(outputs: int = C, *between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(F, 8), nn.Tanh(), *between, nn.Linear(8, outputs))


def batch(task: Task, n: int = N, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n) if task.kind == "classification" else 3 * rng.normal(size=(n, 2)).astype(np.float32)
    return Batch(torch.arange(n), (torch.from_numpy(rng.normal(size=(n, F)).astype(np.float32)),), torch.from_numpy(y))


def made(name: str, task: Task, make: Callable[[], nn.Module] | None = None, **options: Any) -> tuple[Any, Nets]:
    torch.manual_seed(0)
    method = METHODS[name](**{"noise_rate": 0.4, "num_gradual": 1, **options})
    nets = Nets([make() if make else mlp(task.num_outputs) for _ in range(method.peers)])
    for parameter in nets.peers[1:].parameters():
        parameter.data *= 3  # so that they differ in what they keep
    method.setup(task, N, nets[0])
    return method, nets


def logits(task: Task, z: Any, y: Any, **options: Any) -> tuple[Any, Loss, Tensor]:
    """PRL-L of a network that says `z`."""
    x = torch.tensor(np.asarray(z), dtype=torch.float32).requires_grad_()
    method, _ = made("prl-l", task, nn.Identity, **options)
    got = method.loss(Nets([nn.Identity()]), Batch(torch.arange(len(x)), (x,), torch.as_tensor(y)), at())
    got.value.backward()
    return method, got, x.grad  # type: ignore[return-value]


def kept_of(scores: Any, keep: float) -> list[int]:
    """(4) as a sort of its own, ties to the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: scores[i])[: max(1, int(keep * len(scores) + 1e-9))])


def picked(weight: Tensor) -> list[int]:
    return np.flatnonzero(weight.numpy()).tolist()


def by_hand(net: nn.Module, b: Batch, task: Task, rows: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Mean loss over some rows from a forward pass for each of them, and its gradient."""
    each = [task.loss(net(b.x[i : i + 1]), b.target[i : i + 1])[0] for i in rows]
    value = sum(each, torch.zeros(())) / len(rows)
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters())))


def full_norms(net: nn.Module, b: Batch, task: Task) -> list[float]:
    found = [by_hand(net, b, task, [i])[1] for i in range(len(b.x))]
    return [float(torch.cat([g.flatten() for g in gradient]).norm()) for gradient in found]


def loss_norms(net: nn.Module, b: Batch, task: Task) -> Any:
    out, y = net(b.x).detach().double().numpy(), b.target.numpy()
    wrong = softmax(out) - one_hot(y, C) if task.kind == "classification" else out - y
    return np.sqrt((wrong**2).sum(1))


@pytest.mark.parametrize("kind", TASKS)
def test_the_score_of_the_loss_layer(kind: str) -> None:
    m, nets = made("prl-l", TASKS[kind])
    b = batch(TASKS[kind])
    out, s = m.scored(nets[0], b)
    np.testing.assert_allclose(s, loss_norms(nets[0], b, TASKS[kind]), rtol=1e-5)
    assert out.requires_grad
    assert not s.requires_grad


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("how", ["mlp", "head", "no bias"])
def test_the_score_with_features_is_the_norm_of_the_last_layers_gradient(kind: str, how: str) -> None:
    task = TASKS[kind]

    def make() -> nn.Module:
        net = mlp(task.num_outputs)
        if how == "head":
            return lp.networks.build("mlp", (F,), task.num_outputs)
        return nn.Sequential(*net[:2], nn.Linear(8, task.num_outputs, bias=False)) if how == "no bias" else net

    m, nets = made("prl-l", task, make, features=True)
    net, b = nets[0], batch(task)
    last = net.head if how == "head" else net[2]
    want = []
    for i in range(N):
        value = task.loss(net(b.x[i : i + 1]), b.target[i : i + 1]).sum()
        want.append(float(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(last.parameters()))]).norm()))
    np.testing.assert_allclose(m.scored(net, b)[1], want, rtol=1e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_the_score_of_all_weights(kind: str) -> None:
    m, nets = made("prl-g", TASKS[kind])
    b = batch(TASKS[kind])
    out, s = m.scored(nets[0], b)
    np.testing.assert_allclose(s, full_norms(nets[0], b, TASKS[kind]), rtol=1e-5)
    torch.testing.assert_close(out, nets[0](b.x).detach())
    assert all(p.grad is None for p in nets.parameters())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", PRL)
@pytest.mark.parametrize(("rate", "epoch"), [(0.4, 20), (0.0, 20), (0.9, 20), (0.5, 1)])
def test_the_loss_is_the_mean_over_the_rows_kept(name: str, kind: str, rate: float, epoch: int) -> None:
    task = TASKS[kind]
    m, nets = made(name, task, noise_rate=rate, num_gradual=4)
    b, keep = batch(task), 1 - rate * min((epoch + 1) / 4, 1)
    norms = loss_norms if name.endswith("l") else full_norms
    rows = [kept_of(norms(net, b, task), keep) for net in nets][::-1]
    if len(rows) == 2 and rate:
        assert rows[0] != rows[1], "the exchange must show"
    got = m.loss(nets, b, at(epoch))
    got.value.backward()
    want = [by_hand(net, b, task, kept) for net, kept in zip(nets, rows, strict=True)]
    torch.testing.assert_close(got.value.detach(), sum(value for value, _ in want), rtol=1e-5, atol=1e-6)
    assert [picked(w) for w in got.trust] == rows  # type: ignore[union-attr]
    for net, (_, gradient) in zip(nets, want, strict=True):
        torch.testing.assert_close([p.grad for p in net.parameters()], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.out, torch.stack([net(b.x) for net in nets]))


def test_sums_over_classes_and_filters_samples() -> None:
    """The README's snippet sorts the classes of each row and averages the first C losses of the batch."""
    z, y = np.zeros((16, C)), np.arange(16) % C
    z[np.arange(16), y] = 4.0
    bad = [0, 1, 2, 3, 9]  # the first C among them
    y[bad] = (y[bad] + 1) % C
    _, got, gradient = logits(Classification(C), z, y, noise_rate=5 / 16)
    good = [i for i in range(16) if i not in bad]
    assert picked(got.trust) == good  # type: ignore[arg-type]
    assert float(got.value) == pytest.approx(cross_entropy(z, one_hot(y, C))[good].mean(), rel=1e-5)
    assert np.flatnonzero(gradient.abs().sum(1)).tolist() == good


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", PRL)
def test_divides_once(name: str, rate: float) -> None:
    """The released code divides the mean by the number kept again."""
    b = batch(TASKS["classes"])
    b = b._replace(views=(b.x[:1].expand(N, F),), target=b.target[:1].expand(N))
    m, nets = made(name, TASKS["classes"], noise_rate=rate)
    m.loss(nets, b, at()).value.backward()
    for net in nets:
        _, want = by_hand(net, b, TASKS["classes"], [0])
        torch.testing.assert_close([p.grad for p in net.parameters()], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mixup", [0.0, 2.0])
@pytest.mark.parametrize("name", PRL)
def test_one_sample_is_always_kept(name: str, mixup: float, n: int) -> None:
    m, nets = made(name, TASKS["classes"], noise_rate=0.9, mixup=mixup)
    b = batch(TASKS["classes"], n)
    got = m.loss(nets, b, at(step=1))
    got.value.backward()
    assert [len(picked(w)) for w in got.trust] == [1] * len(nets)  # type: ignore[union-attr]
    for net, other in zip(nets, list(nets)[::-1], strict=True):
        norms = loss_norms if name.endswith("l") else full_norms
        value, gradient = by_hand(net, b, TASKS["classes"], kept_of(norms(other, b, TASKS["classes"]), 0))
        assert torch.isfinite(value)
        torch.testing.assert_close([p.grad for p in net.parameters()], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PRL)
@pytest.mark.parametrize(
    ("rate", "over", "gradual", "shares"),
    [
        (0.4, 0.0, 4, [0.9, 0.8, 0.7, 0.6, 0.6]),
        (0.4, 0.25, 5, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5]),
        (0.3, 1.0, 1, [0.4, 0.4]),
        (0.8, 1.0, 2, [0.5, 0.05, 0.05]),  # more than all: the one
    ],
)
def test_the_schedule(name: str, rate: float, over: float, gradual: int, shares: list[float]) -> None:
    m, nets = made(name, TASKS["classes"], noise_rate=rate, overestimate=over, num_gradual=gradual)
    got = [m.loss(nets, batch(TASKS["classes"]), at(epoch)).trust for epoch in range(len(shares))]
    assert [[len(picked(w)) for w in trust] for trust in got] == [[round(20 * s)] * len(nets) for s in shares]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PRL)
def test_the_share_is_of_the_batch_at_hand(name: str) -> None:
    """Not of the nominal batch size: the last batch of an epoch is smaller."""
    m, nets = made(name, TASKS["values"], noise_rate=0.4)
    got = m.loss(nets, batch(TASKS["values"], 7), at(step=3))
    assert [len(picked(w)) for w in got.trust] == [4] * len(nets)  # type: ignore[union-attr]


@pytest.mark.parametrize("rate", [0.1, 0.35, 0.8])
def test_with_squared_errors_or_two_classes_it_is_self_paced_learning(rate: float) -> None:
    spl = SelfPaced(noise_rate=rate, num_gradual=1)
    for task, outputs in ((Regression(2), 2), (Classification(2), 2)):
        m, nets = made("prl-l", task, lambda o=outputs: mlp(o), noise_rate=rate)
        spl.setup(task, N, nets[0])
        b = batch(TASKS["values"])
        b = b if task.kind == "regression" else b._replace(target=torch.arange(N) % 2)
        one, two = m.loss(nets, b, at()), spl.loss(nets, b, at())
        assert torch.equal(one.trust[0], two.trust)  # type: ignore[index]
        torch.testing.assert_close(one.value, two.value)


def test_with_more_classes_it_is_not() -> None:
    """p_y = 0.38 against one rival has a smaller loss, p_y = 0.36 against many a smaller gradient."""
    z = np.log([[0.38, 0.60, 0.01, 0.01], [0.36, 0.22, 0.21, 0.21]])
    _, got, _ = logits(Classification(4), z, [0, 0], noise_rate=0.5)
    each = cross_entropy(z, one_hot(np.zeros(2, dtype=np.int64), 4))
    assert each[0] < each[1], "small-loss selection keeps the first"
    assert picked(got.trust) == [1]  # type: ignore[arg-type]


def test_repeated_rows_go_to_the_earlier() -> None:
    z, y = np.tile([[0.0, 2.0]], (6, 1)), np.tile([[0.0, 0.0]], (6, 1)).astype(np.float32)
    z[2] = 9.0
    _, got, _ = logits(Regression(2), z, y, noise_rate=0.5)
    assert picked(got.trust) == [0, 1, 3]  # type: ignore[arg-type]


def test_of_two_targets_the_norm_counts() -> None:
    """(3, 3) is longer than (4, 0), though no coordinate of it is."""
    _, got, _ = logits(Regression(2), [[3.0, 3.0], [4.0, 0.0]], np.zeros((2, 2), np.float32), noise_rate=0.5)
    assert picked(got.trust) == [1]  # type: ignore[arg-type]
    assert float(got.value) == 8


@pytest.mark.parametrize("name", PRL)
def test_losses_that_are_no_numbers_are_dropped_first(name: str) -> None:
    m, nets = made(name, TASKS["values"], noise_rate=0.2)
    b = batch(TASKS["values"])
    for i, bad in enumerate((torch.nan, torch.inf, -torch.inf, 1e30)):
        b.target[3 * i + 1, i % 2] = bad
    got = m.loss(nets, b, at())
    assert [picked(w) for w in got.trust] == [[i for i in range(N) if i not in (1, 4, 7, 10)]] * len(nets)  # type: ignore[union-attr]
    assert torch.isfinite(got.value)


def test_whatever_the_target_a_row_that_is_dropped_has_no_say() -> None:
    for name in PRL:
        m, nets = made(name, TASKS["values"], noise_rate=0.25)
        found = []
        for factor in (1e3, 1e6, 1e15):
            b = batch(TASKS["values"])
            b.target[::4] = factor
            nets.zero_grad()
            m.loss(nets, b, at()).value.backward()
            found.append([p.grad.clone() for p in nets.parameters()])  # type: ignore[union-attr]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
        torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


def normed() -> nn.Module:
    """BatchNorm that sees the inputs themselves."""
    return nn.Sequential(nn.BatchNorm1d(F), nn.Linear(F, C))


@pytest.mark.parametrize("mixup", [0.0, 2.0])
@pytest.mark.parametrize("name", ["prl-l", "co-prl-l"])
@pytest.mark.parametrize("features", [False, True])
def test_statistics_move_once_in_a_step(name: str, mixup: float, features: bool) -> None:
    m, nets = made(name, TASKS["classes"], normed, noise_rate=0.5, mixup=mixup, features=features)
    b = batch(TASKS["classes"])
    got = m.loss(nets.train(), b, at())
    for net, w in zip(nets, got.trust, strict=True):  # type: ignore[arg-type]
        rows = b.x[w.bool()] if mixup else b.x
        assert int(net[0].num_batches_tracked) == 1
        torch.testing.assert_close(net[0].running_mean, 0.1 * rows.mean(0))
    if not mixup:
        return
    for net, out in zip(nets, got.out, strict=True):  # type: ignore[arg-type]
        norm = net[0]  # scored as in training: normalised by the whole batch
        plain = nn.functional.batch_norm(b.x, None, None, norm.weight, norm.bias, training=True)
        torch.testing.assert_close(out, net[1](plain))


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", PRL)
def test_mixup_is_among_the_rows_kept(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS[kind]
    m, nets = made(name, task, noise_rate=0.75, mixup=1.0)
    b, perm, asked = batch(task), torch.tensor([2, 0, 1, 4, 3]), []

    def draw(alpha: float, like: Tensor, rng: Any) -> Mixup:
        asked.append((alpha, len(like)))
        return Mixup(0.7, perm)

    monkeypatch.setattr(Mixup, "draw", draw)
    got = m.loss(nets, b, at())
    assert asked == [(1.0, 5)]
    norms = loss_norms if name.endswith("l") else full_norms
    want = 0.0
    for net, other in zip(nets, list(nets)[::-1], strict=True):
        s = np.asarray(norms(other, b, task))
        rows = np.argsort(s, kind="stable")[:5]
        x = 0.7 * b.x.numpy()[rows] + 0.3 * b.x.numpy()[rows[perm]]
        y = one_hot(b.target.numpy(), C) if kind == "classes" else b.target.numpy()
        q = 0.7 * y[rows] + 0.3 * y[rows[perm]]
        z = net(torch.from_numpy(x)).detach().double().numpy()
        want += (cross_entropy(z, q) if kind == "classes" else 0.5 * ((z - q) ** 2).sum(1)).mean()
    assert float(got.value) == pytest.approx(want, rel=1e-5)
    assert [len(picked(w)) for w in got.trust] == [5] * len(nets)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PRL)
def test_two_rows_are_enough_to_mix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], Mixup.draw
    monkeypatch.setattr(Mixup, "draw", lambda *words: (asked.append(len(words[1])), plain(*words))[1])
    for n in (3, 4, 6):  # 1, 2 and 3 are kept
        m, nets = made(name, TASKS["classes"], noise_rate=0.5, mixup=1.0)
        m.loss(nets, batch(TASKS["classes"], n), at())
    assert asked == [2, 3]


@pytest.mark.parametrize("name", PRL)
def test_rows_that_are_dropped_do_not_come_in_by_mixup(name: str) -> None:
    """Inputs that are no numbers score last; one of them in the second pass would spoil all of it."""
    m, nets = made(name, TASKS["classes"], noise_rate=0.25, mixup=1.0)
    b = batch(TASKS["classes"])
    b.x[::4] = torch.nan
    got = m.loss(nets, b, at())
    got.value.backward()
    assert torch.isfinite(got.value)
    assert all(torch.isfinite(p.grad).all() for p in nets.parameters())  # type: ignore[arg-type]
    assert [picked(w) for w in got.trust] == [[i for i in range(N) if i % 4]] * len(nets)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["prl-g", "co-prl-g"])
def test_inputs_that_are_no_numbers_do_not_come_through_prl_g(name: str) -> None:
    m, nets = made(name, TASKS["classes"], noise_rate=0.25)
    b = batch(TASKS["classes"])
    b.x[::4] = torch.nan
    m.loss(nets, b, at()).value.backward()
    assert all(torch.isfinite(p.grad).all() for p in nets.parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRL)
def test_chance_is_the_clocks(name: str) -> None:
    m, nets = made(name, TASKS["classes"], mixup=1.0)
    b, before = batch(TASKS["classes"]), torch.get_rng_state()
    values = [float(m.loss(nets, b, at(seed=seed)).value) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before)
    plain, _ = made(name, TASKS["classes"])
    clock = at(seed=3)
    plain.loss(nets, b, clock)
    assert torch.equal(clock.rng.get_state(), at(seed=3).rng.get_state()), "without mixup nothing is drawn"


def test_prl_g_trains_on_the_kept_rows_in_one_pass_of_their_own() -> None:
    sizes: list[tuple[int, bool]] = []
    m, nets = made("prl-g", TASKS["classes"], noise_rate=0.75)
    nets[0].register_forward_hook(lambda net, x, out: sizes.append((len(out), torch.is_grad_enabled())))
    m.loss(nets, batch(TASKS["classes"]), at())
    assert [n for n, trained in sizes if trained] == [20, 5]
    assert all(n <= 2 for n, trained in sizes if not trained), "a look at the shapes"
    sizes.clear()
    m, _ = made("prl-l", TASKS["classes"], noise_rate=0.75)
    m.loss(nets, batch(TASKS["classes"]), at())
    assert sizes == [(20, True)]


def test_a_batch_too_small_is_told_once() -> None:
    data = blobs(64)
    with pytest.warns(UserWarning, match="less than one sample") as said:
        fit(METHODS["prl-l"](noise_rate=0.875), factory(data), data, settings(epochs=2, batch_size=4))
    texts = [str(w.message) for w in said if "batch_size=" in str(w.message)]
    assert texts == [
        "a share of 0.125 of a batch of 4 is less than one sample, and one is always kept: fewer are dropped than "
        "noise_rate says; give batch_size=8 or more"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m, nets = made("prl-l", TASKS["classes"], noise_rate=0.875)
        m.loss(nets, batch(TASKS["classes"], 8), at(0))
        m.loss(nets, batch(TASKS["classes"], 4), at(0, step=1))
        m.loss(nets, batch(TASKS["classes"], 4), at(1))


@pytest.mark.parametrize(("rate", "size"), [(0.9, 10), (0.8, 5)])
def test_the_batch_size_named_is_the_smallest_that_will_do(rate: float, size: int) -> None:
    m, nets = made("prl-l", TASKS["classes"], noise_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.loss(nets, batch(TASKS["classes"], size), at(0))
    with pytest.warns(UserWarning, match=f"batch_size={size} or more"):
        m.loss(nets, batch(TASKS["classes"], 3), at(0))


def test_an_overestimate_that_leaves_nothing_is_told() -> None:
    m, nets = made("prl-l", TASKS["classes"], noise_rate=0.8, overestimate=0.25)
    with pytest.warns(UserWarning, match="one is always kept"):
        m.loss(nets, batch(TASKS["classes"]), at(0))


@pytest.mark.parametrize("name", PRL)
def test_auto_is_for_run(name: str) -> None:
    m, nets = made(name, TASKS["classes"], noise_rate="auto")
    with pytest.raises(ValueError, match=r"noise_rate='auto' is estimated by Method\.run"):
        m.loss(nets, batch(TASKS["classes"]), at())
    data = blobs(90, flips=0.2)
    found = fit(METHODS[name](noise_rate="auto", num_gradual=1), factory(data), data, settings(epochs=2))
    assert 0 <= found.method.noise_rate < 1


BAD = {
    "noise_rate": [(1.0, r"noise_rate=1\.0 must lie in \[0, 1\)"), (-0.1, "noise_rate=-0.1"), ("half", "or 'auto'")],
    "overestimate": [(-0.5, r"overestimate=-0\.5 must lie in \[0, inf\)"), (float("inf"), "overestimate=inf")],
    "num_gradual": [(0, r"num_gradual=0 must lie in \[1, inf\)")],
    "mixup": [(-1.0, r"mixup=-1\.0 must lie in \[0, inf\)"), (float("nan"), "mixup=nan")],
}


@pytest.mark.parametrize("name", PRL)
@pytest.mark.parametrize("argument", BAD)
def test_bad_values_are_named(name: str, argument: str) -> None:
    for value, text in BAD[argument]:
        with pytest.raises(ValueError, match=text):
            METHODS[name](**{argument: value})


def test_a_network_without_a_last_layer_is_told() -> None:
    m, nets = made("prl-l", TASKS["classes"], lambda: nn.Sequential(nn.Bilinear(1, 1, 1)), features=True)
    with pytest.raises(ValueError, match="Sequential has no Linear layer"):
        m.loss(nets, batch(TASKS["classes"]), at())
