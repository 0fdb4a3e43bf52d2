"""Both feeding paths serve the same batches, and every sample keeps its id."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelproof.data.dataset import Data
from labelproof.data.feed import DeviceFeed, StreamFeed, as_tensor, batch_bounds
from labelproof.data.seeds import generator
from labelproof.data.split import hold_out
from labelproof.data.transforms import FAR, Standardise, TargetScale, crop_flip
from labelproof.engine.stages import fit
from labelproof.methods import ELR
from tests.toy import factory, same, settings

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (41, 3, 8, 8), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 41)


class Pairs:
    """A map-style data set of (image, label) pairs (module level, for worker processes)."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(IMAGES[i]), int(LABELS[i])


class Jittered(Pairs):
    """With a random transform of the user's own."""

    def __getitem__(self, i: int) -> Any:
        return torch.from_numpy(IMAGES[i]).float() + torch.rand(())


def feed(kind: type, x: Any, rows: Any = None, **options: Any) -> Any:
    common = {"device": torch.device("cpu"), "batch_size": 8, "seed": 3, "augment": "crop-flip", **options}
    common.setdefault("views", ("weak", "weak"))
    rows = np.arange(41) if rows is None else rows
    return kind(x, LABELS, rows, standardise=Standardise.fit(IMAGES), **common)


@given(st.integers(2, 500), st.integers(1, 200), st.integers(1, 4))
def test_batches_cover_everything_once(n: int, size: int, world: int) -> None:
    if n < 2 * world:
        return
    bounds = batch_bounds(n, size, world)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n - n % world
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    if size >= 2 * world and size % world == 0:
        assert all(hi - lo >= 2 * world and (hi - lo) % world == 0 for lo, hi in bounds)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_those_from_memory(workers: int) -> None:
    memory, stream = feed(DeviceFeed, IMAGES), feed(StreamFeed, Pairs(), workers=workers)
    for epoch, start in ((0, 0), (1, 2)):
        a, b = list(memory.epoch(epoch, start=start)), list(stream.epoch(epoch, start=start))
        assert len(a) == len(b) == 5 - start  # 41 samples: a tail of one joins the batch before it
        for p, q in zip(a, b, strict=True):
            assert torch.equal(p.index, q.index)
            assert torch.equal(p.target, q.target)
            assert all(torch.equal(v, w) for v, w in zip(p.views, q.views, strict=True))


def test_ids_are_rows_of_the_original_data_through_subsets() -> None:
    rows = np.array([40, 3, 17, 8, 25, 30])
    f = feed(DeviceFeed, IMAGES, rows, augment="none", views=("weak",))
    seen = Counter()
    for batch in f.epoch(0):
        seen.update(batch.index.tolist())
        assert torch.equal(batch.target, torch.from_numpy(LABELS)[batch.index])
        want = f.standardise(torch.from_numpy(IMAGES)[batch.index])
        assert torch.equal(batch.x, want)
    assert seen == Counter(rows.tolist())
    assert [i for b in f.ordered(4) for i in b.index.tolist()] == rows.tolist()


def test_order_changes_with_epoch_and_not_with_where_it_starts() -> None:
    f = feed(DeviceFeed, IMAGES)
    first, second = ([b.index.tolist() for b in f.epoch(e)] for e in (0, 1))
    assert first != second
    assert [b.index.tolist() for b in f.epoch(0, start=3)] == first[3:]


def test_views_differ_and_are_reproducible() -> None:
    a, b = next(feed(DeviceFeed, IMAGES).epoch(0)), next(feed(DeviceFeed, IMAGES).epoch(0))
    assert not torch.equal(a.views[0], a.views[1])
    assert torch.equal(a.views[1], b.views[1])


def test_random_transforms_of_the_users_do_not_depend_on_the_worker() -> None:
    x = [
        torch.cat([b.x for b in feed(StreamFeed, Jittered(), workers=w, augment="none", views=("weak",)).epoch(2)])
        for w in (0, 1, 2)
    ]
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])


def test_crop_flip_equals_the_slow_way() -> None:
    x = torch.from_numpy(IMAGES[:5])
    got = crop_flip(x, generator(0, "t"), pad=2, flip=True, part=slice(0, 5), joint=5)
    draw = torch.rand(3, 5, generator=generator(0, "t"))
    for i in range(5):
        padded = np.pad(IMAGES[i], ((0, 0), (2, 2), (2, 2)))
        dy, dx = int(draw[0, i] * 5), int(draw[1, i] * 5)
        want = padded[:, dy : dy + 8, dx : dx + 8]
        want = want[:, :, ::-1] if draw[2, i] < 0.5 else want
        np.testing.assert_array_equal(got[i], want)


def test_streaming_trains_the_same_model() -> None:
    memory = Data(IMAGES, LABELS, classes=np.arange(3))
    stream = Data(Pairs(), LABELS, classes=np.arange(3))
    a, b, c = (
        fit(ELR(), lambda k: factory(memory)(k), d, settings(batch_size=16, **extra))
        for d, extra in ((memory, {}), (stream, {}), (memory, {"resident_bytes": 0}))
    )
    assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict()))
    assert same(dict(a.nets.state_dict()), dict(c.nets.state_dict()))
    np.testing.assert_array_equal(a.predict(IMAGES), b.predict(Pairs()))


def test_mixed_shapes_and_odd_types_are_named() -> None:
    class Ragged(Pairs):
        def __getitem__(self, i: int) -> Any:
            return torch.zeros(3, 8, 8 + (i == 5))

    with pytest.raises(ValueError, match=r"inputs must be of one shape, but sample \d+ is \(3, 8, 8\) and sample 5"):
        list(feed(StreamFeed, Ragged()).ordered(41))
    with pytest.raises(ValueError, match="sample 0 is a str: inputs must be arrays, tensors or PIL images"):
        as_tensor("cat.png", 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_standardise_equals_numpy(dtype: Any) -> None:
    x = IMAGES.astype(dtype)
    got = Standardise.fit(x)(torch.from_numpy(x)).numpy()
    want = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_constant_columns_become_zero_not_nan() -> None:
    x = np.ones((10, 2), dtype=np.float32) * np.array([0.1, 5.0], dtype=np.float32)
    assert torch.equal(Standardise.fit(x)(torch.from_numpy(x)).abs().max() < 1e-3, torch.tensor(True))


def test_target_scale_ignores_gross_errors() -> None:
    y = np.random.default_rng(0).normal(10, 2, (1000, 1))
    y[:200] = 1e6
    scale = TargetScale.fit(y)
    assert float(scale.scale) == pytest.approx(2, rel=0.5)
    np.testing.assert_allclose(scale.inverse(scale(torch.from_numpy(y)))[200:], y[200:], rtol=1e-4)
    assert (scale(torch.from_numpy(y))[:200] == FAR).all(), "cut, or their squares would swamp the first epochs"
    assert float(TargetScale.fit(np.ones((5, 1))).scale) == 1


@given(st.integers(4, 300), st.floats(0.05, 0.6), st.integers(0, 5))
def test_hold_out_is_stratified(n: int, fraction: float, seed: int) -> None:
    y = np.random.default_rng(seed).integers(0, 3, n)
    train, held = hold_out(y, fraction, seed=seed)
    assert sorted([*train, *held]) == list(range(n))
    for k in range(3):
        have = int((y == k).sum())
        assert abs((y[held] == k).sum() - fraction * have) <= 2
        assert have == 0 or (y[train] == k).any(), "no class may vanish from training"
