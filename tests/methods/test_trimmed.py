"""The trimmed loss against loops straight from its definition. On a real table: test_huber.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labelproof.core.nets import Nets
from labelproof.core.task import Classification, Regression
from labelproof.core.types import Batch, Clock, Loss
from labelproof.engine.stages import fit
from labelproof.methods import CE, Trimmed
from tests.toy import blobs, factory, line, settings

N = 24


def at(epoch: int, step: int = 0) -> Clock:
    return Clock(epoch, 10, step, 3, torch.Generator())


def method(**options: Any) -> tuple[Trimmed, Nets]:
    m = Trimmed(**options)
    m.setup(Regression(1), N, nn.Identity())
    return m, Nets([nn.Identity()])


def step(m: Trimmed, nets: Nets, rows: Any, losses: Any, epoch: int) -> tuple[Loss, torch.Tensor]:
    """A batch that has exactly these losses, ½ r² of residuals √(2 ℓ)."""
    x = torch.tensor(2 * np.asarray(losses, float)).float().sqrt()[:, None].requires_grad_()
    return m.loss(nets, Batch(torch.tensor(rows), (x,), torch.zeros(len(x), 1)), at(epoch)), x


def no_scan(*_: Any, **__: Any) -> Any:
    raise AssertionError("no further pass over the data")


@pytest.mark.parametrize(("rate", "warmup"), [(0.25, 1), (0.4, 3), (0.0, 1)])
def test_equals_the_definition_over_epochs(rate: float, warmup: int) -> None:
    """20 of 24 samples are trained on (the rest are held out), in batches of 8, 8 and 4."""
    rng = np.random.default_rng(0)
    m, nets = method(noise_rate=rate, warmup=warmup)
    table: dict[int, float] = {}
    q = np.inf
    for epoch in range(6):
        rows, losses = rng.permutation(20), np.exp(rng.normal(size=20) * 2)
        for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
            index, each = rows[part], losses[part].astype(np.float32)
            w = np.array([1.0 if loss <= q else 0.0 for loss in each])
            w[each.argmin()] = 1
            divisor = max(sum(w), (1 - rate) * len(each))
            got, x = step(m, nets, index, each, epoch)
            assert got.trust.tolist() == w.tolist()  # type: ignore[union-attr]
            assert got.value.item() == pytest.approx(sum(w * each) / divisor, rel=1e-5)
            got.value.backward()
            want = w[:, None] * np.sqrt(2 * each)[:, None] / divisor
            np.testing.assert_allclose(x.grad, want, rtol=1e-5)  # type: ignore[arg-type]
            table |= dict(zip(index.tolist(), each.tolist(), strict=True))
        m.after_epoch(nets, no_scan, at(epoch, 3))
        if epoch + 1 >= warmup and rate > 0:
            q = sorted(table.values())[int((1 - rate) * 20 + 1e-9) - 1]
        assert float(m.q) == pytest.approx(q, rel=1e-6)
    assert (q < np.inf) == (rate > 0)


def test_where_all_losses_are_above_the_level_the_smallest_is_kept_and_weighs_little() -> None:
    m, nets = method(noise_rate=0.5)
    step(m, nets, range(N), np.linspace(0.1, 1, N), 0)
    m.after_epoch(nets, no_scan, at(0, 3))
    got, _ = step(m, nets, range(8), [9.0, 8, 7, 6, 5, 4, 3, 5], 1)
    assert got.trust.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]  # type: ignore[union-attr]
    assert got.value.item() == pytest.approx(3 / (0.5 * 8))


def test_samples_left_out_are_looked_at_again() -> None:
    """What is dropped in one epoch is kept in the next where its loss has fallen: no decision is final."""
    m, nets = method(noise_rate=0.25)
    losses = np.arange(1.0, N + 1)
    for epoch, kept in ((0, N), (1, 18), (2, 18)):
        got, _ = step(m, nets, range(N), losses, epoch)
        assert float(got.trust.sum()) == kept  # type: ignore[union-attr]
        assert float(got.log["kept"]) == pytest.approx(kept / N)
        m.after_epoch(nets, no_scan, at(epoch, 3))
        losses = losses[::-1] if epoch == 1 else losses
    assert got.trust[-1] == 1  # type: ignore[index]
    assert got.trust[0] == 0  # type: ignore[index]


def test_a_loss_that_overflowed_is_dropped_and_not_remembered() -> None:
    m, nets = method(noise_rate=0.25)
    step(m, nets, range(4), [1.0, 2, 3, 4], 0)
    got, _ = step(m, nets, range(4), [np.nan, 2, 3, 4], 1)
    assert got.trust.tolist() == [0, 1, 1, 1]  # type: ignore[union-attr]
    assert torch.isfinite(got.value)
    assert m.losses.values[:5, 0].tolist() == pytest.approx([1, 2, 3, 4, -1])


def test_level_and_losses_are_in_every_checkpoint() -> None:
    m, _ = method()
    assert sorted(m.state_dict()) == ["losses.store.values", "q"]


def test_held_out_samples_do_not_move_the_level() -> None:
    data = line(200, outliers=0.2)
    r = fit(Trimmed(noise_rate=0.2), factory(data), data, settings(epochs=4, validation_fraction=0.3))
    losses = r.method.losses.values[:, 0]
    assert (losses[r.held] == -1).all()
    assert (losses[r.rows] >= 0).all()
    want = np.sort(losses[r.rows].numpy())[int(0.8 * len(r.rows) + 1e-6) - 1]
    assert float(r.method.q) == pytest.approx(float(want))


@pytest.mark.parametrize("memory", ["fp16", "cpu", "mmap", "topk:2"])
def test_losses_may_be_kept_in_any_memory(memory: str) -> None:
    data = line(97, outliers=0.2)
    a, b = (fit(Trimmed(), factory(data), data, settings(epochs=4, memory=m)) for m in ("dense", memory))
    assert float(b.method.q) == pytest.approx(float(a.method.q), rel=0.05)


def test_it_drops_wrong_labels_and_beats_cross_entropy() -> None:
    data, clean = blobs(300, flips=0.4), blobs(600, seed=9)
    how = settings(epochs=40, weight_decay=0.0)
    base, ours = (fit(m, factory(data, 256), data, how) for m in (CE(), Trimmed(noise_rate=0.4)))
    scores = [(f.predict(clean.x).argmax(1) == clean.y).mean() for f in (base, ours)]
    assert scores[1] > scores[0] + 0.1
    assert ours.history[-1]["label_precision"] > 0.8


def test_the_rate_is_estimated_first_where_it_is_auto() -> None:
    data = blobs(300, flips=0.3)
    r = fit(Trimmed(noise_rate="auto"), factory(data), data, settings(epochs=20))
    assert r.method.noise_rate == pytest.approx(0.3, abs=0.1)
    m = Trimmed(noise_rate="auto")
    m.setup(Classification(2), 4, nn.Identity())
    batch = Batch(torch.arange(4), (torch.zeros(4, 2),), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"is estimated by Method\.run"):
        m.loss(Nets([nn.Identity()]), batch, at(0))


def test_a_warmup_without_end_is_said() -> None:
    m, nets = method(warmup=10)
    with pytest.warns(UserWarning, match="warmup=10 lasts for all epochs=10"):
        step(m, nets, [0, 1], [1.0, 2.0], 0)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_rate=1\.0 must lie in \[0, 1\)"):
        Trimmed(noise_rate=1.0)
    with pytest.raises(ValueError, match="noise_rate='much' must be a number"):
        Trimmed(noise_rate="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warmup=0 must lie in \[1, inf\)"):
        Trimmed(warmup=0)
