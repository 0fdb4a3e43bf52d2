"""Ways of training that came with bi-level methods and pre-training: what is refused, stepped, told and handed on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelproof.core.method import Method
from labelproof.core.types import Loss
from labelproof.engine import checkpoint
from labelproof.engine.guards import KINDS, check_ways
from labelproof.engine.lars import LARS
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import CE, METHODS
from tests.toy import blobs, factory, line, mlp, same, settings, streams

WAYS: dict[str, dict[str, Any]] = {
    "devices": {"devices": 2},
    "accumulate": {"accumulate": 2},
    "16-mixed": {"precision": "16-mixed"},
    "compile": {"compile": True},
}
TEXTS = {
    "devices": r"^picky cannot be trained with devices=2: train it on one device$",
    "accumulate": r"^picky cannot be trained with accumulate=2: give a larger batch_size instead$",
    "16-mixed": r"^picky cannot be trained with precision='16-mixed': use 'bf16-mixed' or '32-true'$",
    "compile": r"^picky cannot be trained with compile=True: it looks inside the network; leave compile out$",
}


class Picky(CE):
    name = "picky"
    forbids = frozenset(WAYS)


class TestForbids:
    @pytest.mark.parametrize("way", WAYS)
    def test_refused_before_anything_begins(self, way: str, tmp_path: Path) -> None:
        """Before processes are launched and files written."""
        data = blobs()
        made: list[int] = []

        def make(k: int) -> nn.Module:
            made.append(k)
            return mlp(8, 3)

        with pytest.raises(ValueError, match=TEXTS[way]):
            fit(Picky(), make, data, settings(**WAYS[way]), folder=tmp_path / "run")
        assert not made
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("way", WAYS)
    def test_only_what_is_forbidden(self, way: str) -> None:
        class Other(Picky):
            forbids = frozenset(WAYS) - {way}

        check_ways(Other(), settings(**WAYS[way]))
        check_ways(Picky(), settings(precision="bf16-mixed"))
        with pytest.raises(ValueError, match=TEXTS[way]):
            check_ways(Picky(), settings(**WAYS[way]))

    def test_what_nobody_knows_is_refused(self) -> None:
        class Odd(Method):
            forbids = frozenset({"batchnorm", "dropuot"})

        known = "16-mixed, accumulate, batchnorm, compile, devices"
        with pytest.raises(ValueError, match=rf"^Odd forbids 'dropuot', which nobody knows: there are {known}$"):
            fit(Odd(), factory(blobs()), blobs(), settings())

    @pytest.mark.parametrize("name", METHODS)
    def test_methods_forbid_what_is_known(self, name: str) -> None:
        assert METHODS[name].forbids <= {*KINDS, *WAYS}
        check_ways(METHODS[name](), settings())


class Both(Method):
    """Two optimisers, one for each network, stepped one after the other with a gradient in between."""

    title, peers = "both", 2

    def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
        return {f"net{k}": make([{"params": list(net.parameters())}]) for k, net in enumerate(nets)}

    def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
        each = torch.stack([self.task.loss(net(batch.x), batch.target) for net in nets]).mean(1)
        return Loss(each.sum(), out=None, log={"first": each[0], "second": each[1]})


def weights(nets: Any) -> list[list[Tensor]]:
    return [[p.detach().clone() for p in net.parameters()] for net in nets]


class TestSteps:
    def one_by_one(self, **options: Any) -> list[tuple[bool, bool]]:
        """For each call of `step`, which of two networks moved."""
        moved: list[tuple[bool, bool]] = []

        class Named(Both):
            def update(self, run: Any, batch: Any) -> Loss:
                loss = run.forward(batch)
                run.backward(loss.value)
                for names in (("net1",), ("net0",)):
                    before = weights(run.nets)
                    run.step(*names)
                    after = weights(run.nets)
                    a, b = (not same(x, y) for x, y in zip(before, after, strict=True))
                    moved.append((a, b))
                return loss

        data = blobs(96)
        fit(Named(), factory(data), data, settings(epochs=1, **options))
        return moved

    def test_only_those_named(self) -> None:
        assert self.one_by_one() == [(False, True), (True, False)] * 3

    def test_none_between_accumulated_batches(self) -> None:
        still = [(False, False)] * 2
        steps = [(False, True), (True, False)]
        assert self.one_by_one(accumulate=2) == [*still, *steps, *steps], "the last group has one batch"

    def test_one_after_the_other_is_both_at_once(self) -> None:
        class Named(Both):
            def update(self, run: Any, batch: Any) -> Loss:
                loss = run.forward(batch)
                run.backward(loss.value)
                run.step("net1")
                run.step("net0")
                return loss

        data = blobs(97)
        for how in ({}, {"clip": 0.05}, {"optimizer": "adamw", "lr": 1e-3}, {"accumulate": 2, "clip": 0.05}):
            a, b = (fit(kind(), factory(data), data, settings(**how)) for kind in (Both, Named))
            assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict())), how

    def test_gradients_of_the_others_wait(self) -> None:
        """And are not clipped before their time: two halves, backward twice, are the whole."""

        class Waiting(Both):
            def update(self, run: Any, batch: Any) -> Loss:
                loss = run.forward(batch)
                run.backward(loss.value / 2)
                before = [p.grad.clone() for p in run.nets[1].parameters()]
                run.step("net0")
                assert all(p.grad is None or not p.grad.any() for p in run.nets[0].parameters())
                assert same(before, [p.grad for p in run.nets[1].parameters()])
                run.backward(run.forward(batch).log["second"] / 2)
                run.step("net1")
                return loss

        data = blobs(96)
        whole, halves = (fit(kind(), factory(data), data, settings(epochs=1, clip=0.05)) for kind in (Both, Waiting))
        torch.testing.assert_close(weights(whole.nets)[1], weights(halves.nets)[1])

    @pytest.mark.parametrize("clip", [0.05, 0.5])
    def test_clipping_is_per_network_and_optimiser(self, clip: float) -> None:
        """One network, its last layer in an optimiser of its own: a burst there leaves the others' step alone."""

        class Apart(Method):
            title = "apart"

            def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
                p = list(nets[0].parameters())
                return {"body": make([{"params": p[:2]}]), "head": make([{"params": p[2:]}])}

            def update(self, run: Any, batch: Any) -> Loss:
                loss = run.forward(batch)
                run.backward(loss.value)
                for p in list(run.nets[0].parameters())[2:]:
                    p.grad.mul_(self.burst)
                before = [p.detach().clone() for p in run.nets[0].parameters()]
                run.step(*self.names)
                self.moved.append(
                    [
                        float(torch.stack([(a.detach() - b).norm() for a, b in zip(part, other, strict=True)]).norm())
                        for part, other in ((list(run.nets[0].parameters())[:2], before[:2]),
                                            (list(run.nets[0].parameters())[2:], before[2:]))
                    ]
                )  # fmt: skip
                return loss

            def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
                return Loss(self.task.loss(nets[0](batch.x), batch.target).mean())

        found = []
        for burst, names in ((1.0, ()), (1e4, ()), (1e4, ("head", "body"))):
            seen: list[list[float]] = []
            kind = type("Each", (Apart,), {"burst": burst, "names": names, "moved": seen})
            data = blobs(32)
            how = settings(epochs=1, clip=clip, momentum=0.0, weight_decay=0.0, schedule="constant", lr=1.0)
            fit(kind(), factory(data), data, how)
            found.append(seen[0])
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) == pytest.approx(found[2][0], rel=1e-5)
        assert found[1][1] == pytest.approx(clip, rel=1e-4)
        assert max(found[0]) <= clip * (1 + 1e-5)

    def test_a_name_that_is_none(self) -> None:
        class Wrong(CE):
            def update(self, run: Any, batch: Any) -> Loss:
                loss = run.forward(batch)
                run.backward(loss.value)
                run.step("net")
                return loss

        with pytest.raises(KeyError, match="net"):
            fit(Wrong(), factory(blobs()), blobs(), settings())

    def test_bf16_with_several(self) -> None:
        data = blobs(97)
        r = fit(Both(), factory(data), data, settings(precision="bf16-mixed"))
        assert np.isfinite(r.predict(data.x)).all()


