"""Procedures of several trainings: forward correction that estimates its matrix first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelproof.core.types import Loss
from labelproof.engine.stages import fit
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
