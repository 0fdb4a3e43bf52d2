"""Contrastive views: each operation against Pillow's or kornia's pixels, and draws that only their key decides."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.augmentation
import kornia.enhance as oracle
import numpy as np
import pytest
import torch
from kornia.color import rgb_to_grayscale
from PIL import Image
from torch import Tensor

from labelproof.data import catalog, contrast
from labelproof.data.contrast import Contrast, _boxes, _colour, _product, _resize
from labelproof.data.seeds import generator
from labelproof.data.transforms import Standardise

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8))
GREY = torch.from_numpy(RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
ROWS = torch.from_numpy(RNG.normal(3, 2, (40, 6)).astype(np.float32))
POOL = torch.from_numpy(RNG.normal(3, 2, (300, 6)).astype(np.float32))
COLOURS = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": False}  # crops that change nothing
NO_COLOURS = {"jitter": 0.0, "grey": 0.0}


def plain(x: Tensor) -> Standardise:
    return Standardise(torch.zeros(x.shape[1]), torch.ones(x.shape[1]), x.ndim - 1)


def view(x: Tensor, *, seed: int = 0, at: tuple[int, int, int] = (0, 0, 1), **options: Any) -> Tensor:
    """A view in the units of the input."""
    return Contrast(plain(x), seed=seed, pool=POOL, **options)(x, at=at, part=slice(0, len(x)), joint=len(x))


def unit(seed: int = 0, n: int = 24) -> Tensor:
    """Images in [0, 1], among them black, white, grey and pure colours, whose hue is nowhere or at a corner."""
    x = torch.rand(n, 3, 9, 7, generator=torch.Generator().manual_seed(seed))
    x[0], x[1], x[2] = 0, 1, 0.3
    corners = torch.tensor([[a, b, c] for a in (0.0, 1) for b in (0, 1) for c in (0, 1)])
    x[3, :, 0, :] = corners[:7].T
    x[4] = x[4].mean(0)
    return x


def factors(low: float, high: float, n: int = 24) -> Tensor:
    return torch.linspace(low, high, n)


OPERATIONS: dict[
    str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], tuple[float, float]]
] = {
    "brightness": (contrast._brightness, oracle.adjust_brightness_accumulative, (0.2, 1.8)),
    "contrast": (contrast._contrast, oracle.adjust_contrast_with_mean_subtraction, (0.2, 1.8)),
    "saturation": (contrast._saturation, oracle.adjust_saturation_with_gray_subtraction, (0.2, 1.8)),
    "hue": (contrast._hue, lambda x, turns: oracle.adjust_hue(x, turns * 2 * math.pi), (-0.5, 0.5)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colours_are_those_of_kornia(name: str) -> None:
    ours, theirs, bounds = OPERATIONS[name]
    x, by = unit(), factors(*bounds)
    before = x.clone()
    got = ours(x, by.view(-1, 1, 1, 1))
    torch.testing.assert_close(got, theirs(x, by), rtol=0, atol=2e-6)
    assert (got - x).abs().amax((1, 2, 3))[5:10].min() > 0.01
    assert torch.equal(x, before)


def test_luma_is_that_of_kornia() -> None:
    torch.testing.assert_close(contrast._luma(unit()), rgb_to_grayscale(unit()), rtol=0, atol=1e-6)


def test_a_whole_jitter_is_that_of_kornia() -> None:
    """Same parameters, same order, crops that change nothing: the same pixels, down to the units of the input."""
    x = IMAGES.float() / 255
    for step in range(4):
        got = view(IMAGES, at=(0, step, 0), grey=0.0, **COLOURS) / 255
        rng = generator(0, "contrast", 0, step, 0)
        _boxes(16, 16, rng=rng, joint=40, area=(1.0, 1.0), aspect=(1.0, 1.0))
        torch.rand(40, generator=rng)  # flips
        drawn = _colour(rng=rng, joint=40, strength=0.5, jitter=0.8, grey=0.0)
        params = dict(zip(("brightness", "contrast", "saturation", "hue"), drawn.factors, strict=True))
        want = x
        for i in drawn.order:
            name = list(params)[i]
            want = OPERATIONS[name][1](want, params[name])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_the_parameters_are_spread_as_those_of_kornia() -> None:
    """kornia's generator of parameters draws from the same distributions."""
    drawn = _colour(rng=generator(0, "t"), joint=20_000, strength=0.5, jitter=1.0, grey=0.2)
    kornia_jitter = kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = kornia_jitter.forward_parameters((20_000, 3, 2, 2))
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    quantiles = torch.linspace(0, 1, 11)
    for ours, name in zip(drawn.factors, names, strict=True):
        torch.testing.assert_close(ours.quantile(quantiles), theirs[name].quantile(quantiles), rtol=0, atol=0.02)
    assert abs(drawn.grey.mean() - 0.2) < 0.01
    half = _colour(rng=generator(0, "t"), joint=20_000, strength=0.5, jitter=0.8, grey=0.2)
    assert abs((half.factors[0] == 1).float().mean() - 0.2) < 0.01
    still = torch.stack([f == neutral for f, neutral in zip(half.factors, (1, 1, 1, 0), strict=True)])
    assert torch.equal(still.all(0), still.any(0)), "an image is jittered in all four or in none"
    kept = half.grey.bool()
    assert abs((half.factors[0][kept] == 1).float().mean() - 0.2) < 0.03, "whether jittered or not, a fifth turns grey"
    orders = {tuple(_colour(rng=generator(s, "o"), joint=1, strength=1, jitter=1, grey=0).order) for s in range(200)}
    assert len(orders) == 24