class TestFigures:
    def test_of_an_epoch_are_in_its_row(self, tmp_path: Path) -> None:
        class Counting(CE):
            def after_epoch(self, nets: Any, scan: Any, now: Any) -> Mapping[str, float] | None:
                ids, _ = scan(lambda batch: batch.x, rows=10)
                return {"seen": float(len(ids)), "squared": float(now.epoch**2)} if now.epoch % 2 else None

        data = blobs()
        r = fit(Counting(), factory(data), data, settings(epochs=4), test=blobs(30, seed=5), folder=tmp_path)
        assert [row.get("seen") for row in r.history] == [None, 10.0, None, 10.0]
        table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
        assert [row["squared"] for row in table] == ["", "1.0", "", "9.0"]
        assert all(row["test_accuracy"] for row in table)
        assert checkpoint.load(tmp_path)["history"][3]["squared"] == 9.0

    def test_survive_a_kill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Counting(CE):
            def after_epoch(self, nets: Any, scan: Any, now: Any) -> Mapping[str, float] | None:
                return {"at": float(now.epoch)}

        data, plain, done = blobs(), Training.run_batch, 0

        def mortal(*args: Any) -> Any:
            nonlocal done
            if done == 8:
                raise KeyboardInterrupt
            done += 1
            return plain(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Training, "run_batch", mortal)
            fit(Counting(), factory(data), data, settings(epochs=4), folder=tmp_path)
        r = fit(Counting(), factory(data), data, settings(epochs=4), folder=tmp_path, resume=True)
        assert [row["at"] for row in r.history] == [0.0, 1.0, 2.0, 3.0]


