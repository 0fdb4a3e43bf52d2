"""Meta-Weight-Net: its step against finite differences, the order of its parts, memory, resuming, what it is for."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock, Loss
from labelproof.data import noise
from labelproof.data.dataset import Data
from labelproof.engine.stages import Stages, fit
from labelproof.engine.training import Training
from labelproof.methods import MWNet
from labelproof.networks import build
from labelproof.procedures.meta_set import balanced_rows
from tests.procedures.stub import Stub
from tests.toy import blobs, factory, same, settings

B, M, K = 9, 7, 3
TESTS = Path(__file__).resolve().parents[1]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, K))


def batch(seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def some(n: int) -> Batch:
        return Batch(torch.arange(n), (torch.randn(n, 4, generator=g),), torch.randint(0, K, (n,), generator=g))

    return some(B)._replace(side={"clean": some(M)})


class Recorded:
    """A run of plain SGD that notes what it is asked for, and what was in place then."""

    def __init__(self, method: MWNet, lr: float = 0.2) -> None:
        self.method, self.nets, self.lr = method, Nets([network()]).train(), lr
        method.setup(Classification(K), B, self.nets[0])
        self.now = Clock(0, 1, 0, 1, torch.Generator())
        self.calls: list[str] = []
        self.gradients: dict[str, list[Tensor]] = {}

    def forward(self, batch: Batch) -> Loss:
        self.calls.append("forward")
        return self.method.loss(self.nets, batch, self.now)

    def backward(self, value: Tensor) -> None:
        self.calls.append("backward")
        value.backward()

    def step(self, *names: str) -> None:
        self.calls.append(f"step {' '.join(names)}")
        (name,) = names
        module: nn.Module = {"weights": self.method.weigher, "nets": self.nets}[name]
        other: nn.Module = {"nets": self.method.weigher, "weights": self.nets}[name]
        assert all(p.grad is None for p in other.parameters()), "each part has a gradient of its own"
        self.gradients[name] = [p.grad.clone() for p in module.parameters()]  # type: ignore[union-attr]
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(0.5 * p.grad)  # type: ignore[operator]
                p.grad = None


def weights(phi: list[np.ndarray], each: Tensor) -> Tensor:
    """V written out: 1 -> 100 -> 1."""
    w1, b1, w2, b2 = (torch.from_numpy(p) for p in phi)
    hidden = torch.clamp(each[:, None] * w1[:, 0] + b1, min=0)
    return 1 / (1 + torch.exp(-(hidden @ w2[0] + b2)))


def share(v: Tensor, reduction: str) -> Tensor:
    return {"mean": v / len(v), "sum": v, "normalised": v / v.sum()}[reduction]


def after(net: nn.Module, b: Batch, phi: list[np.ndarray], how: dict[str, Any], alpha: float) -> float:
    """The meta loss after the virtual step, in float64, all of it by plain autograd."""
    net = type(net)(*net)  # the same layers
    params = list(net[3].parameters() if how["last_layer"] else net.parameters())
    clean, before = b.side["clean"], [p.detach().clone() for p in params]
    each = F.cross_entropy(net(b.x.double()), b.target, reduction="none")
    down = torch.autograd.grad((share(weights(phi, each.detach()), how["reduction"]) * each).sum(), params)
    with torch.no_grad():
        for p, d in zip(params, down, strict=True):
            p.sub_(alpha * d)
        log_p = net(clean.x.double()).log_softmax(1)[torch.arange(M), clean.target]
        found = -log_p.mean() if how["meta_loss"] == "ce" else (2 * (1 - log_p.exp())).mean()
        for p, kept in zip(params, before, strict=True):
            p.copy_(kept)
    return float(found)


@pytest.mark.parametrize("meta_loss", ["ce", "mae"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "normalised"])
@pytest.mark.parametrize("last_layer", [True, False])
@pytest.mark.parametrize("inner_lr", [None, 0.05])
def test_the_step_is_the_papers(inner_lr: float | None, last_layer: bool, reduction: Any, meta_loss: Any) -> None:
    """V's gradient by moving each of its parameters (a sixth of them) and taking the virtual step again."""
    how = {"last_layer": last_layer, "reduction": reduction, "meta_loss": meta_loss}
    run, b = Recorded(MWNet(inner_lr=inner_lr, **how)), batch()
    alpha = 0.2 if inner_lr is None else inner_lr
    double = network().double().train()
    double[1].track_running_stats, double[1].running_mean, double[1].running_var = False, None, None
    phi = [p.detach().double().numpy() for p in run.method.weigher.parameters()]
    phi = [p.copy() for p in phi]
    got = run.method.update(run, b)
    assert run.calls == ["forward", "backward", "step weights", "backward", "step nets"]
    assert got.log["meta_loss"].item() == pytest.approx(after(double, b, phi, how, alpha), rel=1e-5)

    h, largest = 1e-4, 0.0
    for k, gradient in enumerate(run.gradients["weights"]):
        for index in list(np.ndindex(tuple(gradient.shape)))[::6]:
            ends = []
            for sign in (1, -1):
                moved = [p.copy() for p in phi]
                moved[k][index] += sign * h
                ends.append(after(double, b, moved, how, alpha))
            want = (ends[0] - ends[1]) / (2 * h)
            largest = max(largest, abs(want))
            assert gradient[index].item() == pytest.approx(want, rel=2e-3, abs=2e-7)
    assert largest > 1e-5

    each = F.cross_entropy(double(b.x.double()), b.target, reduction="none")
    updated = [p.detach().double().numpy() for p in run.method.weigher.parameters()]  # the real step: V has moved
    w = weights(updated, each.detach())
    assert (w - weights(phi, each.detach())).abs().max() > 1e-7
    torch.testing.assert_close(got.trust.double(), w, atol=1e-6, rtol=0)  # type: ignore[union-attr]
    value = (share(w, reduction) * each).sum()
    assert got.value.item() == pytest.approx(value.item(), rel=1e-5)
    for a, want in zip(run.gradients["nets"], torch.autograd.grad(value, list(double.parameters())), strict=True):
        torch.testing.assert_close(a.double(), want, atol=1e-6, rtol=1e-4)
    assert got.log["weight"].item() == pytest.approx(w.mean().item(), rel=1e-5)