def pillow(image: np.ndarray[Any, Any], box: list[int], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Pillow's crop and bicubic resize of one float channel."""
    top, left, tall, wide = box
    cropped = Image.fromarray(image).crop((left, top, left + wide, top + tall))
    return np.asarray(cropped.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 20, 12), (3, 1, 5)])
def test_crops_are_those_of_pillow(shape: tuple[int, ...]) -> None:
    c, h, w = shape
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(0))
    box = _boxes(h, w, rng=generator(0, "t"), joint=30, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3))
    mirrored = torch.arange(30.0) % 2
    top, left, tall, wide = box
    got = _product(x, _resize(top, tall, torch.zeros(30), h), _resize(left, wide, mirrored, w))
    for i in range(30):
        corner = [int(b[i]) for b in box]
        for channel in range(c):
            want = pillow(x[i, channel].numpy(), corner, (h, w))
            want = want[:, ::-1] if mirrored[i] else want
            np.testing.assert_allclose(got[i, channel], want, atol=1e-5)


def test_boxes_are_spread_as_those_of_kornia() -> None:
    n = 20_000
    top, left, tall, wide = _boxes(64, 48, rng=generator(0, "t"), joint=n, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 64).all()
    assert (left + wide <= 48).all()
    assert torch.equal(torch.stack([top, left, tall, wide]).frac(), torch.zeros(4, n))
    crop = kornia.augmentation.RandomResizedCrop((64, 48), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        corners = crop.forward_parameters(torch.Size((n, 3, 64, 48)))["src"]
    their_wide, their_tall = (corners[:, 2] - corners[:, 0] + 1).unbind(1)
    at = torch.linspace(0.05, 0.95, 10)
    for ours, theirs in ((wide, their_wide), (tall, their_tall), (wide * tall, their_wide * their_tall)):
        spread = ours.max() - ours.min()
        torch.testing.assert_close(ours.quantile(at) / spread, theirs.quantile(at) / spread, rtol=0, atol=0.03)
    room = (64 - tall) > 8
    assert abs((top[room] / (64 - tall[room])).mean() - 0.5) < 0.01, "anywhere in the image, both ends included"


@pytest.mark.parametrize("aspect", [(3.0, 4.0), (0.25, 0.33)])
def test_impossible_crops_become_the_whole_image(aspect: tuple[float, float]) -> None:
    top, left, tall, wide = _boxes(8, 8, rng=generator(0, "t"), joint=50, area=(0.9, 1.0), aspect=aspect)
    assert set(tall.tolist()) == set(wide.tolist()) == {8.0}
    assert not top.any()
    assert not left.any()
    x = IMAGES.float()
    torch.testing.assert_close(view(x, **NO_COLOURS, **COLOURS), x, rtol=0, atol=1e-3)


def test_half_of_the_images_are_mirrored() -> None:
    options = {**COLOURS, **NO_COLOURS, "flip": True}
    x = torch.rand(400, 3, 4, 4)
    out = view(x, span=(0.0, 1.0), **options)
    same, mirrored = ((out - y).abs().amax((1, 2, 3)) < 1e-5 for y in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_a_fifth_of_the_images_lose_their_colour() -> None:
    out = view(torch.rand(1000, 3, 4, 4), span=(0.0, 1.0), jitter=0.0, **COLOURS)
    lost = (out - out.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.15 < lost.float().mean() < 0.25


def test_grey_images_change_in_brightness_and_contrast_alone() -> None:
    """As three equal channels of a colour image do, which have no hue and no saturation."""
    for step in range(3):
        grey = view(GREY, at=(0, step, 0))
        colour = view(GREY.expand(-1, 3, -1, -1), at=(0, step, 0))
        torch.testing.assert_close(colour, grey.expand(-1, 3, -1, -1), rtol=0, atol=2e-3)
    by = 1 + 0.8 * 0.5
    bright = view(torch.full((100, 1, 4, 4), 100.0), flip=False).amax((1, 2, 3))
    assert 100 * by - 5 < bright.max() < 100 * by + 0.01


@pytest.mark.parametrize("x", [IMAGES, GREY, ROWS], ids=["colour", "grey", "rows"])
def test_draws_depend_on_seed_epoch_step_and_view_alone(x: Tensor) -> None:
    first = view(x)
    assert torch.equal(view(x), first)
    for other in (view(x, seed=1), view(x, at=(1, 0, 1)), view(x, at=(0, 1, 1)), view(x, at=(0, 0, 2))):
        assert not torch.equal(other, first)


@pytest.mark.parametrize("x", [IMAGES, GREY, ROWS], ids=["colour", "grey", "rows"])
def test_ranks_together_see_the_views_of_one_process(x: Tensor) -> None:
    for step in range(3):
        whole = view(x, at=(0, step, 1))
        make = Contrast(plain(x), seed=0, pool=POOL)
        parts = [slice(0, 15), slice(15, 40)]
        halves = [make(x[part], at=(0, step, 1), part=part, joint=40) for part in parts]
        torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("x", [IMAGES, ROWS], ids=["images", "rows"])
def test_global_generators_are_left_alone(x: Tensor) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    view(x)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 20, 12), (1, 1, 1)])
def test_shapes_types_and_range(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.from_numpy(RNG.integers(0, 256, (48, *shape))).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    before = x.clone()
    out = view(x)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 255.001
    assert torch.equal(x, before)
    assert not torch.equal(out, x.float())


def test_floats_keep_their_own_range_and_are_standardised_last() -> None:
    x = torch.rand(40, 3, 8, 8)
    one = view(x, span=(0.0, 1.0))
    torch.testing.assert_close(view(x * 5 - 2, span=(-2.0, 3.0)), one * 5 - 2, rtol=0, atol=1e-4)
    scale = Standardise(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6]), 3)
    got = Contrast(scale, seed=0, span=(0.0, 1.0))(x, at=(0, 0, 1), part=slice(0, 40), joint=40)
    torch.testing.assert_close(got, scale(one))
    assert torch.isfinite(view(torch.full((4, 3, 8, 8), 7.0), span=(7.0, 7.0))).all()


