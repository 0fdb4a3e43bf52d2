"""INCV's second stage against the paper, and the whole of it on a small problem."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof import runs
from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.engine import checkpoint
from labelproof.engine.fitted import Fitted
from labelproof.engine.stages import Stages, fit
from labelproof.methods import CE, INCV
from tests.methods import incv_victim
from tests.procedures.stub import Stub, problem
from tests.toy import blobs, factory, same, settings

K = 4


def networks(seed: int = 0, *layers: nn.Module) -> Nets:
    torch.manual_seed(seed)
    return Nets([nn.Sequential(nn.Linear(5, K), *layers) for _ in range(2)])


def batch(n: int = 12, pool: int = 0, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def some(rows: int, first: int) -> Batch:
        x, y = torch.randn(rows, 5, generator=g), torch.randint(0, K, (rows,), generator=g)
        return Batch(torch.arange(first, first + rows), (x,), y)

    s = some(n, 0)
    return s._replace(side={"pool": some(pool, 100)}) if pool else s


def at(epoch: int, epochs: int = 30) -> Clock:
    return Clock(epoch, epochs, 0, 1, torch.Generator())


def method(**options: Any) -> INCV:
    m = INCV(**{"selected_noise": 0.2, "warmup": 5, **options})
    m.setup(Classification(K), 200, networks()[0])
    return m


def cross_entropy(net: nn.Module, b: Batch) -> np.ndarray:
    z = net(b.x).detach().double().numpy()
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), b.target.numpy()]


def oracle(nets: Nets, b: Batch, epoch: int, eps: float, gradual: int, warmup: int) -> tuple[float, list[list[int]]]:
    """Equations (2) to (5) in loops: the loss, and for each network the rows it is trained on."""
    rows, pool = len(b.x), b.side.get("pool")
    n = int(rows * (1 - eps * min((epoch + 1) / gradual, 1)) + 1e-6)
    both = [list(cross_entropy(net, b)) for net in nets]
    if pool is not None and epoch >= warmup:
        both = [own + list(cross_entropy(net, pool)) for own, net in zip(both, nets, strict=True)]
    small = [sorted(range(len(each)), key=lambda i: each[i])[: max(n, 1)] for each in both]
    loss = sum(np.mean([each[i] for i in chosen]) for each, chosen in zip(both, small[::-1], strict=True))
    return float(loss), small[::-1]


@pytest.mark.parametrize("epoch", [0, 1, 4, 5, 9, 29])
@pytest.mark.parametrize(("eps", "gradual"), [(0.2, 10), (0.45, 3), (0.0, 1), (0.9, 1)])
@pytest.mark.parametrize("pool", [0, 1, 6])
def test_equals_the_paper(epoch: int, eps: float, gradual: int, pool: int) -> None:
    m, nets, b = method(selected_noise=eps, num_gradual=gradual), networks(), batch(12, pool)
    want, taught = oracle(nets, b, epoch, eps, gradual, 5)
    got = m.loss(nets, b, at(epoch))
    assert float(got.value.detach()) == pytest.approx(want, rel=1e-5)
    assert got.trust is not None
    assert got.out is not None
    assert got.trust.shape == (2, 12), "evidence is of the samples of S alone"
    assert got.out.shape == (2, 12, K)
    for row, rows in zip(got.trust, taught, strict=True):
        assert set(np.flatnonzero(row.numpy())) == {i for i in rows if i < 12}
    torch.testing.assert_close(got.out, torch.stack([net(b.x) for net in nets]))


def test_the_pool_takes_places_and_adds_none() -> None:
    """n(e) is counted from the batch of S: with the pool as many rows are kept, of more."""
    nets, b = networks(), batch(20, 10)
    m = method(selected_noise=0.3, num_gradual=10, warmup=5)
    kept = []
    for epoch in (0, 4, 5, 9, 20):
        _, taught = oracle(nets, b, epoch, 0.3, 10, 5)
        m.loss(nets, b, at(epoch))
        kept.append([len(rows) for rows in taught])
    assert kept == [[19, 19], [17, 17], [16, 16], [14, 14], [14, 14]]  # of 20: 19.4, 17, 16.4, 14, 14
    _, taught = oracle(nets, b, 20, 0.3, 10, 5)
    assert any(i >= 20 for i in taught[0]), "this pool has losses small enough to count"
    got = m.loss(nets, b, at(20))
    assert [int(n) for n in got.trust.sum(1)] == [sum(i < 20 for i in rows) for rows in taught]


@pytest.mark.parametrize("epoch", [2, 8])
def test_each_network_learns_what_the_other_selected_and_nothing_else(epoch: int) -> None:
    m, nets, b = method(selected_noise=0.4, num_gradual=1), networks(), batch(16, 8)
    _, taught = oracle(nets, b, epoch, 0.4, 1, 5)
    m.loss(nets, b, at(epoch)).value.backward()
    pool = b.side["pool"]
    x, y = torch.cat([b.x, pool.x]), torch.cat([b.target, pool.target])
    assert taught[0] != taught[1]
    assert epoch < 5 or any(i >= 16 for i in taught[0] + taught[1])
    for net, rows in zip(nets, taught, strict=True):
        twin = nn.Sequential(nn.Linear(5, K))
        twin.load_state_dict(net.state_dict())
        nn.functional.cross_entropy(twin(x[rows]), y[rows]).backward()
        torch.testing.assert_close(net[0].weight.grad, twin[0].weight.grad)
        torch.testing.assert_close(net[0].bias.grad, twin[0].bias.grad)


def test_the_pool_is_not_looked_at_in_the_warmup() -> None:
    nets = networks()
    m, b = method(warmup=3), batch(12, 6)
    other = b._replace(side={"pool": batch(6, seed=9)})
    broken = b._replace(side={"pool": b.side["pool"]._replace(views=(torch.full((6, 5), torch.nan),))})
    alone = b._replace(side={})
    values = [[float(m.loss(nets, each, at(e)).value.detach()) for each in (b, other, broken, alone)] for e in (0, 2)]
    assert all(len(set(row)) == 1 for row in values)
    assert len({float(m.loss(nets, each, at(3)).value.detach()) for each in (b, other, alone)}) > 1


def test_statistics_of_batchnorm_are_those_of_the_rows_kept() -> None:
    torch.manual_seed(0)
    nets = Nets([nn.Sequential(nn.Linear(5, K), nn.BatchNorm1d(K)) for _ in range(2)])
    m, b = method(selected_noise=0.5, num_gradual=1), batch(16, 8)
    loss = m.loss(nets, b, at(9))
    pool = b.side["pool"]
    x, y = torch.cat([b.x, pool.x]), torch.cat([b.target, pool.target])
    normal = [nn.functional.batch_norm(net[0](x), None, None, training=True) for net in nets]
    each = [nn.functional.cross_entropy(z, y, reduction="none") for z in normal]
    for net, other in zip(nets, each[::-1], strict=True):
        rows = other.detach().argsort()[:8]
        assert int(net[1].num_batches_tracked) == 1
        torch.testing.assert_close(net[1].running_mean, 0.1 * net[0](x[rows]).mean(0))
    assert float(loss.value.detach()) > 0


@pytest.mark.parametrize(
    ("options", "epochs", "want"),
    [
        ({"warmup": "auto", "selected_noise": 0.1}, 200, 40),  # the paper: 40 of 200, or 80
        ({"warmup": "auto", "selected_noise": 0.2}, 200, 40),
        ({"warmup": "auto", "selected_noise": 0.308}, 200, 80),
        ({"warmup": "auto", "selected_noise": 0.64}, 200, 80),
        ({"warmup": "auto", "selected_noise": 0.64}, 7, 3),
        ({"warmup": 7, "selected_noise": 0.64}, 200, 7),
        ({"warmup": 0, "selected_noise": 0.64}, 200, 0),
    ],
)
def test_end_of_warmup(options: dict[str, Any], epochs: int, want: int) -> None:
    m = method(**options)
    assert m.end_of_warmup(epochs) == want
    nets, b = networks(), batch(12, 6)
    with_pool = [
        m.loss(nets, b, at(e, epochs)).value.item() != m.loss(nets, b._replace(side={}), at(e, epochs)).value.item()
        for e in (max(want - 1, 0), want)
    ]
    assert with_pool[1]
    assert not with_pool[0] or want == 0


def test_what_is_to_be_estimated_must_be_before_the_loss() -> None:
    m = INCV()
    m.setup(Classification(K), 12, networks()[0])
    with pytest.raises(ValueError, match=r"noise_rate='auto' is estimated by Method\.run"):
        m.loss(networks(), batch(), at(0))


@pytest.mark.parametrize(
    ("rows", "side", "want"), [(1000, 250, 32), (1000, 900, 64), (1000, 3000, 64), (1000, 500, 64), (999, 3, 1)]
)
def test_a_batch_of_the_pool_is_its_share_and_half_a_batch_at_most(rows: int, side: int, want: int) -> None:
    assert INCV().side_batch_size("pool", 128, rows, side) == want  # min(|C| 128 / |S|, 64)
    assert CE().side_batch_size("clean", 128, rows, side) == 128


def test_one_sample_at_a_time() -> None:
    assert INCV().side_batch_size("pool", 1, 10, 10) == 1
    m, nets = method(selected_noise=0.9, num_gradual=1), networks()
    assert torch.isfinite(m.loss(nets, batch(1, 1), at(9)).value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"noise_rate": 1.0}, r"noise_rate=1\.0 must lie in \[0, 1\)"),
        ({"noise_rate": "some"}, r"noise_rate='some' must be a number in \[0, 1\) or 'auto'"),
        ({"selected_noise": 1.0}, r"selected_noise=1\.0 must lie in \[0, 1\)"),
        ({"selected_noise": "some"}, r"selected_noise='some' must be a number in \[0, 1\) or 'auto'"),
        ({"iterations": 0}, r"iterations=0 must lie in \[1, inf\)"),
        ({"length": 0}, r"length=0 must lie in \(0, 1\]"),
        ({"length": 1.5}, r"length=1\.5 must lie in \(0, 1\]"),
        ({"discard": "often"}, r"discard='often' must be 'auto' or 'always' or 'never'"),
        ({"choose": "best"}, r"choose='best' must be 'validation' or 'last'"),
        ({"warmup": -1}, r"warmup=-1 must lie in \[0, inf\)"),
        ({"num_gradual": 0}, r"num_gradual=0 must lie in \[1, inf\)"),
        ({"iterations": float("nan")}, r"iterations=nan must lie in"),
        ({"warmup": "never"}, r"warmup='never' must be 'auto'"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        INCV(**options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Fitted, Path]:
    """One run of all of it on a problem with 40 % flips."""
    torch.set_num_threads(1)
    data, folder = blobs(600, 4, flips=0.4), tmp_path_factory.mktemp("incv") / "run"
    how = settings(epochs=12, lr=0.05)
    m = INCV(iterations=2, num_gradual=3)
    run = runs.train(data, m, "mlp", how, test=blobs(400, 4, seed=5), folder=folder)
    return run, run.fitted, folder


def test_a_run_keeps_the_samples_of_the_whole(whole: tuple[Any, Fitted, Path]) -> None:
    run, fitted, _ = whole
    data = fitted.data
    assert len(data) == 600
    assert fitted.belief().shape == (600, 4)
    assert np.isfinite(fitted.belief()).all()
    np.testing.assert_allclose(fitted.belief().sum(1), 1, atol=1e-4)
    assert sorted(run.issues["id"]) == list(range(600))
    table = fitted.tables["selection"]
    selected = np.flatnonzero(table["select"])
    assert fitted.rows.tolist() == selected.tolist()
    visits = fitted.evidence.visits.numpy()
    assert (visits[selected] == 12).all(), "once in each epoch"
    assert (visits[np.setdiff1d(np.arange(600), selected)] == 0).all(), "a pool leaves no evidence"
    trust = run.issues.set_index("id")["evidence_trust"].sort_index()
    assert np.isfinite(trust[selected]).all()
    assert trust[np.setdiff1d(np.arange(600), selected)].isna().all()


def test_the_list_is_made_of_what_was_said_out_of_sample(whole: tuple[Any, Fitted, Path]) -> None:
    _, fitted, _ = whole
    agrees = fitted.belief().argmax(1) == fitted.data.y
    assert (agrees == fitted.tables["selection"]["select"]).all(), "selected is what agreed when it was asked last"


def test_what_was_estimated_is_what_was_trained_with_and_reported(whole: tuple[Any, Fitted, Path]) -> None:
    _, fitted, folder = whole
    record = json.loads((folder / "run.json").read_text())
    params = record["method"]["params"]
    table = fitted.tables["selection"]
    assert params["noise_rate"] == fitted.method.noise_rate == round(float(table["eval_ratio"][0]), 4)
    deviation = 3 * np.sqrt(0.4 / 3 * (1 - 0.4 / 3) / 600)  # of three times the share of the least likely class
    assert params["noise_rate"] == pytest.approx(0.4, abs=4 * deviation)
    wrong = (fitted.data.y != fitted.data.truth)[table["select"]].mean()
    assert params["selected_noise"] == fitted.method.selected_noise == pytest.approx(wrong, abs=0.06)
    assert params["warmup"] == "auto"
    assert record["result"]["incv"][-1]["selected"] == table["select"].sum()
    assert record["result"]["incv_noise"]["kind"] == "symmetric"
    assert record["result"]["seconds"] > 0
    assert (folder / "selection.csv").exists()
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        f"iteration-{i}-half-{k}" for i in (1, 2) for k in (1, 2)
    }


def test_it_is_right_where_cross_entropy_memorises(whole: tuple[Any, Fitted, Path]) -> None:
    _, fitted, _ = whole
    data = blobs(600, 4, flips=0.4)
    plain = fit(CE(), factory(data, 256), data, settings(epochs=36, lr=0.1), test=blobs(400, 4, seed=5))
    assert fitted.history[-1]["test_accuracy"] > plain.history[-1]["test_accuracy"] + 0.05


def test_told_values_are_respected() -> None:
    data = blobs(200, 4, flips=0.3)
    m = INCV(noise_rate=0.11, selected_noise=0.07, iterations=1, warmup=1)
    fitted = fit(m, factory(data), data, settings(epochs=2))
    assert fitted.method.get_params() == m.get_params()
    assert set(fitted.tables["selection"]["eval_ratio"]) == {0.11}
    assert m.get_params() == INCV(noise_rate=0.11, selected_noise=0.07, iterations=1, warmup=1).get_params()


@pytest.mark.parametrize("left", [0, 1, 2, 40])
def test_the_second_stage_is_given_the_selected_and_the_candidates_as_a_pool(left: int) -> None:
    data = problem(200)
    agrees = np.arange(200) >= left
    fit = Stub(lambda rows, number: np.eye(4)[np.where(agrees[rows], data.y[rows], (data.y[rows] + 1) % 4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        INCV(iterations=1, discard="never", length=0.25).run(fit, data)
    *halves, last = fit.plans
    assert [p.length for p in halves] == [0.25, 0.25]
    assert (last.stage, last.length) == ("", 1)
    assert isinstance(last.method, INCV)
    assert len(last.data) == 200
    assert last.data.trained.tolist() == np.flatnonzero(agrees).tolist()
    streams = last.changes["streams"]
    assert {name: d.trained.tolist() for name, d in streams.items()} == (
        {"pool": list(range(left))} if left > 1 else {}
    )
    assert all(len(d) == 200 for d in streams.values()), "ids are those of the whole"
    assert last.method.selected_noise == pytest.approx(1 - fit.figures["incv"][-1]["estimated_precision"], abs=1e-4)


def test_halves_are_those_of_the_seed() -> None:
    """Of the run's: two runs of one seed have the same halves, a third has others."""
    data = problem(200)

    def first_half(seed: int) -> list[int]:
        class Seeded(Stub):
            @property
            def seed(self) -> int:
                return seed

        fit = Seeded(lambda rows, number: np.eye(4)[data.y[rows]])
        INCV(iterations=1).select(fit, data)
        return fit.trained[0].tolist()

    assert first_half(0) == first_half(0)
    assert first_half(0) != first_half(7)
    engine = Stages(factory=factory(data), settings=settings(seed=7), stamp={})
    assert engine.seed == 7