@pytest.mark.parametrize("last_layer", [True, False])
def test_statistics_move_once_and_the_virtual_step_leaves_no_trace(last_layer: bool) -> None:
    run, b, alone = Recorded(MWNet(last_layer=last_layer)), batch(), network().train()
    alone(b.x)
    before = [p.detach().clone() for p in run.nets.parameters()]
    loss = run.forward(b)
    assert int(run.nets[0][1].num_batches_tracked) == 1
    torch.testing.assert_close(run.nets[0][1].running_mean, alone[1].running_mean)
    torch.testing.assert_close(run.nets[0][1].running_var, alone[1].running_var)
    assert all(torch.equal(a, p) for a, p in zip(before, run.nets.parameters(), strict=True))
    loss.value.backward()  # called on its own: the real step's gradient and the meta step's, in one
    both = [p.grad.clone() for p in run.method.weigher.parameters()]
    again = Recorded(MWNet(last_layer=last_layer))
    again.method.weigher.load_state_dict(run.method.weigher.state_dict())
    again.forward(b).log["meta_loss"].backward()
    assert all(p.grad is None for p in again.nets.parameters())
    assert same(both, [p.grad for p in again.method.weigher.parameters()])


def test_v_has_301_parameters_and_an_optimiser_without_schedule() -> None:
    run = Recorded(MWNet(lr_weights=0.03))
    assert sum(p.numel() for p in run.method.parameters()) == 301
    made = run.method.optimizers(run.nets, lambda params: torch.optim.SGD(params, 0.1))
    assert list(made) == ["nets", "weights"]
    (group,) = made["weights"].param_groups
    assert (type(made["weights"]), group["lr"], group["weight_decay"]) == (torch.optim.Adam, 0.03, 1e-4)
    assert "initial_lr" not in group


