"""What every registered method must do. A new method joins by being registered."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.state import SampleTable
from labelproof.core.task import Classification, Regression
from labelproof.core.types import Batch, Clock, Loss
from labelproof.data.seeds import generator
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.methods import METHODS
from tests.toy import blobs, eager, factory, line, mlp, problem, same, settings, streams

#: What the others are compared with; they promise no robustness themselves.
BASELINES = {"ce", "mse"}
#: Hyper-parameters for 40 % noise on the toy problem, where the paper's are for less.
OPTIONS: dict[str, dict[str, Any]] = {
    "bootstrap": {"beta": 0.5},
    "cauchy": {"c": 0.5},
    "huber": {"delta": 0.5},
    "mentornet": {"noise_rate": 0.4},
    "mw-net": {"lr_weights": 0.01, "reduction": "normalised"},
    "simclr": {"q": 0.7, "length": 0.5},
}
#: Mixup pairs rows by position: batches that should be the same in another order, or twice, are compared without it.
UNMIXED: dict[str, dict[str, Any]] = {"dividemix": {"alpha": 0.0}, "elr+": {"mixup": 0.0}}
NAMES = sorted(METHODS)
TESTS = Path(__file__).resolve().parents[1]


def clock(epoch: int = 5, step: int = 0) -> Clock:
    return Clock(epoch, 10, step, 4, generator(0, "test", epoch, step))


def set_up(name: str, net: Any = None, n: int = 97, classes: int = 3, **options: Any) -> tuple[Method, Nets, Batch]:
    """A method, its networks and a batch of 32 rows of a problem of `n`."""
    method = eager(name, **options)
    classification = "classification" in method.tasks
    data = blobs(n, classes) if classification else line(n)
    outputs = classes if classification else 1
    torch.manual_seed(0)
    make = net or (lambda: mlp(data.x.shape[1], outputs))
    nets = Nets([make() for _ in range(method.peers)], twins=method.twins)
    method.setup(Classification(classes) if classification else Regression(1), n, nets[0])
    if isinstance(getattr(method, "doubt", None), SampleTable):  # DivideMix: as after a division
        method.doubt.write(torch.arange(n), (torch.arange(n) % 97 % 2).float()[:, None].expand(n, 2))
    rows = np.random.default_rng(3).permutation(n)[:32]
    x, y = torch.from_numpy(data.x[rows]), torch.from_numpy(data.y[rows])
    further = streams(METHODS[name], classes)
    side = {s: Batch(torch.arange(len(d)), (torch.from_numpy(d.x),), torch.from_numpy(d.y)) for s, d in further.items()}
    others = np.setdiff1d(np.arange(n), rows)[:12]  # of the same data set
    x2, y2 = torch.from_numpy(data.x[others]), torch.from_numpy(data.y[others])
    side |= {s: Batch(torch.from_numpy(others), (x2,), y2) for s in method.own_streams}
    return method, nets, Batch(torch.from_numpy(rows), (x,) * len(method.views), y, side)


def gradient(nets: Nets, loss: Loss) -> list[torch.Tensor]:
    nets.zero_grad()
    loss.value.backward()
    return [p.grad.clone() for p in nets.peers.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert method.title
    assert method.paper
    assert method.cost
    assert method.__doc__
    fields = set(Settings.__dataclass_fields__)
    assert not fields & set(method.param_names()), "a flag of the method hides one of training"
    assert method().get_params() == {k: getattr(method(), k) for k in method.param_names()}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_finite_and_reach_every_network(name: str) -> None:
    method, nets, batch = set_up(name)
    for epoch in (0, 5, 9):
        loss = method.loss(nets, batch, clock(epoch))
        assert loss.value.ndim == 0
        assert torch.isfinite(loss.value)
        for peer in nets:
            nets.zero_grad()
            method.loss(nets, batch, clock(epoch)).value.backward()
            norms = [p.grad.norm() for p in peer.parameters()]
            assert all(torch.isfinite(n) for n in norms)
            assert sum(norms) > 0
        if loss.trust is not None:
            assert loss.trust.shape in {(32,), (method.peers, 32)}
            assert bool(((loss.trust >= 0) & (loss.trust <= 1)).all())
        if loss.out is not None:
            assert loss.out.shape[-2:] == (32, method.task.num_outputs)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    perm = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    results = []
    for order in (torch.arange(32), perm):
        method, nets, batch = set_up(name, **UNMIXED.get(name, {}))
        views = tuple(v[order] for v in batch.views)
        b = batch._replace(index=batch.index[order], views=views, target=batch.target[order])
        results.append(gradient(nets, method.loss(nets, b, clock())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loss_scale_does_not_depend_on_the_number_of_rows(name: str) -> None:
    """The batch written twice has the loss and gradient of the batch: nothing is divided twice, nothing summed."""
    results = []
    for times in (1, 2):
        method, nets, b = set_up(name, n=194, **UNMIXED.get(name, {}))
        index = torch.cat([b.index % 97 + 97 * k for k in range(times)])  # other samples, so tables start alike
        views, target = tuple(v.repeat(times, 1) for v in b.views), b.target.repeat(times, *[1] * (b.target.ndim - 1))
        side = {name: other if times == 1 else other.joined(other) for name, other in b.side.items()}
        twice = b._replace(index=index, views=views, target=target, side=side)
        loss = method.loss(nets, twice, clock())
        results.append([loss.value.detach(), *gradient(nets, loss)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_tiny_batches_are_safe(name: str, rows: int) -> None:
    method, nets, b = set_up(name)
    small = b._replace(index=b.index[:rows], views=tuple(v[:rows] for v in b.views), target=b.target[:rows])
    loss = method.loss(nets, small, clock(9))
    assert all(torch.isfinite(g).all() for g in gradient(nets, loss))


@pytest.mark.parametrize("name", NAMES)
def test_batchnorm_statistics_move_once_per_step(name: str) -> None:
    method = METHODS[name]
    if "batchnorm" in method.forbids:
        pytest.skip("refuses BatchNorm")
    outputs = 3 if "classification" in method.tasks else 1

    def net() -> nn.Module:
        width = 8 if "classification" in method.tasks else 6
        return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, outputs))

    method, nets, batch = set_up(name, net)
    nets.train()
    method.loss(nets, batch, clock())
    assert [int(p[1].num_batches_tracked) for p in nets] == [1] * len(nets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite(name: str, dtype: torch.dtype) -> None:
    method, nets, batch = set_up(name)
    for p in nets.parameters():
        p.data *= 20  # confident outputs: probabilities of 0 and 1 in half precision
    for epoch in (0, 9, 9):
        with torch.autocast("cpu", dtype=dtype):
            loss = method.loss(nets, batch, clock(epoch))
        assert loss.value.dtype == torch.float32
        assert torch.isfinite(loss.value)
        assert all(torch.isfinite(g).all() for g in gradient(nets, loss))


@pytest.mark.parametrize("name", NAMES)
def test_ragged_last_batch(name: str) -> None:
    data = problem(METHODS[name], 97)
    test, how = problem(METHODS[name], 60, seed=9), settings(batch_size=32)
    result = fit(eager(name), factory(data), data, how, test=test, streams=streams(METHODS[name]))
    assert len(result.history) == 3
    assert all(np.isfinite(v) for row in result.history for v in row.values())
    visits = np.zeros(97)
    visits[result.rows] = 3.0
    assert result.evidence.visits.tolist() == visits.tolist(), "every sample is visited once per epoch"
    assert len(result.rows) == 97 or METHODS[name].own_streams, "and all are"
    assert np.isfinite(result.belief()).all()


@pytest.mark.parametrize("name", [n for n in NAMES if "classification" in METHODS[n].tasks])
def test_two_unbalanced_classes(name: str) -> None:
    data = blobs(97, 2)
    rare = np.flatnonzero(data.y == 1)[:5]
    data = data.take(np.sort(np.concatenate([np.flatnonzero(data.y == 0), rare])))
    result = fit(eager(name), factory(data), data, settings(), streams=streams(METHODS[name], 2))
    assert np.isfinite(result.belief()).all()
    assert np.isfinite(result.predict(data.x)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_method_given_is_left_as_it_was(name: str) -> None:
    method, data = eager(name), problem(METHODS[name])
    before = repr(method), set(dir(method))
    fit(method, factory(data), data, settings(epochs=1), streams=streams(METHODS[name]))
    assert (repr(method), set(dir(method))) == before


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_ends_bit_identical(name: str, tmp_path: Path) -> None:
    """A real process, really killed, inside an epoch; then resumed here and compared with a run left alone."""
    data = problem(METHODS[name])
    how = settings(epochs=6, batch_size=16, checkpoint_every=2, validation_fraction=0.2)
    side = streams(METHODS[name])
    whole = fit(eager(name), factory(data, dropout=0.2), data, how, folder=tmp_path / "whole", streams=side)
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "contract" / "victim.py"), name, str(tmp_path / "killed")]
    victim = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    steps = 0
    for line_ in victim.stdout:
        steps += line_.strip() == "step"
        if steps == 8:  # in the second epoch of 5 steps
            break
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "done").exists()
    again = fit(
        eager(name), factory(data, dropout=0.2), data, how, folder=tmp_path / "killed", resume=True, streams=side
    )
    assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))
    assert same(dict(whole.method.state_dict()), dict(again.method.state_dict()))
    assert same(dict(whole.evidence.state_dict()), dict(again.evidence.state_dict()))
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in again.history]


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].optional])
def test_makes_do_without_what_is_optional(name: str) -> None:
    data = problem(METHODS[name], 400, noise=0.2)
    given = streams(METHODS[name])
    required = {k: v for k, v in given.items() if k not in METHODS[name].optional}
    assert required.keys() != given.keys()
    alone, beside = (fit(eager(name), factory(data), data, settings(), streams=s) for s in (required, given))
    for result in (alone, beside):
        assert np.isfinite(result.belief()).all()
        assert all(np.isfinite(v) for row in result.history for v in row.values())
    assert not np.array_equal(alone.predict(data.x), beside.predict(data.x))


#: Ways of training that a method may forbid, as settings.
WAYS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 2},
    "devices": {"devices": 2},
    "16-mixed": {"precision": "16-mixed"},
    "compile": {"compile": True},
}


@pytest.mark.parametrize(("name", "way"), [(n, w) for n in NAMES for w in WAYS if w in METHODS[n].forbids])
def test_what_it_forbids_is_refused_before_training(name: str, way: str, tmp_path: Path) -> None:
    data = problem(METHODS[name])
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} cannot be trained with .*{way}"):
        fit(eager(name), factory(data), data, settings(**WAYS[way]), folder=tmp_path, streams=streams(METHODS[name]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in NAMES if "accumulate" not in METHODS[n].forbids])
def test_gradients_are_accumulated(name: str) -> None:
    """A step for every two batches: half as many changes of the first network, and everything stays finite."""
    moved = []

    class Counted(METHODS[name]):  # type: ignore[misc]
        def after_step(self, nets: Any, batch: Any, now: Any) -> None:
            moved.append(nets[0].state_dict()["1.weight"].clone())
            super().after_step(nets, batch, now)

    Counted.__name__ = METHODS[name].__name__
    data = problem(METHODS[name], 128)
    how = settings(epochs=1, batch_size=16, accumulate=2)
    known = {"transition": (np.eye(3) * 0.4 + 0.2).tolist()}  # else two trainings would be counted
    known = {k: v for k, v in known.items() if k in METHODS[name].param_names()}
    r = fit(Counted(**{**eager(name).get_params(), **known}), factory(data), data, how, streams=streams(METHODS[name]))
    assert len(moved) == math.ceil(math.ceil(len(r.rows) / 16) / 2)
    assert all(torch.isfinite(w).all() for w in moved)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in BASELINES])
def test_beats_the_baseline_under_noise(name: str) -> None:
    """40 % wrong labels, a network that memorises: last epoch against cross-entropy (or least squares) alike."""
    kind = METHODS[name]
    classification = "classification" in kind.tasks
    scores: dict[str, list[float]] = {"base": [], "method": []}
    for seed in range(3):
        data, test = problem(kind, 400, noise=0.4, seed=seed), problem(kind, 600, seed=seed + 50)
        known = {"noise_rate": 0.4, "transition": (np.eye(3) * 0.4 + 0.2).tolist(), **OPTIONS.get(name, {})}
        options = {k: v for k, v in known.items() if k in kind.param_names()}
        for which, method in (("base", METHODS["ce" if classification else "mse"]()), ("method", kind(**options))):
            how = settings(epochs=60, batch_size=64, lr=0.1, seed=seed, weight_decay=0.0)
            side = streams(type(method))
            last = fit(method, factory(data, 256), data, how, test=test, streams=side).history[-1]
            scores[which].append(last["test_accuracy"] if classification else -last["test_rmse"])
    gain = np.mean(scores["method"]) - np.mean(scores["base"])
    assert gain > (0.08 if classification else 1.0), scores


def test_test_labels_decide_nothing() -> None:
    """Garbage test labels, the same model: for every method, with early stopping, whose choice could peek."""
    for name in NAMES:
        data, test = problem(METHODS[name], 120, noise=0.2), problem(METHODS[name], 60, seed=4)
        garbage = test.relabelled(np.random.default_rng(0).permutation(test.y))
        how = settings(epochs=8, early_stopping=True, patience=2)
        side = streams(METHODS[name])
        a, b = (fit(eager(name), factory(data), data, how, test=t, streams=side) for t in (test, garbage))
        assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict()))
        assert len(a.history) == len(b.history)
