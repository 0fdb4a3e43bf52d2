"""Class-balanced sampling: how many of each class, which ones, and that nothing but seed and epoch decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelproof.core.types import Loss
from labelproof.data.dataset import Data
from labelproof.data.feed import DeviceFeed, StreamFeed
from labelproof.data.strata import Strata
from labelproof.data.transforms import Standardise
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import CE, ELR, METHODS, MSE, MentorNetDD
from tests.toy import blobs, eager, factory, line, same, settings, streams

#: 60, 30, 7 and 3 samples, shuffled.
SKEWED = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [60, 30, 7, 3]))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed(n: int = 300, rare: int = 5) -> Data:
    """Three classes, the last of which has few samples."""
    data = blobs(n)
    few = np.flatnonzero(data.y == 2)[:rare]
    return data.take(np.sort(np.concatenate([np.flatnonzero(data.y != 2), few])))


@pytest.mark.parametrize("size", [4, 40, 100, 400])
def test_each_class_as_often_and_repeats_spread_evenly(size: int) -> None:
    """By counting: no class more than another, no sample of a class twice more often than another of it."""
    strata = Strata(SKEWED, size)
    for seed in range(5):
        order = strata.draw(rng(seed)).numpy()
        assert len(order) == size
        assert np.bincount(SKEWED[order], minlength=4).tolist() == [size // 4] * 4
        times = np.bincount(order, minlength=100)
        for c in range(4):
            mine = times[c == SKEWED]
            assert mine.max() - mine.min() <= 1
            assert mine.max() == -(-(size // 4) // len(mine))


def test_what_is_left_over_goes_to_other_classes_each_time() -> None:
    strata, extra = Strata(SKEWED, 42), np.zeros(4)
    for seed in range(60):
        counts = np.bincount(SKEWED[strata.draw(rng(seed)).numpy()], minlength=4)
        assert sorted(counts) == [10, 10, 11, 11]
        extra += counts == 11
    assert extra.sum() == 120
    assert extra.min() > 15


def test_the_majority_is_gone_through_over_the_epochs() -> None:
    strata = Strata(SKEWED, 40)
    seen = np.unique(np.concatenate([strata.draw(rng(seed)).numpy() for seed in range(40)]))
    assert seen.tolist() == list(range(100)), "ten of sixty per epoch, other ones each time"


def test_order_is_mixed() -> None:
    """Runs of one class would be batches of one class."""
    labels = SKEWED[Strata(SKEWED, 400).draw(rng()).numpy()]
    changes = (labels[1:] != labels[:-1]).mean()
    assert 0.65 < changes < 0.85


def test_codes_of_any_kind() -> None:
    """Classes of which no sample is there take no share; codes need be neither small nor in a row."""
    y = np.array([5] * 6 + [900] * 2, dtype=np.uint16)
    order = Strata(y, 8).draw(rng()).numpy()
    assert np.unique(y[order], return_counts=True)[1].tolist() == [4, 4]


def test_what_cannot_be_balanced_is_refused() -> None:
    for y in (np.zeros((5, 1)), np.linspace(0, 1, 5), np.zeros((5, 1), dtype=np.int64)):
        with pytest.raises(ValueError, match=r"sampling='balanced' is for classes, .*: use sampling='all'"):
            Strata(y, 5)
    with pytest.raises(ValueError, match=r"epoch_samples=3 is less than one of each of the 4 classes"):
        Strata(SKEWED, 3)
    with pytest.raises(ValueError, match="sampling='balanced' is for classes"):
        fit(MSE(), factory(line()), line(), settings(sampling="balanced"))
    with pytest.raises(ValueError, match=r"epoch_samples=4 is less than one of each of the 5 classes"):
        data = blobs(97, 5)
        fit(CE(), factory(data), data, settings(sampling="balanced", epoch_samples=4))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown sampling 'balance': did you mean 'balanced'\?"):
        settings(sampling="balance")
    with pytest.raises(ValueError, match=r"epoch_samples=50 is for sampling='balanced': give that as well"):
        settings(epoch_samples=50)
    with pytest.raises(ValueError, match=r"epoch_samples=1 must lie in \[2, inf\)"):
        settings(sampling="balanced", epoch_samples=1)


class Base:
    """A map-style data set of rows that are their own ids."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((1,), float(i))


def feeds(seed: int = 0, size: int = 40) -> list[Any]:
    common: dict[str, Any] = {
        "standardise": Standardise(torch.zeros(1), torch.ones(1), 1),
        "device": torch.device("cpu"),
        "batch_size": 12,
        "seed": seed,
        "balanced": size,
    }
    rows = np.arange(20, 100)
    x = np.arange(100, dtype=np.float32)[:, None]
    return [DeviceFeed(x, SKEWED, rows, **common), StreamFeed(Base(), SKEWED, rows, **common)]