def test_the_inner_rate_follows_the_schedule_unless_it_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    plain = Training.run_batch

    def watch(self: Training, *args: Any) -> Loss:
        loss = plain(self, *args)
        seen.append((self.method.alpha, self.optimizers["nets"].param_groups[0]["lr"]))  # type: ignore[arg-type]
        return loss

    monkeypatch.setattr(Training, "run_batch", watch)
    data = blobs(64)
    how = settings(epochs=4, schedule="cosine")
    for inner in (None, 0.1):
        seen.clear()
        fit(MWNet(inner_lr=inner), factory(data), data, how, streams={"clean": blobs(24, seed=7)})
        assert len({b for _, b in seen}) > 2
        assert all(a == (b if inner is None else 0.1) for a, b in seen)


def live_bytes() -> int:
    """Of all tensors that Python knows of, each storage once."""
    tensors = [o for o in gc.get_objects() if type(o) in {Tensor, nn.Parameter}]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("last_layer", [True, False])
def test_memory_is_flat_over_500_steps(last_layer: bool) -> None:
    """No tensor and no graph is kept from step to step: a step of this problem makes 30 kB of graph and more."""
    run, b = Recorded(MWNet(last_layer=last_layer)), batch()
    gc.collect()
    gc.disable()  # a cycle would wait for the collector, and show
    try:
        held = []
        for step in range(500):
            run.calls.clear()
            run.method.update(run, b)
            if step in {49, 499}:
                held.append((live_bytes(), pages()))
    finally:
        gc.enable()
    assert held[1][0] == held[0][0]
    assert held[1][1] - held[0][1] < 2**22


def pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def digits() -> tuple[Data, Data, Data]:
    x, y = load_digits(return_X_y=True)
    x, y = x.astype(np.float32), y.astype(np.int64)
    labels = noise.inject(y[:1000], "symmetric", 0.4, num_classes=10, seed=0).labels
    given, verified, test = (slice(0, 1000), slice(1000, 1200), slice(1200, None))
    return (
        Data(x[given], np.asarray(labels), classes=np.arange(10), truth=y[given]),
        Data(x[verified], y[verified], classes=np.arange(10)),
        Data(x[test], y[test], classes=np.arange(10)),
    )


@pytest.mark.parametrize("last_layer", [True, False])
def test_wrong_labels_weigh_less(last_layer: bool) -> None:
    data, verified, _ = digits()
    method = MWNet(last_layer=last_layer, reduction="normalised", lr_weights=0.01)
    how = settings(epochs=15, batch_size=64, lr=0.02)
    fitted = fit(method, lambda k: build("mlp", (64,), 10), data, how, streams={"clean": verified})
    assert not fitted.notes
    with torch.no_grad():
        p = torch.from_numpy(fitted.predict(data.x)).clamp(min=1e-30)
        w = fitted.method.weigh(-p.log()[torch.arange(1000), torch.from_numpy(data.y)].float()).numpy()
    wrong = data.y != data.truth
    assert w[wrong].mean() < 0.6 * w[~wrong].mean(), (w[wrong].mean(), w[~wrong].mean())


def test_without_verified_samples_it_says_so() -> None:
    data, _, _ = digits()
    fitted = fit(MWNet(), lambda k: build("mlp", (64,), 10), data, settings(epochs=1))
    (note,) = fitted.notes
    assert "meta set: 100 of the training samples" in note
    assert "which nobody has verified" in note
    assert fitted.figures == {"meta_samples": 100}
    assert len(fitted.rows) == 900


def test_the_meta_set_is_balanced_and_not_trained_on() -> None:
    label = np.repeat([0, 1, 2], [500, 60, 5])
    data = Data(np.arange(565, dtype=np.float32)[:, None], label, classes=np.array(["a", "b", "c"]))
    rows = np.arange(0, 564)
    seen: dict[str, Data] = {}

    class Only(Stub):
        def __call__(self, method: Any, data: Any, /, *, streams: Any = None, **changes: Any) -> Any:
            seen.update(train=data, **(streams or {}))
            return super().__call__(method, data, **changes)

    stub = Only(lambda rows, number: rows)
    MWNet(meta_size=30).run(stub, data.only(rows))
    meta = seen["clean"].x[:, 0].astype(int)
    assert np.bincount(seen["clean"].y).tolist() == [10, 10, 2]
    assert sorted([*meta, *seen["train"].trained]) == rows.tolist()
    assert len(stub.lines) == 1
    assert np.bincount(label[balanced_rows(label, 56, seed=1)]).tolist() == [18, 18, 2]
    assert not np.array_equal(balanced_rows(label, 56, seed=1), balanced_rows(label, 56, seed=2))
    MWNet(meta_size=1000).run(stub, data)
    assert np.bincount(seen["clean"].y).tolist() == [18, 18, 2], "at most a tenth"


