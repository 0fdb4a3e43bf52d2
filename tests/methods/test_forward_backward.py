"""Loss correction against the paper, with the matrix known, read from a file, and estimated in a first training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.data.dataset import Data
from labelproof.engine.fitted import Fitted
from labelproof.engine.stages import fit
from labelproof.methods.backward import Backward
from labelproof.methods.ce import CE
from labelproof.methods.forward import Forward
from tests.reference.oracles import cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, settings

Z = np.random.default_rng(0).normal(size=(9, 3))
Y = np.random.default_rng(1).integers(0, 3, 9)
T = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.1, 0.1, 0.8]])
both = pytest.mark.parametrize("kind", [Forward, Backward])


def loss(method: Method) -> float:
    method.setup(Classification(3), 9, nn.Identity())
    batch = Batch(torch.arange(9), (torch.from_numpy(Z),), torch.from_numpy(Y))
    return float(method.loss(Nets([nn.Identity()]), batch, Clock(0, 1, 0, 1, torch.Generator())).value)


def pairflips(n: int, rate: float, seed: int = 0, spread: float = 0.6) -> Data:
    data = blobs(n, seed=seed, spread=spread)
    flip = np.random.default_rng(seed + 100).random(n) < rate
    return data.relabelled(np.where(flip, (data.y + 1) % 3, data.y))


def pairflip(rate: float) -> NDArray[np.float64]:
    return (1 - rate) * np.eye(3) + rate * np.roll(np.eye(3), 1, axis=1)


def accuracy(fitted: Fitted, spread: float = 0.6) -> float:
    clean = blobs(600, seed=9, spread=spread)
    return float((fitted.predict(clean.x).argmax(1) == clean.y).mean())


def train(method: Method, data: Data, **changes: Any) -> Fitted:
    how = settings(**{"epochs": 40, "batch_size": 64, "weight_decay": 0.0, **changes})
    return fit(method, factory(data, 128), data, how)


def test_forward_is_the_papers() -> None:
    p, want = softmax(Z), 0.0
    for i in range(9):
        want -= np.log(sum(p[i, k] * T[k, Y[i]] for k in range(3))) / 9
    assert loss(Forward(transition=T.tolist())) == pytest.approx(want, rel=1e-5)


def test_backward_is_the_papers() -> None:
    inverse, p, want = np.linalg.inv(T), softmax(Z), 0.0
    for i in range(9):
        want += sum(inverse[Y[i], j] * -np.log(p[i, j]) for j in range(3)) / 9
    assert loss(Backward(transition=T.tolist(), floor=0.0)) == pytest.approx(want, rel=1e-5)


def test_backwards_floor_bounds_each_loss() -> None:
    inverse, p, want = np.linalg.inv(T), softmax(Z), 0.0
    for i in range(9):
        want += sum(inverse[Y[i], j] * -np.log(max(p[i, j], 0.9 / 3)) for j in range(3)) / 9
    assert loss(Backward(transition=T.tolist(), floor=0.9)) == pytest.approx(want, rel=1e-5)


def test_without_a_matrix_the_loss_is_cross_entropy() -> None:
    want = cross_entropy(Z, one_hot(Y, 3)).mean()
    assert loss(Forward()) == pytest.approx(want, rel=1e-5)
    assert loss(Backward()) == pytest.approx(want, rel=1e-5)


@both
def test_the_matrix_may_be_a_file(kind: type[Method], tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", T)
    np.savetxt(tmp_path / "t.csv", T, delimiter=",")
    want = loss(kind(transition=T))
    for name in ("t.npy", "t.csv"):
        m = kind(transition=str(tmp_path / name))
        assert m.get_params()["transition"] == str(tmp_path / name), "stored unchanged"
        assert loss(m) == pytest.approx(want)


@both
def test_the_true_matrix_recovers_the_clean_classes(kind: type[Method]) -> None:
    data = pairflips(600, 0.4)
    base, ours = (accuracy(train(m, data)) for m in (CE(), kind(transition=pairflip(0.4).tolist())))
    assert ours > base + 0.12, (base, ours)
    assert ours > 0.85


@both
def test_the_matrix_is_estimated_in_a_first_training(kind: type[Method]) -> None:
    """Well separated classes have anchors: T comes out, and with it most of what the true one is worth."""
    data = pairflips(2000, 0.3, spread=0.3)
    given = kind()
    fitted = train(given, data, epochs=10)
    estimate = np.array(fitted.method.get_params()["transition"])
    assert np.abs(estimate - pairflip(0.3)).max() < 0.15
    assert accuracy(fitted, 0.3) > 0.95
    assert given.get_params()["transition"] is None, "the user's own object stays as it is"
    assert len(fitted.history) == 10, "early stopping is the first training's"
    assert len(fitted.held) == 0


def test_calibration_sees_the_noise_that_a_network_has_memorised() -> None:
    """40 % wrong labels learned by heart: uncalibrated predictions show about half of them."""
    data = blobs(400, flips=0.4)
    shown = []
    for calibrated in (False, True):
        fitted = train(Forward(calibrated=calibrated), data, epochs=60)
        shown.append(1 - np.diag(fitted.method.get_params()["transition"]).mean())
    assert shown[0] < 0.3
    assert abs(shown[1] - 0.4) < 0.1, shown


@both
def test_the_stages_and_what_they_are_given(kind: type[Method]) -> None:
    calls: list[tuple[Method, str, dict[str, Any]]] = []

    class Stub:
        held = np.array([0, 1])

        def predict(self, x: Any) -> NDArray[np.float32]:
            return np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], dtype=np.float32)

    def once(method: Method, data: Data, *, stage: str = "", **changes: Any) -> Stub:
        calls.append((method, stage, changes))
        return Stub()

    data = Data(np.zeros((3, 1), np.float32), np.array([0, 1, 0]), classes=np.arange(2))
    m = kind(percentile=100, calibrated=False)
    m.run(once, data)
    (first, stage, changes), (second, last, rest) = calls
    assert first is m
    assert (stage, changes) == ("transition", {"early_stopping": True, "validation_fraction": 0.1})
    assert (last, rest) == ("", {})
    np.testing.assert_allclose(second.get_params()["transition"], [[0.9, 0.1], [0.2, 0.8]], atol=1e-6)
    assert {**second.get_params(), "transition": None} == m.get_params()
    calls.clear()
    kind(transition=[[1, 0], [0, 1]]).run(once, data)
    assert [stage for _, stage, _ in calls] == [""], "a given matrix needs no first training"


def test_a_killed_run_goes_on_with_the_same_estimate(tmp_path: Path) -> None:
    data = pairflips(120, 0.3)

    def run(folder: Path, resume: bool) -> Fitted:
        return fit(Forward(), factory(data), data, settings(epochs=4), folder=folder, resume=resume)

    whole = run(tmp_path / "a", False)
    again = run(tmp_path / "a", True)
    assert again.method.get_params() == whole.method.get_params()
    np.testing.assert_array_equal(again.predict(data.x), whole.predict(data.x))


def test_a_singular_matrix_is_for_forward_alone() -> None:
    half = [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match=r"condition number is .* use method 'forward'"):
        Backward(transition=half).setup(Classification(2), 9, nn.Identity())
    Forward(transition=half).setup(Classification(2), 9, nn.Identity())


@both
def test_bad_values_are_named(kind: type[Method]) -> None:
    with pytest.raises(ValueError, match=r"transition has shape \(3, 3\) and must be \(4, 4\)"):
        kind(transition=T).setup(Classification(4), 9, nn.Identity())
    with pytest.raises(ValueError, match=r"percentile=0 must lie in \(0, 100\]"):
        kind(percentile=0)
    with pytest.raises(ValueError, match=r"floor=1\.0 must lie in \[0, 1\)"):
        Backward(floor=1.0)
