"""Cross-entropy and its options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.data.seeds import generator
from labelproof.functional.mixing import Mixup
from labelproof.methods import CE
from tests.reference.oracles import cross_entropy, one_hot

Z = np.random.default_rng(0).normal(size=(9, 4))
Y = np.random.default_rng(1).integers(0, 4, 9)


def loss(method: CE, seed: int = 0) -> float:
    method.setup(Classification(4), 9, nn.Identity())
    batch = Batch(torch.arange(9), (torch.from_numpy(Z),), torch.from_numpy(Y))
    return float(method.loss(Nets([nn.Identity()]), batch, Clock(0, 1, 0, 1, generator(seed, "t"))).value)


def test_plain() -> None:
    assert loss(CE()) == pytest.approx(cross_entropy(Z, one_hot(Y, 4)).mean())


def test_label_smoothing() -> None:
    q = 0.9 * one_hot(Y, 4) + 0.1 / 4
    assert loss(CE(label_smoothing=0.1)) == pytest.approx(cross_entropy(Z, q).mean())


def test_mixup_mixes_inputs_and_labels_alike() -> None:
    mix = Mixup.draw(0.5, torch.from_numpy(Z), generator(3, "t"))
    perm, q = mix.perm.numpy(), one_hot(Y, 4)
    z = mix.lam * Z + (1 - mix.lam) * Z[perm]
    want = cross_entropy(z, mix.lam * q + (1 - mix.lam) * q[perm]).mean()
    assert loss(CE(mixup=0.5), seed=3) == pytest.approx(want)


def test_mixup_draws_are_beta() -> None:
    draws = [Mixup.draw(2.0, torch.zeros(1), generator(s, "t")).lam for s in range(2000)]
    folded = np.maximum(b := np.random.default_rng(0).beta(2, 2, 20000), 1 - b)
    assert min(draws) >= 0.5
    assert np.mean(draws) == pytest.approx(folded.mean(), abs=0.01)
    assert np.std(draws) == pytest.approx(folded.std(), abs=0.01)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1 must lie in \[0, 1\)"):
        CE(label_smoothing=1)
    with pytest.raises(ValueError, match=r"mixup=-0\.5 must lie in \[0, inf\)"):
        CE(mixup=-0.5)
