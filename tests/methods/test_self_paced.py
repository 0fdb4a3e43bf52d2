"""Self-paced learning against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification, Regression
from labelproof.core.types import Batch, Clock
from labelproof.engine.stages import fit
from labelproof.methods.ce import CE
from labelproof.methods.self_paced import SelfPaced
from tests.reference.oracles import cross_entropy, one_hot
from tests.toy import blobs, factory, settings

Z = np.random.default_rng(0).normal(size=(12, 4))
Y = np.random.default_rng(1).integers(0, 4, 12)


def at(epoch: int) -> Clock:
    return Clock(epoch, 30, 0, 1, torch.Generator())


def batch() -> Batch:
    return Batch(torch.arange(12), (torch.from_numpy(Z).requires_grad_(),), torch.from_numpy(Y))


@pytest.mark.parametrize(
    ("rate", "gradual", "exponent"), [(0.4, 10, 1.0), (0.45, 5, 2.0), (0.9, 1, 0.5), (0.0, 10, 1.0)]
)
@pytest.mark.parametrize("epoch", [0, 4, 20])
def test_equals_the_definition(rate: float, gradual: int, exponent: float, epoch: int) -> None:
    m = SelfPaced(noise_rate=rate, num_gradual=gradual, exponent=exponent)
    m.setup(Classification(4), 12, nn.Identity())
    each = cross_entropy(Z, one_hot(Y, 4))
    keep = 1 - rate * min((epoch + 1) ** exponent / gradual, 1)
    kept = sorted(range(12), key=lambda i: each[i])[: max(1, int(np.floor(keep * 12 + 1e-9)))]
    got = m.loss(Nets([nn.Identity()]), batch(), at(epoch))
    assert got.value.item() == pytest.approx(sum(each[i] for i in kept) / len(kept), rel=1e-5)
    assert got.trust is not None
    assert set(np.flatnonzero(got.trust.numpy())) == set(kept)


def test_dropped_samples_have_no_gradient() -> None:
    m, b = SelfPaced(noise_rate=0.5, num_gradual=1), batch()
    m.setup(Classification(4), 12, nn.Identity())
    got = m.loss(Nets([nn.Identity()]), b, at(0))
    got.value.backward()
    assert got.trust is not None
    assert b.x.grad is not None
    assert torch.equal(b.x.grad.abs().sum(1) > 0, got.trust > 0)


def test_regression_drops_outliers() -> None:
    m = SelfPaced(noise_rate=0.25, num_gradual=1)
    m.setup(Regression(1), 4, nn.Identity())
    x = torch.tensor([[0.0], [0.0], [0.0], [0.0]])
    got = m.loss(Nets([nn.Identity()]), Batch(torch.arange(4), (x,), torch.tensor([[1.0], [-9], [0], [1]])), at(0))
    assert got.trust is not None
    assert got.trust.tolist() == [1, 0, 1, 1]
    assert float(got.value) == pytest.approx(1 / 3)


def test_it_drops_wrong_labels_and_beats_cross_entropy() -> None:
    data, clean = blobs(300, flips=0.4), blobs(600, seed=9)
    how = settings(epochs=40, weight_decay=0.0)
    base, ours = (fit(m, factory(data, 256), data, how) for m in (CE(), SelfPaced(noise_rate=0.4)))
    scores = [(f.predict(clean.x).argmax(1) == clean.y).mean() for f in (base, ours)]
    assert scores[1] > scores[0] + 0.1
    assert ours.history[-1]["label_precision"] > 0.8


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_rate=1\.0 must lie in \[0, 1\)"):
        SelfPaced(noise_rate=1.0)
    with pytest.raises(ValueError, match=r"num_gradual=0 must lie in \[1, inf\)"):
        SelfPaced(num_gradual=0)
    with pytest.raises(ValueError, match=r"exponent=0 must lie in \(0, inf\)"):
        SelfPaced(exponent=0)
