"""Procedures of several trainings: forward correction that estimates its matrix first."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from labelproof.core.method import Planned
from labelproof.core.types import Loss
from labelproof.engine import checkpoint
from labelproof.engine.stages import Stages, fit
from labelproof.engine.training import Training
from labelproof.methods import CE, Forward
from tests.toy import blobs, factory, same, settings


class Killed(Exception):
    pass


def mortal(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """From now on training dies after so many steps."""
    plain, done = Training.run_batch, 0

    def run_batch(*args: Any) -> Loss:
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return plain(*args)

    monkeypatch.setattr(Training, "run_batch", run_batch)


@pytest.mark.parametrize("steps", [7, 25, 31])  # in the first training, at its end, in the second
def test_killed_in_any_stage_and_resumed(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, how = blobs(160, flips=0.3), settings(epochs=5, batch_size=32)
    whole = fit(Forward(), factory(data), data, how, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        mortal(patch, steps)
        with pytest.raises(Killed):
            fit(Forward(), factory(data), data, how, folder=tmp_path / "killed")
    again = fit(Forward(), factory(data), data, how, folder=tmp_path / "killed", resume=True)
    assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))
    assert whole.method.transition == again.method.transition


def test_stages_have_folders_of_their_own_and_see_no_test_data(tmp_path: Path, capsys: Any) -> None:
    data, seen = blobs(160, flips=0.3), []

    class Two(CE):
        def run(self, fit: Any, data: Any) -> Any:
            seen.append(fit(CE(), data, stage="first", epochs=2))
            return fit(self, data)

    r = fit(Two(), factory(data), data, settings(), test=blobs(50, seed=3), folder=tmp_path, verbose=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "last.ckpt", "metrics.csv", "previous.ckpt"]
    assert len(seen[0].history) == 2
    assert "test_accuracy" not in seen[0].history[0]
    assert "test_accuracy" in r.history[-1]
    assert "ce first" in capsys.readouterr().err
    assert not np.array_equal(seen[0].predict(data.x), r.predict(data.x))


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    data = blobs()
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        fit(Forward(), factory(data), data, settings(), folder=tmp_path, resume=True)


class Apart:
    """A launcher that sends each call through pickle, the last one first."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []

    def run(self, calls: Any, names: Any, told: Any = None) -> list[Any]:
        self.ran.append(list(names))
        found = {}
        for i in reversed(range(len(calls))):
            found[i] = pickle.loads(cloudpickle.dumps(pickle.loads(cloudpickle.dumps(calls[i]))(0)))
            if told is not None:
                told(names[i])
        return [found[i] for i in range(len(calls))]


class Several(CE):
    """Three trainings that need nothing of each other, and one after them."""

    name = "several"

    def run(self, fit: Any, data: Any) -> Any:
        rows = np.arange(len(data))
        plans = [
            Planned(
                CE(),
                data.take(rows[k::3]),
                f"part-{k}",
                0.5,
                {"validation_fraction": 0.2 * (k == 1), "lr": 0.1 / (k + 1)},
            )
            for k in range(3)
        ]
        found = fit.all(plans)
        prob = np.stack([f.predict(data.x) for f in found])
        fit.note("three parts", parts=[len(f.history) for f in found])
        fit.table("parts", {"id": data.ids, "first": prob[0, :, 0], "last": prob[2, :, 0]})
        return fit(self, data.only(np.flatnonzero(prob.mean(0).argmax(1) == data.y)))


def several(folder: Path | None = None, launcher: Any = None, **options: Any) -> Any:
    data = blobs(240, flips=0.2)
    how = settings(epochs=4, **options.pop("how", {}))
    return fit(Several(), factory(data), data, how, folder=folder, launcher=launcher, **options)


def test_side_by_side_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    apart = Apart()
    alone, beside = several(tmp_path / "alone"), several(tmp_path / "beside", apart)
    assert apart.ran == [["part-0", "part-1", "part-2"]], "one at a time there is nothing to launch for the last"
    assert same(dict(alone.nets.state_dict()), dict(beside.nets.state_dict()))
    assert same(alone.evidence.state_dict(), beside.evidence.state_dict())
    for name, column in alone.tables["parts"].items():
        np.testing.assert_array_equal(column, beside.tables["parts"][name])
    names = sorted(p.name for p in (tmp_path / "alone").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "beside").iterdir())
    assert names == ["last.ckpt", "metrics.csv", "part-0", "part-1", "part-2", "previous.ckpt"]
    for k in range(3):
        a, b = (checkpoint.load(tmp_path / run / f"part-{k}")["training"] for run in ("alone", "beside"))
        assert same(a, b)


