"""Bootstrapping against the paper. The per-sample loss itself is tested in tests/functional/test_losses.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.methods.bootstrap import Bootstrap
from labelproof.methods.ce import CE
from tests.reference.oracles import one_hot, softmax
from tests.toy import blobs, factory, settings

Z = 2 * np.random.default_rng(0).normal(size=(9, 4))
Y = np.random.default_rng(1).integers(0, 4, 9)


def loss(method: Bootstrap, z: torch.Tensor) -> Loss:
    method.setup(Classification(4), 9, nn.Identity())
    batch = Batch(torch.arange(9), (z,), torch.from_numpy(Y))
    return method.loss(Nets([nn.Identity()]), batch, Clock(0, 1, 0, 1, torch.Generator()))


@pytest.mark.parametrize(
    ("method", "beta", "hard"),
    [
        (Bootstrap(), 0.8, True),
        (Bootstrap(kind="soft"), 0.95, False),
        (Bootstrap(beta=0.3), 0.3, True),
        (Bootstrap(kind="soft", beta=0.0), 0.0, False),
    ],
)
def test_equals_the_paper(method: Bootstrap, beta: float, hard: bool) -> None:
    p, y, total = softmax(Z), one_hot(Y, 4), 0.0
    for i in range(9):
        own = np.eye(4)[p[i].argmax()] if hard else p[i]
        for k in range(4):
            total -= (beta * y[i, k] + (1 - beta) * own[k]) * np.log(p[i, k])
    got = loss(method, torch.from_numpy(Z))
    assert float(got.value) == pytest.approx(total / 9, rel=1e-5)
    assert got.out is not None


def test_the_soft_gradient_flows_through_the_prediction() -> None:
    """d/dz of the entropy is -p (log p + H): with p detached it would be another loss."""
    z = torch.from_numpy(Z).requires_grad_()
    loss(Bootstrap(kind="soft", beta=0.0), z).value.backward()
    p = softmax(Z)
    entropy = -(p * np.log(p)).sum(1, keepdims=True)
    np.testing.assert_allclose(z.grad, -p * (np.log(p) + entropy) / 9, atol=1e-6)


def test_the_defaults_are_kept_as_given() -> None:
    assert Bootstrap().get_params() == {"kind": "hard", "beta": None}
    assert repr(Bootstrap(kind="soft", beta=0.9)) == "Bootstrap(kind='soft', beta=0.9)"


def test_it_memorises_less_than_cross_entropy() -> None:
    data, clean = blobs(400, flips=0.4), blobs(600, seed=9)
    how = settings(epochs=60, batch_size=64, weight_decay=0.0)
    scores = [
        (fit(m, factory(data, 256), data, how).predict(clean.x).argmax(1) == clean.y).mean()
        for m in (CE(), Bootstrap(beta=0.5))
    ]
    assert scores[1] > scores[0] + 0.05


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="kind='medium' must be 'hard' or 'soft'"):
        Bootstrap(kind="medium")
    with pytest.raises(ValueError, match=r"beta=1\.1 must lie in \[0, 1\]"):
        Bootstrap(beta=1.1)
