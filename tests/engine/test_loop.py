"""What the loop promises: accumulation, clipping, schedules, early stopping, logs, and no waiting for the device."""

from __future__ import annotations

import csv
import inspect
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelproof.core.method import Method
from labelproof.core.types import Loss
from labelproof.data.feed import endless
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.functional.mixing import Mixup
from labelproof.methods import CE, ELR, METHODS, MSE, CoTeaching
from tests.toy import Offsets, blobs, eager, factory, line, problem, same, settings, streams


def test_accumulated_batches_equal_one_large_batch() -> None:
    data = blobs(160)  # 64, 64 and 32 samples: the last group is a single small batch
    large = fit(CE(), factory(data), data, settings(batch_size=64, schedule="constant"))
    small = fit(CE(), factory(data), data, settings(batch_size=32, accumulate=2, schedule="constant"))
    for a, b in zip(large.nets.parameters(), small.nets.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_each_network_is_clipped_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clipped = []
    real = nn.utils.clip_grad_norm_

    def spy(parameters: Any, max_norm: float) -> Tensor:
        parameters = list(parameters)
        norm = real(parameters, max_norm)
        clipped.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    data = blobs()
    fit(CoTeaching(), factory(data), data, settings(epochs=1, clip=0.05))
    assert len(clipped) == 2 * 3, "two networks, three steps"
    assert max(clipped) <= 0.05 + 1e-6


class Betas(Offsets):
    """Notes after each step the momentum, or the betas, of the network's optimiser and of the rows' own."""

    def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
        self.__dict__["seen"] = []
        self.__dict__["made"] = super().optimizers(nets, make)
        return self.__dict__["made"]

    def after_step(self, nets: Any, batch: Any, now: Any) -> None:
        groups = (o.param_groups[0] for o in self.__dict__["made"].values())
        self.__dict__["seen"].append(tuple(g.get("betas", g.get("momentum")) for g in groups))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_first_beta_follows_the_schedule_of_the_momentum(optimizer: str) -> None:
    """Co-teaching's Adam has 0.9 at first and 0.1 later; the rows' own optimiser keeps what the method gave it."""
    data = blobs(96)
    plan = {"momentum_schedule": "multistep:2:0.1111", "optimizer": optimizer, "lr": 0.01}
    r = fit(Betas(), factory(data), data, settings(epochs=4, batch_size=48, **plan))
    first, later = (pytest.approx((b, 0.999)) for b in (0.9, 0.09999))
    assert [net for net, _ in r.method.seen] == [first] * 4 + [later] * 4
    assert {own for _, own in r.method.seen} == {0}
    assert all(torch.isfinite(p).all() for p in r.nets.parameters())
    assert all(np.isfinite(e["loss"]) for e in r.history)


def test_momentum_moves_within_an_epoch_and_stays_where_it_is_constant() -> None:
    data = blobs(96)
    common = settings(epochs=2, batch_size=48, momentum=0.8)
    moved = fit(Betas(), factory(data), data, replace(common, momentum_schedule="linear"))
    assert [net for net, _ in moved.method.seen] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    still = fit(Betas(), factory(data), data, common)
    assert {net for net, _ in still.method.seen} == {0.8}


def test_momentum_is_adams_first_beta_and_by_default_that_of_torch() -> None:
    assert Settings().momentum == inspect.signature(torch.optim.Adam).parameters["betas"].default[0]
    data = blobs(96)
    r = fit(Betas(), factory(data), data, settings(epochs=1, batch_size=96, optimizer="adam", momentum=0.5))
    assert r.method.seen[0][0] == (0.5, 0.999)


def test_the_schedule_moves_only_what_make_built() -> None:
    rates: list[tuple[float, float]] = []

    class Spy(Offsets):
        def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
            self.__dict__["seen"] = super().optimizers(nets, make)
            return self.__dict__["seen"]

        def after_step(self, nets: Any, batch: Any, now: Any) -> None:
            rates.append(tuple(o.param_groups[0]["lr"] for o in self.__dict__["seen"].values()))

    data = blobs(96)
    fit(Spy(), factory(data), data, settings(epochs=4, batch_size=96, lr=0.2, schedule="multistep:1,3:0.5"))
    assert rates == [(0.2, 1.0), (0.1, 1.0), (0.1, 1.0), (0.05, 1.0)]


def test_early_stopping_keeps_the_weights_of_the_best_noisy_epoch() -> None:
    data = blobs(300, flips=0.4)
    how = settings(epochs=200, early_stopping=True, patience=5, lr=0.2, weight_decay=0.0, schedule="constant")
    r = fit(CE(), factory(data, 256), data, how)
    scores = [row["val_accuracy"] for row in r.history]
    assert r.best_epoch == int(np.argmax(scores)) + 1
    assert len(r.history) == r.best_epoch + 5 < 200
    assert len(r.held) == 30
    held = (r.predict(np.asarray(data.x)[r.held]).argmax(1) == data.y[r.held]).mean()
    assert held == pytest.approx(max(scores))


def test_held_out_samples_are_in_the_record_too() -> None:
    data = blobs(100)
    r = fit(ELR(), factory(data), data, settings(epochs=4, validation_fraction=0.2))
    assert r.evidence.visits.tolist() == [4.0] * 100
    belief = r.belief()
    assert belief.shape == (100, 3)
    assert np.isfinite(belief).all()
    assert (belief[r.held].sum(1) > 0.99).all(), "their rows of the method's own table are empty: not these"


def test_without_plain_outputs_one_evaluation_pass_stands_in() -> None:
    data = blobs(97, flips=0.2)
    r = fit(CE(mixup=1.0), factory(data), data, settings(epochs=2))
    assert r.evidence.visits.tolist() == [2.0] * 97
    assert {"agree", "clean_correct", "wrong_memorised"} <= r.history[0].keys()


def test_fractions_are_those_of_the_groups() -> None:
    """The figure of the ELR paper: clean and wrong samples each split into fractions that sum to 1."""
    data = blobs(200, flips=0.4)
    r = fit(CE(), factory(data, 256), data, settings(epochs=80, lr=0.3, weight_decay=0.0, schedule="constant"))
    for row in r.history:
        assert row["clean_correct"] + row["clean_other"] == pytest.approx(1)
        assert row["wrong_correct"] + row["wrong_memorised"] + row["wrong_other"] == pytest.approx(1)
    first, last = r.history[2], r.history[-1]
    assert last["wrong_memorised"] > first["wrong_memorised"] + 0.3, "cross-entropy memorises"


def test_metrics_csv_has_a_row_per_epoch(tmp_path: Path) -> None:
    data = blobs()
    r = fit(CoTeaching(), factory(data), data, settings(), test=blobs(50, seed=3), folder=tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["test_accuracy"]) == r.history[-1]["test_accuracy"]
    assert 0 < float(rows[-1]["label_precision"]) <= 1


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    data = blobs()
    fit(CE(), factory(data), data, settings(), folder=tmp_path, tensorboard=True)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_nothing_is_printed_at_verbose_0(capfd: pytest.CaptureFixture[str]) -> None:
    data = blobs()
    fit(ELR(), factory(data), data, settings(), verbose=0)
    assert capfd.readouterr() == ("", "")


def test_progress_is_printed_at_verbose_1(capfd: pytest.CaptureFixture[str]) -> None:
    data = blobs()
    fit(ELR(), factory(data), data, settings(), verbose=1)
    assert "epoch 3/3" in capfd.readouterr().err


def test_the_callers_random_state_is_left_alone() -> None:
    data = blobs()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    fit(CoTeaching(), factory(data, dropout=0.5), data, settings())
    assert torch.equal(torch.rand(3), want)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    data = blobs()
    a, b, c = (fit(ELR(), factory(data), data, settings(seed=s)) for s in (1, 1, 2))
    assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict()))
    assert not same(dict(a.nets.state_dict()), dict(c.nets.state_dict()))


