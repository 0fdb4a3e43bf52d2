"""D2L: dimensionality, turning point, rollback and the labels after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.engine.stages import fit
from labelproof.functional.lid import local_intrinsic_dimensionality
from labelproof.methods import D2L
from tests.toy import blobs, factory, settings


def oracle(x: np.ndarray, k: int) -> np.ndarray:
    out = []
    for i in range(len(x)):
        r = np.sort([np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i])[:k]
        out.append(-1 / np.mean([np.log(each / r[-1]) for each in r]))
    return np.array(out)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_dimensionality_is_the_estimators_and_near_the_truth(dims: int) -> None:
    inside = np.random.default_rng(0).normal(size=(400, dims))
    x = inside @ np.random.default_rng(1).normal(size=(dims, 30))  # a plane of that dimension in a larger space
    got = local_intrinsic_dimensionality(torch.from_numpy(x), 20).numpy()
    np.testing.assert_allclose(got, oracle(x, 20), rtol=1e-3)
    assert np.median(got) == pytest.approx(dims, rel=0.25)


def test_equal_rows_do_not_break_it() -> None:
    x = torch.zeros(30, 4)
    x[10:] = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert not local_intrinsic_dimensionality(x, 5).isnan().any()
    with pytest.raises(ValueError, match="at least 3 rows"):
        local_intrinsic_dimensionality(x[:2], 5)


NOW = torch.Generator()


class Scripted:
    """A scan whose features have the dimension the script says, epoch by epoch."""

    def __init__(self, dims: list[int]) -> None:
        self.dims, self.epoch = dims, 0

    def __call__(self, f: Any, *, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(self.epoch)
        d = self.dims[self.epoch]
        x = rng.normal(size=(rows, d)) @ np.random.default_rng(d).normal(size=(d, 24))
        self.epoch += 1
        return torch.arange(rows or 0), torch.from_numpy(x).float()


def test_turns_where_dimensionality_jumps_and_goes_one_epoch_back() -> None:
    """Equations (2) and (3), with weights that name the epoch they are of."""
    method, net = D2L(initial=3, window=3), nn.Linear(2, 2)
    method.setup(Classification(2), 10, net)
    nets, scan = Nets([net]), Scripted([6, 5, 4, 4, 4, 12, 12, 10])
    alphas = []
    for epoch in range(8):
        nn.init.constant_(net.weight, epoch)
        method.after_epoch(nets, scan, Clock(epoch, 8, 0, 1, torch.Generator()))
        alphas.append(float(method.alpha))
        assert float(net.weight[0, 0]) == (4 if epoch == 5 else epoch)
    assert alphas[:5] == [1.0] * 5
    lid = method.lid.values.numpy()
    for epoch in (5, 6, 7):
        assert alphas[epoch] == pytest.approx(np.exp(-(epoch + 1) / 8 * lid[epoch] / lid[:epoch].min()), rel=1e-4)


def test_no_turn_in_the_initial_phase() -> None:
    method, net = D2L(initial=7, window=3), nn.Linear(2, 2)
    method.setup(Classification(2), 10, net)
    scan = Scripted([6, 5, 4, 4, 4, 12, 12])
    for epoch in range(7):
        method.after_epoch(Nets([net]), scan, Clock(epoch, 8, 0, 1, torch.Generator()))
    assert float(method.alpha) == 1


def test_labels_after_the_turn_are_the_papers() -> None:
    z, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    method = D2L()
    method.setup(Classification(3), 6, nn.Linear(3, 3))
    method.alpha.fill_(0.3)
    got = method.loss(Nets([nn.Identity()]), Batch(torch.arange(6), (z,), y), Clock(9, 10, 0, 1, torch.Generator()))
    p = z.double().softmax(1).numpy()
    want = [-(0.3 * np.log(p[i, y[i]]) + 0.7 * np.log(p[i].max())) for i in range(6)]
    assert float(got.value) == pytest.approx(float(np.mean(want)), rel=1e-5)


def test_works_with_a_network_of_ones_own() -> None:
    data = blobs(300, flips=0.4)
    r = fit(D2L(initial=2, window=2, group=64, groups=3), factory(data, 128), data, settings(epochs=6))
    assert len(r.method.lid.values) == 6
    assert "alpha" in r.history[-1]
    with pytest.raises(ValueError, match=r"Flatten has no Linear layer: add features\(x\)"):
        from labelproof.core.nets import features

        features(nn.Flatten(), torch.ones(2, 3))


def test_an_epoch_of_collapsed_features_is_passed_over() -> None:
    method, net = D2L(initial=2, window=2), nn.Linear(2, 2)
    method.setup(Classification(2), 10, net)
    for epoch in range(4):
        method.after_epoch(
            Nets([net]), lambda f, rows=None: (torch.arange(256), torch.ones(256, 4)), Clock(epoch, 8, 0, 1, NOW)
        )
    assert len(method.lid.values) == 0
    assert float(method.alpha) == 1