def test_feeds_take_their_own_rows_with_their_labels() -> None:
    for feed in feeds():
        assert feed.steps == 4
        batches = list(feed.epoch(0))
        assert [len(b.index) for b in batches] == [12, 12, 12, 4]
        ids = torch.cat([b.index for b in batches])
        assert set(ids.tolist()) <= set(range(20, 100))
        assert torch.equal(torch.cat([b.x for b in batches])[:, 0].long(), ids)
        assert torch.cat([b.target for b in batches]).tolist() == SKEWED[ids].tolist()
        assert torch.bincount(torch.from_numpy(SKEWED)[ids]).tolist() == [10] * 4


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    one, other = feeds(), feeds()
    first = [[b.index.tolist() for b in feed.epoch(3)] for feed in one]
    assert first[0] == first[1], "streamed or not"
    assert list(other[0].epoch(7))
    torch.rand(5)
    assert [b.index.tolist() for b in other[0].epoch(3)] == first[0]
    assert [b.index.tolist() for b in other[0].epoch(3, start=2)] == first[0][2:], "from the middle of an epoch"
    assert [b.index.tolist() for b in one[0].epoch(4)] != first[0]
    assert [b.index.tolist() for b in feeds(seed=1)[0].epoch(3)] != first[0]


def test_evaluation_sees_each_sample_once() -> None:
    for feed in feeds():
        assert torch.cat([b.index for b in feed.ordered(32)]).tolist() == list(range(20, 100))


@pytest.mark.parametrize("size", [None, 30, 700])
def test_training_takes_so_many_of_each_class(size: int | None) -> None:
    data, seen = skewed(), []

    class Watched(CE):
        def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
            seen.append((now.epoch, now.steps_per_epoch, batch.index.clone()))
            return super().loss(nets, batch, now)

    r = fit(Watched(), factory(data), data, settings(epochs=2, sampling="balanced", epoch_samples=size))
    expected = size or len(data)
    for epoch in range(2):
        ids = torch.cat([index for e, _, index in seen if e == epoch])
        counts = np.bincount(data.y[ids.numpy()], minlength=3)
        assert counts.sum() == expected
        assert counts.max() - counts.min() <= 1
    assert len(seen) == 2 * seen[0][1] == 2 * -(-expected // 32)
    assert r.evidence.visits.sum() == 2 * expected
    assert np.isfinite(r.belief()).all(), "of those that were never drawn as well"
    np.testing.assert_allclose(r.belief().sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "classification" in m.tasks])
def test_samples_never_drawn_and_drawn_twice_are_believed_to_be_something(name: str) -> None:
    """Tables are written at repeated ids of a batch, and rows that no epoch took are no row of zeros in the end."""
    data = skewed()
    r = fit(
        eager(name),
        factory(data),
        data,
        settings(epochs=2, sampling="balanced", epoch_samples=30),
        streams=streams(METHODS[name]),
    )
    assert (r.evidence.visits == 0).sum() > 100
    assert np.isfinite(r.belief()).all()
    np.testing.assert_allclose(r.belief().sum(1), 1, atol=1e-5)


def test_a_rare_class_is_learned() -> None:
    """At 150 to 150 to 4 plain training gives the rare class up; balanced training does not."""
    data, test = skewed(450, rare=4), blobs(300, seed=9)
    found = {}
    for sampling in ("all", "balanced"):
        r = fit(CE(), factory(data), data, settings(epochs=4, sampling=sampling))
        found[sampling] = (r.predict(test.x).argmax(1) == test.y)[test.y == 2].mean()
    assert found["balanced"] > found["all"] + 0.2


def test_validation_and_side_streams_stay_as_they_are() -> None:
    data, clean, seen = skewed(), skewed(120, rare=9), []

    class Watched(MentorNetDD):
        def update(self, run: Any, batch: Any) -> Loss:
            seen.append(batch.side["clean"].index.clone())
            return super().update(run, batch)

    how = settings(epochs=1, sampling="balanced", validation_fraction=0.25)
    r = fit(Watched(), factory(data), data, how, streams={"clean": clean})
    assert len(r.held) > 40
    assert np.bincount(data.y[r.held], minlength=3).max() > 5 * np.bincount(data.y[r.held], minlength=3).min()
    assert r.evidence.visits[r.held].tolist() == [1.0] * len(r.held), "each held-out sample once per epoch"
    first = torch.cat(seen)[: len(clean)]
    assert len(first) == len(clean)
    assert sorted(first.tolist()) == list(range(len(clean))), "each verified sample once before any comes again"


def test_killed_within_an_epoch_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = skewed()
    how = settings(epochs=3, sampling="balanced", epoch_samples=128, checkpoint_every=1)
    whole = fit(ELR(), factory(data), data, how, folder=tmp_path / "whole")
    plain, done = Training.run_batch, 0

    def mortal(*args: Any) -> Loss:
        nonlocal done
        if done == 6:  # in the second epoch of four steps
            raise KeyboardInterrupt
        done += 1
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "run_batch", mortal)
        fit(ELR(), factory(data), data, how, folder=tmp_path / "killed")
    with pytest.raises(ValueError, match="sampling"):
        other = settings(epochs=3, checkpoint_every=1)
        fit(ELR(), factory(data), data, other, folder=tmp_path / "killed", resume=True)
    again = fit(ELR(), factory(data), data, how, folder=tmp_path / "killed", resume=True)
    assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))
    assert same(dict(whole.evidence.state_dict()), dict(again.evidence.state_dict()))


def test_two_ranks_share_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's part, as `rank` and `world_size` say: disjoint, and together what one process takes."""
    from labelproof.data import feed as module

    alone = [b.index for b in feeds()[0].epoch(2)]
    parts = []
    for r in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(module, "rank", lambda r=r: r)
            patch.setattr(module, "world_size", lambda: 2)
            parts.append([b.index for b in feeds()[0].epoch(2)])
    for whole, a, b in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat([a, b]), whole)
