"""Strong views: drawn anew for every sample and step, the same again on every other run, and still pictures."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labelproof.core.method import Method
from labelproof.core.types import Loss
from labelproof.data import catalog, feed
from labelproof.data.dataset import Data
from labelproof.data.feed import DeviceFeed, StreamFeed
from labelproof.data.seeds import generator
from labelproof.data.strong import Strong, _cutout
from labelproof.data.transforms import Standardise, crop_flip
from labelproof.engine.stages import fit
from tests.toy import factory, same, settings

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (41, 3, 8, 8), dtype=np.uint8)
ROWS = RNG.normal(3, 2, (41, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 41)


class Pairs:
    """A map-style data set of (image, label) pairs."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(IMAGES[i]), int(LABELS[i])


class Agree(Method):
    """The smallest method with a strong view."""

    title = "two views"
    views: ClassVar[tuple[str, ...]] = ("weak", "strong")

    def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
        weak, strong = (self.task.loss(nets[0](v), batch.target) for v in batch.views)
        return Loss((weak + strong).mean())


def source(x: Any, kind: type = DeviceFeed, array: Any = None, **options: Any) -> Any:
    array = x if array is None else array
    common = {"batch_size": 40, "seed": 3, "augment": "crop-flip" if array.ndim == 4 else "none", **options}
    common.setdefault("views", ("weak", "strong"))
    return kind(
        x,
        LABELS[: len(array)],
        np.arange(len(array)),
        standardise=Standardise.fit(array),
        device=torch.device("cpu"),
        **common,
    )


def plain(channels: int = 3) -> Standardise:
    """One that changes nothing."""
    return Standardise(torch.zeros(channels), torch.ones(channels), 3)


def strong(x: Tensor, *, seed: int = 0, step: int = 0, **options: Any) -> Tensor:
    """A strong view in the units of the input."""
    whole = {"at": (0, step, 1), "part": slice(0, len(x)), "joint": len(x)}
    return Strong(plain(x.shape[1]), seed=seed, **options)(x, **whole)


@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_draws_depend_on_seed_epoch_step_and_view_alone(x: Any) -> None:
    first = [b.views for b in source(x, batch_size=8).epoch(2)]
    resumed = [b.views for b in source(x, batch_size=8).epoch(2, start=3)]
    assert all(torch.equal(a, b) for p, q in zip(first[3:], resumed, strict=True) for a, b in zip(p, q, strict=True))
    twice = next(source(x, views=("weak", "strong", "strong")).epoch(2)).views
    assert len({v.sum().item() for v in twice}) == 3, "every view has draws of its own"
    for change in ({"seed": 4}, {}):
        other = next(source(x, batch_size=8, **change).epoch(2 if change else 3)).views
        assert not torch.equal(other[1], first[0][1])


@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_global_generators_are_left_alone(x: Any) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    list(source(x).epoch(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_the_weak_view_is_what_it_was_without_a_strong_one() -> None:
    f = source(IMAGES)
    batch = next(f.epoch(1))
    raw = torch.from_numpy(IMAGES)[batch.index]
    n = len(raw)
    moved = crop_flip(raw, generator(3, "augment", 1, 0, 0), pad=1, flip=True, part=slice(0, n), joint=n)
    assert torch.equal(batch.x, f.standardise(moved))
    assert batch.views[1].stride() == batch.x.stride(), "convolutions are slower on views of mixed memory layout"


def test_streamed_views_are_those_from_memory() -> None:
    memory, stream = source(IMAGES), source(Pairs(), StreamFeed, IMAGES)
    for p, q in zip(memory.epoch(1), stream.epoch(1), strict=True):
        assert all(torch.equal(v, w) for v, w in zip(p.views, q.views, strict=True))


def test_methods_get_them_from_memory_and_from_streams_alike() -> None:
    memory, stream = Data(IMAGES, LABELS, classes=np.arange(3)), Data(Pairs(), LABELS, classes=np.arange(3))
    a, b = (fit(Agree(), factory(memory), d, settings(epochs=1, batch_size=16)) for d in (memory, stream))
    assert same(dict(a.nets.state_dict()), dict(b.nets.state_dict()))


@pytest.mark.parametrize("x", [IMAGES[:40], ROWS[:40]], ids=["images", "rows"])
def test_ranks_together_see_the_views_of_one_process(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 20 images do not fall on groups of 16: draws are for the group all the same."""
    joint = next(source(x).epoch(1)).views
    parts = []
    monkeypatch.setattr(feed, "world_size", lambda: 2)
    for r in (0, 1):
        monkeypatch.setattr(feed, "rank", lambda r=r: r)
        parts.append(next(source(x).epoch(1)).views)
    for whole, *halves in zip(joint, *parts, strict=True):
        torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-5)


def test_samples_of_a_batch_differ_in_more_than_geometry() -> None:
    """Of images of one colour, moving leaves the colour or black; here many colours come out."""
    colour = torch.tensor([50.0, 100.0, 200.0])
    out = strong(colour.view(1, 3, 1, 1).repeat(128, 1, 16, 16))
    brightest = out.amax((2, 3))
    changed = (brightest - colour).abs().amax(1) > 1
    assert 0.15 < changed.float().mean() < 0.85
    assert len(brightest.round().unique(dim=0)) > 15


def test_brightness_multiplies() -> None:
    """kornia's adds up to 0.9 of the range, and one image in thirty would be all white."""
    out = torch.cat([strong(torch.full((128, 3, 16, 16), 100.0), step=s) for s in range(8)])
    level = out.flatten(1).median(1).values
    assert ((level > 150) & (level < 200)).float().mean() > 0.05
    assert (level > 240).float().mean() < 0.01


def test_images_move_both_ways() -> None:
    x = torch.zeros(256, 1, 32, 32)
    x[:, :, 14:18, 14:18] = 255
    out = torch.cat([strong(x, step=s) for s in range(4)])[:, 0]
    mass = out * (out > 60)
    for dim in (1, 2):
        centre = (mass.sum(3 - dim) * torch.arange(32)).sum(1) / mass.sum((1, 2))
        shift = centre[mass.sum((1, 2)) > 0] - 15.5
        assert (shift > 8).any(), "AutoAugment draws a sign for every shift"
        assert (shift < -8).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 20, 12), (3, 3, 3)])