def test_rows_take_entries_of_the_same_column_of_the_pool() -> None:
    n, d = 3000, 10
    x = torch.zeros(n, d)
    pool = (torch.arange(50.0)[:, None] + 1) + 1000 * torch.arange(d)
    make = Contrast(plain(x), seed=0, pool=pool)
    whole = {"part": slice(0, n), "joint": n}
    assert torch.equal(make(x, at=(0, 0, 0), **whole), x), "the first view is the sample itself"
    out = make(x, at=(0, 0, 1), **whole)
    hit = out != 0
    assert (hit.float().mean(0) - 0.6).abs().max() < 0.04
    assert (hit.sum(1) == 6).all(), "as many in each row"
    assert len(hit.unique(dim=0)) == 210, "other columns in each row"
    for column in range(d):
        values = out[hit[:, column], column] - 1000 * column
        assert set(values.tolist()) == {i + 1.0 for i in range(50)}
    both = hit[:, 0] & hit[:, 1]
    assert not torch.equal(out[both, 0], out[both, 1] - 1000), "every entry comes from a row of its own"
    for share, count in ((0.19, 1), (0.01, 1), (1.0, 10), (0.0, 0)):
        some = Contrast(plain(x), seed=0, pool=pool, corruption=share)(x, at=(0, 0, 1), **whole)
        assert ((some != 0).sum(1) == count).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (8, 8), (3, 4, 5, 6), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    make = Contrast(plain(ROWS), seed=0)
    with pytest.raises(
        ValueError, match=r"images of 1 or 3 channels.*or rows \(D,\), but these inputs are \(.*reshape"
    ):
        make(torch.zeros(4, *shape), at=(0, 0, 0), part=slice(0, 4), joint=4)