@pytest.mark.parametrize("launcher", [None, Apart()])
def test_plans_keep_their_order_length_and_changes(launcher: Any, capsys: Any) -> None:
    fitted = several(launcher=launcher, verbose=1)
    assert fitted.figures == {"parts": [2, 2, 2]}
    assert fitted.notes == ["three parts"]
    assert list(fitted.tables["parts"]) == ["id", "first", "last"]
    said = capsys.readouterr().err
    assert "three parts" in said
    assert ("part-2 finished" in said) == (launcher is not None)
    one = blobs(240, flips=0.2)
    part = fit(CE(), factory(one), one.take(np.arange(2, 240, 3)), settings(epochs=2, lr=0.1 / 3))
    np.testing.assert_array_equal(fitted.tables["parts"]["last"], part.predict(one.x)[:, 0])


@pytest.mark.parametrize("launcher", [None, Apart()])
def test_seconds_of_all_trainings_are_counted(launcher: Any) -> None:
    data = blobs(240)
    stages = Stages(factory=factory(data), settings=settings(), stamp={"method": "x"}, launcher=launcher)
    found = stages.all([Planned(CE(), data, name) for name in "abc"])
    last = stages(CE(), data)
    assert stages.seconds == {**{n: f.history[-1]["seconds"] for n, f in zip("abc", found, strict=True)},
                              "": last.history[-1]["seconds"]}  # fmt: skip
    assert min(stages.seconds.values()) > 0
    fitted = several(launcher=launcher)
    assert fitted.seconds_before > 0


def test_a_launcher_has_no_use_for_a_single_training() -> None:
    apart, data = Apart(), blobs()
    stages = Stages(factory=factory(data), settings=settings(), stamp={"method": "x"}, launcher=apart)
    assert len(stages.all([Planned(CE(), data, "one")])) == 1
    assert stages.all([]) == []
    assert apart.ran == []


def test_several_devices_and_a_launcher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"devices=2 trains each network on several devices, and a launcher trains sev"
    ):
        several(tmp_path / "run", Apart(), how={"devices": 2})
    assert not (tmp_path / "run").exists()


def test_a_worker_that_died_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt resumes, though the run itself began anew."""

    class Dying(Apart):
        def run(self, calls: Any, names: Any, told: Any = None) -> list[Any]:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                mortal(patch, 4)  # after the first of two epochs of three steps
                calls[0](0)
            assert len(checkpoint.found(tmp_path / "died" / names[0])) == 1
            with monkeypatch.context() as patch:
                mortal(patch, 3)  # the second epoch is all that is left
                first = calls[0](1)
            return [first, *(call(1) for call in calls[1:])]

    died, whole = several(tmp_path / "died", Dying()), several(tmp_path / "whole")
    assert same(dict(died.nets.state_dict()), dict(whole.nets.state_dict()))


def test_killed_among_several_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        mortal(patch, 8)  # in the second
        several(folder)
    done = {p: p.stat().st_mtime_ns for p in checkpoint.found(folder / "part-0")}
    assert len(done) == 2
    again, whole = several(folder, Apart(), resume=True), several(tmp_path / "whole")
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert same(dict(again.nets.state_dict()), dict(whole.nets.state_dict()))


def test_streams_of_one_training_reach_it_alone() -> None:
    """What a procedure hands over for the method's own streams, and what the user gave, side by side."""
    seen: list[dict[str, list[int]]] = []

    class Pooled(CE):
        own_streams = ("pool",)

        def run(self, fit: Any, data: Any) -> Any:
            fit(self, data, stage="before")
            seen.append({})
            return fit(self, data.only(np.arange(60)), streams={"pool": data.only(np.arange(60, 100))})

        def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
            for name, side in batch.side.items():
                seen[-1].setdefault(name, []).extend(side.index.tolist())
            return super().loss(nets, batch, now)

        def side_batch_size(self, stream: str, batch_size: int, rows: int, side_rows: int) -> int:
            assert (stream, batch_size, rows, side_rows) == ("pool", 32, 60, 40)
            return 20

    data = blobs(100)
    seen.append({})
    fit(Pooled(), factory(data), data, settings(epochs=1, batch_size=32))
    assert seen[0] == {}
    assert len(seen[1]["pool"]) == 40, "twenty in each of two steps"
    assert set(seen[1]["pool"]) == set(range(60, 100)), "ids are those of the whole set"