class TestLars:
    def test_is_the_one_of_the_settings(self) -> None:
        made: list[torch.optim.Optimizer] = []

        class Watched(CE):
            def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
                found = super().optimizers(nets, make)
                made.extend(found.values())
                return found

        data = blobs()
        how = Settings(epochs=1, optimizer="lars", momentum=0.8, batch_size=32, device="cpu", schedule="constant")
        assert (how.lr, how.weight_decay) == (1.0, 1e-6)
        fit(Watched(), factory(data), data, how)
        [lars] = made
        assert type(lars) is LARS
        group = lars.param_groups[0]
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (1.0, 0.8, 1e-6)

    def test_learns_under_schedules_of_rate_and_momentum_and_resumes(self, tmp_path: Path) -> None:
        data, test = blobs(200), blobs(200, seed=5)
        how = {"optimizer": "lars", "lr": 20.0, "epochs": 12, "schedule": "warmup:2+cosine"}
        r = fit(CE(), factory(data), data, settings(**how), test=test)
        assert r.history[-1]["test_accuracy"] > 0.85
        moved = settings(**how, momentum_schedule="multistep:6:0.5")
        a = fit(CE(), factory(data), data, moved, folder=tmp_path)
        b = fit(CE(), factory(data), data, moved, folder=tmp_path, resume=True)
        assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict()))
        assert not same(dict(a.nets.state_dict()), dict(r.nets.state_dict()))

    def test_misspelt(self) -> None:
        with pytest.raises(ValueError, match=r"unknown optimizer 'lar': did you mean 'lars'"):
            settings(optimizer="lar")


class Choosy(CE):
    """Makes do without verified samples, and uses them where there are some."""

    name = "choosy"
    optional = ("clean",)
    own_streams = ("clean",)
    seen: list[Any] = []  # noqa: RUF012

    def run(self, fit: Any, data: Any) -> Any:
        type(self).seen.append(fit.given)
        return fit(self, data)

    def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
        type(self).seen.append(set(batch.side))
        return super().loss(nets, batch, now)


class TestStreams:
    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        Choosy.seen.clear()

    def test_optional_ones_may_be_left_out(self) -> None:
        data = blobs()
        fit(Choosy(), factory(data), data, settings(epochs=1))
        assert Choosy.seen[0] == frozenset()
        assert Choosy.seen[1] == set()

    def test_optional_ones_arrive(self) -> None:
        data = blobs()
        fit(Choosy(), factory(data), data, settings(epochs=1), streams={"clean": blobs(24, seed=3)})
        assert Choosy.seen[0] == frozenset({"clean"})
        assert Choosy.seen[1] == {"clean"}

    def test_optional_ones_are_checked(self) -> None:
        data = blobs()
        for wrong, text in (
            (blobs(24, dims=5), r"clean inputs have shape \(5,\), training inputs \(8,\)"),
            (blobs(1), r"clean has 1 samples: at least 2 are needed"),
            (line(24, dims=8), r"training and clean data must have the same classes"),
        ):
            with pytest.raises(ValueError, match=text):
                fit(Choosy(), factory(data), data, settings(epochs=1), streams={"clean": wrong})

    def test_others_are_of_no_use(self) -> None:
        data = blobs()
        with pytest.raises(ValueError, match="method choosy has no use for pool: leave it out"):
            fit(Choosy(), factory(data), data, settings(epochs=1), streams={"pool": blobs(24)})

    @pytest.mark.parametrize("name", ["mentornet-dd", "mw-net"])
    def test_a_class_of_which_nothing_was_verified_is_an_error(self, name: str) -> None:
        data, clean = blobs(), blobs(30, seed=3)
        lacking = clean.take(np.flatnonzero(clean.y != 1))
        with pytest.raises(
            ValueError, match=r"clean \(data\) has no sample of the class 1, so that nothing is learned .*: add some"
        ):
            fit(METHODS[name](), factory(data), data, settings(), streams={"clean": lacking})

    def test_a_class_of_which_nothing_is_trained_on_need_not_be(self) -> None:
        data, clean = blobs(), blobs(30, seed=3)
        without, lacking = (d.take(np.flatnonzero(d.y != 1)) for d in (data, clean))
        with pytest.warns(UserWarning, match="no training sample has the label 1"):
            fit(METHODS["mentornet-dd"](), factory(data), without, settings(epochs=1), streams={"clean": lacking})

    @pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.optional])
    def test_registered_methods_make_do_without(self, name: str) -> None:
        data = blobs(97, flips=0.2)
        alone = fit(METHODS[name](), factory(data), data, settings())
        assert np.isfinite(alone.belief()).all()
        side = {stream: blobs(24, seed=77) for stream in METHODS[name].optional}
        beside = fit(METHODS[name](), factory(data), data, settings(), streams={**streams(METHODS[name]), **side})
        assert not np.allclose(alone.predict(data.x), beside.predict(data.x))