def test_without_candidates_there_is_no_pool() -> None:
    data = blobs(200, 2, spread=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit(INCV(iterations=1, warmup=0), factory(data), data, settings(epochs=4))
    assert fitted.tables["selection"]["select"].all()
    assert len(fitted.rows) == 200


def killed(folder: Path, stage: str) -> None:
    """Run the program of `incv_victim` and kill it when this stage has a checkpoint."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.methods.incv_victim", str(folder)]
    with subprocess.Popen(program, env=env, cwd=Path(__file__).parents[2]) as victim:
        try:
            deadline = time.monotonic() + 60
            while not checkpoint.found(folder / stage) and time.monotonic() < deadline:
                assert victim.poll() is None
                time.sleep(0.002)
        finally:
            victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL, "it must not have finished"


def test_killed_in_a_half_and_resumed_is_the_run_that_was_left_alone(tmp_path: Path) -> None:
    """A real process and SIGKILL; what was finished is not trained again."""
    folder, stage = tmp_path / "killed", "iteration-2-half-1"
    killed(folder, stage)
    state = checkpoint.load(folder / stage)
    assert state["epoch"] < incv_victim.EPOCHS, "in the middle of a half"
    done = [folder / f"iteration-1-half-{k}" for k in (1, 2)]
    before = {p: p.stat().st_mtime_ns for d in done for p in checkpoint.found(d)}
    assert len(before) == 4
    assert not (folder / "iteration-2-half-2").exists()
    again, whole = incv_victim.train(folder, resume=True), incv_victim.train(tmp_path / "whole")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert same(dict(again.nets.state_dict()), dict(whole.nets.state_dict()))
    assert same(again.evidence.state_dict(), whole.evidence.state_dict())
    assert again.method.get_params() == whole.method.get_params()
    for name, column in whole.tables["selection"].items():
        np.testing.assert_array_equal(again.tables["selection"][name], column)
    for stage in ("iteration-1-half-1", "iteration-2-half-1", "iteration-2-half-2"):
        a, b = checkpoint.load(folder / stage), checkpoint.load(tmp_path / "whole" / stage)
        assert same(a["training"], b["training"])
