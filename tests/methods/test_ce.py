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
from labelproof.engine.stages import fit
from labelproof.functional.mixing import Mixup
from labelproof.methods import CE
from tests.reference.oracles import cross_entropy, one_hot
from tests.toy import blobs, factory, settings

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


def test_early_learning_is_kept_once_it_has_ended() -> None:
    """A network that memorises: from the end of early learning on, predictions are those of that time."""
    gains = []
    for seed in range(3):
        data, test = blobs(600, flips=0.4, spread=0.4, seed=seed), blobs(300, spread=0.4, seed=7)
        how = settings(epochs=60, batch_size=64, lr=0.05, weight_decay=0.0, seed=seed)
        plain, kept = (fit(CE(early_learning=r), factory(data, 256), data, how, test=test).history for r in (0.0, 0.9))
        assert [row["agree"] for row in plain] == [row["agree"] for row in kept], "training itself goes on unchanged"
        scores = [row["test_accuracy"] for row in kept]
        end = next(e for e in range(60) if len(set(scores[e:])) == 1)
        assert 1 < end < 55
        assert scores[:end] == [row["test_accuracy"] for row in plain[:end]]
        gains.append(scores[-1] - plain[-1]["test_accuracy"])
    assert np.mean(gains) > 0.05, gains


def test_early_learning_cannot_be_watched_through_mixup() -> None:
    with pytest.raises(ValueError, match=r"early_learning=0.9 watches plain predictions, mixup=1.0 makes none"):
        CE(early_learning=0.9, mixup=1.0)


def test_early_stopping_gives_back_the_network_that_predicted_then() -> None:
    """The kept network is part of what is restored: predictions are those whose score was the best."""
    data, test = blobs(300, flips=0.4, spread=0.4), blobs(300, spread=0.4, seed=7)
    how = settings(epochs=12, lr=0.2, early_stopping=True, patience=12, validation_fraction=0.2)
    r = fit(CE(early_learning=0.5), factory(data, 256), data, how, test=test)
    assert r.best_epoch < 12
    got = (r.predict(np.asarray(test.x)).argmax(1) == test.y).mean()
    assert got == pytest.approx(r.history[r.best_epoch - 1]["test_accuracy"], abs=1e-6)