def test_peers_start_apart() -> None:
    data = blobs()
    r = fit(CoTeaching(), factory(data), data, settings(epochs=1, lr=1e-9))
    assert not torch.equal(r.nets[0][1].weight, r.nets[1][1].weight)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_step_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number from a tensor makes the host wait for a GPU: none per step, a few per epoch."""
    calls: Counter[str] = Counter()

    def counting(which: str) -> None:
        real = getattr(Tensor, which)

        def spy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            optimizer = "torch/optim" in sys._getframe(1).f_code.co_filename  # Adam's step counters are on the host
            calls[which] += self.numel() > 0 and not drawing and not optimizer
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, which, spy)

    drawing, draw = [], Mixup.draw

    def drawn(*args: Any) -> Mixup:  # reads numbers from a generator of the host's, on any device
        drawing.append(True)
        try:
            return draw(*args)
        finally:
            drawing.pop()

    monkeypatch.setattr(Mixup, "draw", drawn)
    monkeypatch.setattr("labelproof.functional.device._is_host", lambda x: False)  # as if it were on a GPU
    data = problem(METHODS[name], 97)
    for which in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        counting(which)
    counts = []
    for batch in (48, 4):
        calls.clear()
        fit(eager(name), factory(data), data, settings(epochs=2, batch_size=batch), streams=streams(METHODS[name]))
        counts.append(sum(calls.values()))
    assert counts[1] <= counts[0] + 2, f"more steps, more waiting: {counts}"


def test_half_precision_training_runs() -> None:
    data = blobs()
    r = fit(ELR(), factory(data), data, settings(precision="bf16-mixed"))
    assert np.isfinite(r.history[-1]["loss"])
    assert r.history[-1]["agree"] > 0.5


def test_side_streams_arrive_and_go_round() -> None:
    seen: list[int] = []

    class Spy(Method):
        title, streams = "spy", ("train", "clean")

        def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
            seen.extend(batch.side["clean"].index.tolist())
            return Loss(self.task.loss(nets[0](batch.x), batch.target).mean())

    data, clean = blobs(96), blobs(20, seed=8)
    fit(Spy(), factory(data), data, settings(epochs=2, batch_size=16), streams={"clean": clean})
    assert Counter(seen) == dict.fromkeys(range(20), 6), "12 steps: six rounds through batches of 16 and 4"
    with pytest.raises(ValueError, match=r"method Spy also needs samples whose labels were verified .*: --clean"):
        fit(Spy(), factory(data), data, settings())


def test_endless_feeds_resume_in_the_middle() -> None:
    class Fake:
        steps = 3

        def epoch(self, epoch: int, *, start: int = 0) -> Any:
            return ((epoch, s) for s in range(start, 3))

    it = endless(Fake(), 4)  # type: ignore[arg-type]
    assert [next(it) for _ in range(4)] == [(1, 1), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, r"epochs=0 must lie in \[1, inf\)"),
        ({"batch_size": 0}, r"batch_size=0 must lie in \[1, inf\)"),
        ({"lr": -1.0}, r"lr=-1\.0 must lie in \(0, inf\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0 must lie in \[0, 1\)"),
        ({"optimizer": "sdg"}, r"unknown optimizer 'sdg': did you mean 'sgd'\? There are: adam, adamw, lars, sgd"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"augment": "flip"}, r"unknown augment 'flip': did you mean 'crop-flip'\?"),
        ({"schedule": "cosin"}, "schedule='cosin' is not understood; allowed: 'constant', 'cosine'"),
        ({"schedule": "multistep:a"}, "schedule='multistep:a' is not understood"),
        (
            {"momentum_schedule": "stepped"},
            "momentum_schedule='stepped' is not understood; allowed: 'constant', 'cosine'",
        ),
        (
            {"momentum_schedule": "multistep:2:1.2"},
            r"'multistep:2:1.2' takes momentum=0\.9 to 1\.08: it must stay below 1",
        ),
        (
            {"momentum_schedule": "linear", "momentum": 0.0},
            "momentum_schedule='linear' has nothing to change: momentum is 0",
        ),
        ({"momentum": 1.0}, r"momentum=1\.0 must lie in \[0, 1\)"),
        ({"batch_size": 33, "devices": 2}, "batch_size=33 must be a multiple of devices=2"),
        ({"early_stopping": True, "validation_fraction": 0.0}, "early_stopping=True needs validation_fraction > 0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**options)


def test_misfits_are_named() -> None:
    data = blobs()
    with pytest.raises(ValueError, match="method mse is for regression, but these labels make a classification task"):
        fit(MSE(), factory(data), data, settings())
    with pytest.raises(ValueError, match="method elr is for classification, but these labels make a regression task"):
        fit(ELR(), factory(line()), line(), settings())
    with pytest.raises(ValueError, match=r"outputs of shape \(B, 5\) where \(B, 3\) is needed"):
        fit(CE(), lambda k: nn.Linear(8, 5), data, settings())
    with pytest.raises(ValueError, match=r"the network does not take inputs of shape \(B, 8\)"):
        fit(CE(), lambda k: nn.Linear(9, 3), data, settings())
    with pytest.raises(ValueError, match="labels have one class only"):
        one = data.take(np.flatnonzero(data.y == 1))
        fit(CE(), factory(one), one, settings())
    with pytest.raises(ValueError, match=r"test inputs have shape \(5,\), training inputs \(8,\)"):
        fit(CE(), factory(data), data, settings(), test=blobs(dims=5))
    with pytest.raises(ValueError, match="training and test data must have the same classes"):
        fit(CE(), factory(data), data, settings(), test=blobs(classes=4))
    with pytest.warns(UserWarning, match="batch_size=32 is larger than the 20 training samples"):
        small = blobs(20)
        fit(CE(), factory(small), small, settings())
    with pytest.warns(UserWarning, match="no training sample has the label 2: it will never be predicted"):
        fewer = data.take(np.flatnonzero(data.y != 2))
        fit(CE(), factory(data), fewer, settings())


def test_forbidden_layers_are_refused_before_training() -> None:
    class NoBatchNorm(CE):
        forbids = frozenset({"batchnorm"})

    data = blobs()
    with pytest.raises(
        ValueError, match=r"ce cannot train through batchnorm \(BatchNorm1d 1 in the network\): .* Use network='mlp'"
    ):
        fit(NoBatchNorm(), lambda k: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3)), data, settings())


def test_regression_does_not_depend_on_units() -> None:
    data = line(200, outliers=0.1)
    scaled = line(200, outliers=0.1)
    big = scaled.relabelled(scaled.y * 1000 + 5)
    a, b = (fit(MSE(), factory(d), d, settings(epochs=5)) for d in (data, big))
    np.testing.assert_allclose(a.predict(data.x) * 1000 + 5, b.predict(data.x), rtol=2e-3, atol=2)