@pytest.mark.parametrize("pool", [None, torch.zeros(9, 5)])
def test_rows_without_a_pool_of_such_rows_are_refused(pool: Tensor | None) -> None:
    make = Contrast(plain(ROWS), seed=0, pool=pool)
    with pytest.raises(ValueError, match=r"pool is .*but rows are \(6,\).*pass the raw training rows, \(M, 6\)"):
        make(ROWS, at=(0, 0, 1), part=slice(0, 40), joint=40)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"area": (0.0, 1.0)}, r"area=\(0.0, 1.0\) must be \(smallest, largest\), above 0 and at most 1"),
        ({"area": (0.5, 1.1)}, r"area=.*at most 1"),
        ({"aspect": (2.0, 1.0)}, r"aspect=\(2.0, 1.0\) must be \(smallest, largest\), above 0$"),
        ({"jitter": 1.5}, r"jitter=1.5 must be a share from 0 to 1"),
        ({"grey": -0.1}, r"grey=-0.1 must be a share from 0 to 1"),
        ({"corruption": 2}, r"corruption=2 must be a share from 0 to 1"),
        ({"strength": -1}, r"strength=-1 must be at least 0; 0 leaves"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Contrast(plain(ROWS), seed=0, **options)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_real_images_stay_recognisable(name: str, data_dir: Path) -> None:
    """Two views of an image are more alike than views of two images, and few are left without content."""
    data = catalog.load(name, split="test", data_dir=data_dir)
    x = torch.from_numpy(np.asarray(data.x[:512]))
    mild = {"area": (0.8, 1.0), "flip": False}

    def rows(images: Tensor) -> Tensor:
        grey = images.mean(1).flatten(1)
        return torch.nn.functional.normalize(grey - grey.mean(1, keepdim=True), dim=1)

    alike = rows(view(x, at=(0, 0, 0), **mild)) @ rows(view(x, at=(0, 0, 1), **mild)).T
    assert alike.diagonal().median() > alike.median() + 0.3
    assert (view(x).flatten(2).std(2).amax(1) < 5).float().mean() < 0.05
