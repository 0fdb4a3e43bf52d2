"""What is refused before training, and the score in the units of the targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from labelproof.data.dataset import Data
from labelproof.engine.inputs import Inputs, prepare
from labelproof.engine.stages import fit
from labelproof.methods import METHODS
from labelproof.runs import train
from tests.toy import factory, line, settings


def changed(data: Data, rows: list[int], value: float) -> Data:
    y = data.y.astype(np.float64)
    y[rows] = value
    return replace(data, y=y, truth=None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_targets_that_are_not_finite_are_refused_by_row(value: float) -> None:
    data = line(60)
    text = r"targets of {} are missing or infinite \(NaN, inf\) in 2 of 60 rows, the first in row {}: drop those rows"
    bad = changed(data, [9, 7], value)
    with pytest.raises(ValueError, match=text.format("data", 7)):
        train(bad, METHODS["mse"](), "mlp", settings())
    with pytest.raises(ValueError, match=text.format("data", 7)):
        fit(METHODS["huber"](), factory(bad), bad, settings())
    named = replace(bad, ids=np.array([f"house {i}" for i in range(60)]))
    with pytest.raises(ValueError, match=text.format("data", "house 7")):
        fit(METHODS["huber"](), factory(named), named, settings())
    with pytest.raises(ValueError, match=text.format("test", 7)):
        fit(METHODS["mse"](), factory(data), data, settings(), test=bad)
    with pytest.raises(ValueError, match=r"targets of data are missing or infinite .* the first in row (7|9)"):
        fit(METHODS["prl-l"](noise_rate="auto"), factory(bad), bad, settings())


def test_a_target_too_large_is_named_by_its_row_in_the_whole() -> None:
    data = changed(line(60), [50], 1e305)
    with pytest.raises(ValueError, match=r"targets of data go up to 1e\+305 \(row 50\)"):
        fit(METHODS["mse"](), factory(data), data.take(np.arange(20, 60)), settings())


def prepared(data: Data) -> Inputs:
    return prepare(METHODS["mse"](), data, None, {}, settings(), torch.device("cpu"))


@pytest.mark.parametrize("far", [3.0, 1e200, 1e300, -1e300])
def test_the_score_is_the_root_of_the_mean_square_however_far_a_target_is(far: float) -> None:
    data, held = line(60), changed(line(30, seed=1), [4], far)
    inputs = prepared(data)
    prob = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 1))).float()
    off = inputs.scale.inverse(prob).numpy() - held.y  # type: ignore[union-attr]
    want = np.sqrt(np.mean((off / 1e150) ** 2)) * 1e150 if abs(far) > 1e150 else np.sqrt(np.mean(off**2))
    assert inputs.score(held, torch.arange(30), prob) == pytest.approx(want, rel=1e-9)


def test_the_score_of_the_targets_themselves_is_0() -> None:
    data = changed(line(60), list(range(30)), 0.0)
    inputs = prepared(data)
    centre = torch.zeros(60, 1)
    exact = replace(data, y=inputs.scale.inverse(centre).numpy())  # type: ignore[union-attr]
    assert inputs.score(exact, torch.arange(60), centre) == 0


def test_early_stopping_has_a_best_epoch_whatever_is_held_out() -> None:
    far, how = changed(line(60), list(range(12)), 1e200), settings(validation_fraction=0.3, early_stopping=True)
    inputs = prepare(METHODS["huber"](), far, None, {}, how, torch.device("cpu"))
    assert np.abs(far.y[inputs.held]).max() == 1e200
    done = fit(METHODS["huber"](), factory(far), far, how, test=changed(line(30, seed=1), [4], 1e200))
    assert done.best_epoch >= 1
    assert all(0 < row[key] < 1e201 for row in done.history for key in ("val_rmse", "test_rmse"))