def test_shapes_types_and_range(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.from_numpy(RNG.integers(0, 256, (48, *shape))).to(dtype)
    before = x.clone()
    out = strong(x)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert -1e-3 <= out.min() <= out.max() <= 255.001
    assert torch.equal(x, before)
    assert not torch.equal(out, x.float())


def test_floats_keep_their_own_range() -> None:
    x = torch.rand(64, 3, 8, 8)
    unit = strong(x, span=(0.0, 1.0))
    shifted = strong(x * 5 - 2, span=(-2.0, 3.0))
    cut = shifted == 0  # cut-out pixels are 0 in either
    torch.testing.assert_close(shifted[~cut], (unit * 5 - 2)[~cut], rtol=0, atol=1e-4)
    assert -2.0001 <= shifted.min() <= shifted.max() <= 3.0001
    assert torch.isfinite(strong(torch.full((4, 3, 8, 8), 7.0), span=(7.0, 7.0))).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 2, 8)])
def test_images_the_policy_cannot_take_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"strong views need images of 1 or 3 channels and at least 3x3 pixels"):
        strong(torch.zeros(4, *shape))


@pytest.mark.parametrize("views", ["weak", ("weak", "strog"), (1,)])
def test_unknown_views_are_named(views: Any) -> None:
    with pytest.raises(ValueError, match=r"views=.* must be a tuple of names out of weak, strong"):
        source(IMAGES, views=views)


def test_masking_noise_sets_a_fifth_to_the_mean() -> None:
    x = np.random.default_rng(1).normal(3, 2, (4000, 6)).astype(np.float32)
    x[:, 2] = 5  # constant
    f = DeviceFeed(
        x,
        np.zeros(4000),
        np.arange(4000),
        standardise=Standardise.fit(x),
        device=torch.device("cpu"),
        batch_size=4000,
        seed=0,
        views=("weak", "strong"),
    )
    weak, masked = next(f.epoch(0)).views
    gone = (masked == 0) & (weak != 0)
    assert torch.equal(masked[~gone], weak[~gone])
    rate = gone.float().mean(0)
    assert bool((masked[:, 2] == 0).all())
    assert ((rate - 0.2).abs() < 0.03)[[0, 1, 3, 4, 5]].all(), rate


@given(st.integers(3, 20), st.integers(3, 20), st.integers(0, 10))
def test_cutout_equals_the_slow_way(height: int, width: int, seed: int) -> None:
    got = _cutout(height, width, rng=generator(seed, "t"), joint=3)
    draw = torch.rand(2, 3, 1, generator=generator(seed, "t"))
    half = min(height, width) // 2
    for i in range(3):
        want = np.ones((height, width), dtype=bool)
        top, left = int(draw[0, i] * height) - half // 2, int(draw[1, i] * width) - half // 2
        want[max(top, 0) : top + half, max(left, 0) : left + half] = False
        np.testing.assert_array_equal(got[i, 0], want)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_images_stay_recognisable(name: str, data_dir: Path) -> None:
    """Most strong views still correlate with their own image, next to none are left without any content."""
    data = catalog.load(name, split="test", data_dir=data_dir)
    x = torch.from_numpy(np.asarray(data.x[:512]))
    out = strong(x)

    def rows(images: Tensor) -> Tensor:
        grey = images.float().mean(1).flatten(1)
        return torch.nn.functional.normalize(grey - grey.mean(1, keepdim=True), dim=1)

    alike = (rows(x) @ rows(out).T).abs()
    own, others = alike.diagonal(), alike[~torch.eye(len(x), dtype=torch.bool)]
    assert own.median() > 3 * others.median()
    assert (out.flatten(2).std(2).amax(1) < 5).float().mean() < 0.05
    assert 0.05 < ((out - x.float()).abs() > 2).float().mean() < 0.9


def test_kornia_is_loaded_for_strong_images_only() -> None:
    code = """
import sys, numpy as np, torch
from labelproof.data.feed import DeviceFeed
from labelproof.data.transforms import Standardise
x = np.zeros((8, 3, 8, 8), dtype=np.uint8)
common = dict(standardise=Standardise.fit(x), device=torch.device("cpu"), batch_size=8, seed=0)
for views in (("weak",), ("weak", "strong")):
    next(DeviceFeed(x, np.zeros(8), np.arange(8), views=views, **common).epoch(0))
    assert ("kornia" in sys.modules) == ("strong" in views), views
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
