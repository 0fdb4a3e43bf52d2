"""GCE, MAE and SCE against their definitions, and against the slips of released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.engine.stages import fit
from labelproof.functional.losses import generalised_cross_entropy
from labelproof.methods import GCE, MAE, SCE
from tests.reference.oracles import cross_entropy, one_hot, softmax
from tests.toy import blobs, factory, settings

Z = 2 * np.random.default_rng(0).normal(size=(9, 4))
Y = np.random.default_rng(1).integers(0, 4, 9)
P_Y = softmax(Z)[np.arange(9), Y]


def loss(method: Method, z: np.ndarray = Z) -> float:
    method.setup(Classification(4), 9, nn.Identity())
    batch = Batch(torch.arange(9), (torch.from_numpy(z),), torch.from_numpy(Y))
    return float(method.loss(Nets([nn.Identity()]), batch, Clock(0, 1, 0, 1, torch.Generator())).value)


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_gce_is_the_papers(q: float) -> None:
    assert loss(GCE(q=q)) == pytest.approx(np.mean([(1 - p**q) / q for p in P_Y]), rel=1e-5)


def test_gce_goes_from_cross_entropy_to_half_mae() -> None:
    assert loss(GCE(q=1e-4)) == pytest.approx(cross_entropy(Z, one_hot(Y, 4)).mean(), rel=1e-3)
    assert loss(GCE(q=1.0)) == pytest.approx(loss(MAE()) / 2)


def test_mae_is_the_l1_distance() -> None:
    assert loss(MAE()) == pytest.approx(np.abs(softmax(Z) - one_hot(Y, 4)).sum(1).mean(), rel=1e-5)


def test_sce_is_the_papers() -> None:
    q = np.where(one_hot(Y, 4) > 0, 0.0, -4.0)  # log of the one-hot label, log 0 taken as -4
    rce = -(softmax(Z) * q).sum(1)
    want = (0.3 * cross_entropy(Z, one_hot(Y, 4)) + 0.7 * rce).mean()
    assert loss(SCE(alpha=0.3, beta=0.7)) == pytest.approx(want, rel=1e-5)


def test_gradients_are_finite_where_the_probability_underflows() -> None:
    """(1 - p^q) / q as written has an infinite gradient at p = 0, and NaN behind the softmax."""
    z = torch.tensor([[0.0, 500.0]], requires_grad=True)
    generalised_cross_entropy(z, torch.tensor([0]), 0.7).sum().backward()
    assert torch.isfinite(z.grad).all()


def test_pruning_drops_what_the_network_does_not_believe() -> None:
    data = blobs(300, flips=0.3)
    r = fit(GCE(k=0.5, prune_from=4, prune_every=100), factory(data), data, settings(epochs=6, lr=0.2))
    pruned = r.method.pruned.values[:, 0].bool().numpy()
    wrong = data.y != data.truth
    assert pruned[wrong].mean() > 0.8
    assert pruned[~wrong].mean() < 0.2
    assert "label_precision" in r.history[-1]


def test_pruned_samples_count_as_a_constant() -> None:
    m = GCE(q=0.5, k=0.25)
    m.setup(Classification(4), 9, nn.Identity())
    m.pruned.values[:4] = 1
    batch = Batch(torch.arange(9), (torch.from_numpy(Z),), torch.from_numpy(Y))
    got = float(m.loss(Nets([nn.Identity()]), batch, Clock(0, 1, 0, 1, torch.Generator())).value)
    lq = [(1 - p**0.5) / 0.5 for p in P_Y]
    assert got == pytest.approx((4 * (1 - 0.25**0.5) / 0.5 + sum(lq[4:])) / 9, rel=1e-5)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"q=0 must lie in \(0, 1\]"):
        GCE(q=0)
    with pytest.raises(ValueError, match=r"k=1 must lie in \[0, 1\)"):
        GCE(k=1)
    with pytest.raises(ValueError, match=r"log_zero=1 must lie in \(-inf, 0\)"):
        SCE(log_zero=1)
