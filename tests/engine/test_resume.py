"""Killed at every single step, resumed, and equal to the last bit to the run that was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.types import Loss
from labelproof.data.dataset import Data
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import CE, ELR, CoTeaching
from tests.toy import Offsets, blobs, factory, same, settings


class Killed(Exception):
    pass


class Noisy:
    """A map-style data set whose transform is random, in all three of the usual generators."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> torch.Tensor:
        import random

        return torch.from_numpy(self.x[i]) + torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002


def batchnorm(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def streamed(data: Data) -> Data:
    return Data(Noisy(np.asarray(data.x)), data.y, classes=data.classes, truth=data.truth)


CASES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "batchnorm and dropout": (CE(), {"checkpoint_every": 1}, False),
    "mixup": (CE(mixup=1.0), {"checkpoint_every": 2}, False),
    "early stopping": (ELR(), {"checkpoint_every": 2, "early_stopping": True, "patience": 1}, False),
    "accumulation": (CoTeaching(), {"checkpoint_every": 1, "accumulate": 2}, False),
    "ragged accumulation": (ELR(), {"checkpoint_every": 3, "accumulate": 3}, False),
    "adam whose first beta falls": (
        ELR(),
        {"optimizer": "adam", "lr": 0.01, "schedule": "linear:1", "momentum_schedule": "multistep:2:0.1111"},
        False,
    ),
    "adam and clipping": (ELR(), {"optimizer": "adam", "lr": 0.01, "clip": 0.1}, False),
    "learned rows": (Offsets(), {"checkpoint_every": 1}, False),
    "streaming": (ELR(), {"checkpoint_every": 2}, True),
    "bf16": (ELR(), {"precision": "bf16-mixed", "checkpoint_every": 2}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_at_any_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, options, stream = CASES[name]
    data = blobs(70, flips=0.2)
    data = streamed(data) if stream else data
    how = settings(epochs=3, batch_size=16, validation_fraction=0.15, **options)
    torch.manual_seed(1)
    whole = fit(method, batchnorm, data, how, folder=tmp_path / "whole")
    plain, steps = Training.run_batch, 3 * 4
    for kill in range(1, steps):
        done = 0

        def mortal(*args: Any) -> Loss:
            nonlocal done
            if done == kill:  # noqa: B023
                raise Killed
            done += 1
            return plain(*args)

        folder = tmp_path / str(kill)
        monkeypatch.setattr(Training, "run_batch", mortal)
        torch.manual_seed(kill)  # what the caller's generators hold must not matter
        try:
            fit(method, batchnorm, data, how, folder=folder)
        except Killed:
            monkeypatch.setattr(Training, "run_batch", plain)
            began = (folder / "last.ckpt").exists()
            again = fit(method, batchnorm, data, how, folder=folder, resume=began)
            assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict())), f"killed at step {kill}"
            assert same(dict(whole.method.state_dict()), dict(again.method.state_dict()))
            assert same(dict(whole.evidence.state_dict()), dict(again.evidence.state_dict()))
            for a, b in zip(whole.history, again.history, strict=True):
                assert {**a, "seconds": 0} == {**b, "seconds": 0}
        monkeypatch.setattr(Training, "run_batch", plain)


def test_twins_do_not_move_by_being_asked() -> None:
    """A forward pass of a moving-average twin under train() leaves its statistics alone (demand.md P7)."""
    from labelproof.core.nets import Nets

    nets = Nets([batchnorm(0)], twins=True)
    nets.train()
    before = {k: v.clone() for k, v in nets.twins.state_dict().items()}
    a, b = nets.twins[0](torch.ones(4, 8)), nets.twins[0](torch.ones(4, 8))
    assert torch.equal(a, b), "no dropout either"
    assert same(before, dict(nets.twins.state_dict()))


def test_parameters_nobody_trains_are_refused() -> None:
    class Forgotten(Offsets):
        def optimizers(self, nets: Any, make: Any) -> Any:
            return {"nets": super().optimizers(nets, make)["nets"]}

    data = blobs()
    with pytest.raises(ValueError, match=r"parameter method\.u\.weight is in no optimiser"):
        fit(Forgotten(), factory(data), data, settings())


def test_figures_that_come_and_go_are_averaged_over_the_steps_that_had_them() -> None:
    class Sometimes(CE):
        def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
            loss = super().loss(nets, batch, now)
            extra = {"seen": torch.tensor(float(now.step))} if now.step >= 2 else {}
            return loss._replace(log=extra, trust=torch.ones(len(batch.index)) if now.step % 2 else None)

    data = blobs(64)
    steady, odd = (
        fit(m, factory(data), data, settings(epochs=1, batch_size=16)).history[0] for m in (CE(), Sometimes())
    )
    assert odd["seen"] == 2.5
    for key in ("loss", "agree", "clean_correct"):
        assert odd[key] == pytest.approx(steady[key])