def test_refusals() -> None:
    data = blobs(64)
    for changes, said in (
        ({"precision": "16-mixed"}, "precision='16-mixed': use 'bf16-mixed'"),
        ({"accumulate": 2}, "accumulate=2: give a larger batch_size instead"),
        ({"devices": 2}, "devices=2: train it on one device"),
    ):
        with pytest.raises(ValueError, match=f"mw-net cannot be trained with {said}"):
            fit(MWNet(), factory(data), data, settings(**changes))
    two = blobs(60).take(np.flatnonzero(blobs(60).y < 2))
    with pytest.raises(ValueError, match=r"clean \(data\) has no sample of the class 2"):
        fit(MWNet(), factory(data), data, settings(), streams={"clean": two})
    lonely = data.take(np.r_[np.flatnonzero(data.y < 2), np.flatnonzero(data.y == 2)[:1]])
    with pytest.raises(ValueError, match=r"class 2 has one training sample, .* give verified samples \(--clean DATA"):
        fit(MWNet(), factory(data), lonely, settings())
    regression = Data(data.x, data.x[:, :1].astype(float))
    with pytest.raises(ValueError, match="method mw-net is for classification"):
        fit(MWNet(), factory(regression), regression, settings())


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="reduction='max' must be 'mean' or 'sum' or 'normalised'"):
        MWNet(reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="meta_loss='mse' must be 'ce' or 'mae'"):
        MWNet(meta_loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"inner_lr=-1 must lie in \[0, inf\]"):
        MWNet(inner_lr=-1)
    with pytest.raises(ValueError, match=r"lr_weights=0 must lie in \(0, inf\)"):
        MWNet(lr_weights=0)
    with pytest.raises(ValueError, match=r"meta_size=0 must lie in \[1, inf\)"):
        MWNet(meta_size=0)


@pytest.mark.parametrize("last_layer", [True, False])
def test_bf16(last_layer: bool) -> None:
    data = blobs(64)
    net = lambda k: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))  # noqa: E731
    how = settings(epochs=3, precision="bf16-mixed")
    history = fit(MWNet(last_layer=last_layer), net, data, how, streams={"clean": blobs(30, seed=5)}).history
    assert np.isfinite(history[-1]["loss"])
    assert history[-1]["loss"] < history[0]["loss"]


VICTIM = """
import sys, time, torch
from pathlib import Path
from labelproof.engine.training import Training
from tests.methods import test_mw_net as t
torch.set_num_threads(1)
plain = Training.run_batch
def slow(*args):
    loss = plain(*args)
    print("step", flush=True)
    time.sleep(0.02)
    return loss
Training.run_batch = slow
t.whole(Path(sys.argv[1]))
"""


def whole(folder: Path, resume: bool = False) -> Any:
    data = blobs(97, flips=0.2)
    net = lambda k: nn.Sequential(  # noqa: E731
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )
    how = settings(epochs=6, batch_size=16, checkpoint_every=2)
    side = {"clean": blobs(24, seed=77)}
    return fit(MWNet(last_layer=False), net, data, how, folder=folder, resume=resume, streams=side)


def test_whole_network_killed_and_resumed_ends_bit_identical(tmp_path: Path) -> None:
    alone = whole(tmp_path / "whole")
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", VICTIM, str(tmp_path / "killed")]
    victim = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    steps = 0
    for line in victim.stdout:
        steps += line.strip() == "step"
        if steps == 9:
            break
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    again = whole(tmp_path / "killed", resume=True)
    assert same(dict(alone.nets.state_dict()), dict(again.nets.state_dict()))
    assert same(dict(alone.method.state_dict()), dict(again.method.state_dict()))


def test_given_names_are_those_of_the_user() -> None:
    stages = Stages(factory=factory(blobs(9)), settings=settings(), stamp={}, streams={"clean": blobs(24)})
    assert stages.given == {"clean"}
