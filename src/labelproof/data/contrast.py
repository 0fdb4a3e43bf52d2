"""Views for contrastive learning: versions of a sample that a representation should not tell apart.

Images get SimCLR's augmentation without blur: random resized crop, flip, colour jitter, grey. Rows get SCARF's
corruption. All draws are pure functions of (seed, epoch, step, view), made for the joint batch: they do not depend on
the number of ranks, and global generators are left as they were.

Sources: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, appendix A;
Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6 (the crop); Bahri et al., "SCARF:
Self-Supervised Contrastive Learning using Random Feature Corruption", ICLR 2022, algorithm 1.

Why not kornia, as for strong views: this runs twice per step on every image and takes a third of its time
(`benchmarks/contrast.py`). Tests hold each operation to kornia's or Pillow's pixels.

**Deviations.** The four operations of the jitter come in an order drawn once per view of a batch, as in kornia; SimCLR
draws one per image. Intermediate pixels stay floats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labelproof.data.seeds import generator
from labelproof.data.transforms import Standardise

_TRIES = 10  # crops drawn before the whole image is taken
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Contrast:
    """Makes contrastive views of raw batches.

    Images of three channels, mapped from `span` to [0, 1] and back, get a random resized crop (bicubic) and flip, then
    jitter of brightness, contrast, saturation and hue, then sometimes lose their colour. Grey images (one channel) get
    the crop, the flip, brightness and contrast. Of rows, view 0 stays as it is; in others entries are replaced by
    those of the same column in random rows of `pool`.

    Args:
        standardise: the run's, applied last.
        seed: of all draws.
        span: smallest and largest value of the images; for uint8 photographs (0, 255).
        pool: `(M, D)` raw training rows on the device, of the type of the batches; images need none.
        area: smallest and largest share of an image that a crop covers.
        aspect: smallest and largest width / height of a crop, drawn uniformly on a log scale.
        flip: whether to mirror half of the images; not for digits or letters.
        strength: of the jitter, s: factors of brightness, contrast and saturation are drawn from 1 ± 0.8 s, the turn
            of the hue from ± 0.2 s of the colour wheel.
        jitter: share of the images that are jittered.
        grey: share of the colour images that lose their colour.
        corruption: share of the columns that is replaced in each row, other columns in each; at least one if not 0.

    Raises:
        ValueError: a share is outside [0, 1], or bounds are not positive and in order.

    Example:
        >>> rows = torch.arange(10.0).reshape(2, 5)
        >>> contrast = Contrast(Standardise(torch.zeros(5), torch.ones(5), 1), seed=0, pool=rows + 100)
        >>> contrast(rows, at=(0, 0, 1), part=slice(0, 2), joint=2)
        tensor([[105., 101.,   2., 103.,   4.],
                [100.,   6., 102.,   8., 109.]])
    """

    def __init__(
        self,
        standardise: Standardise,
        *,
        seed: int,
        span: tuple[float, float] = (0.0, 255.0),
        pool: Tensor | None = None,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        strength: float = 0.5,
        jitter: float = 0.8,
        grey: float = 0.2,
        corruption: float = 0.6,
    ) -> None:
        for name, bounds, most in (("area", area, 1.0), ("aspect", aspect, float("inf"))):
            if not 0 < bounds[0] <= bounds[1] <= most:
                upper = "" if most == float("inf") else f" and at most {most:g}"
                raise ValueError(f"{name}={bounds} must be (smallest, largest), above 0{upper}")
        for name, share in (("jitter", jitter), ("grey", grey), ("corruption", corruption)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be a share from 0 to 1")
        if strength < 0:
            raise ValueError(f"strength={strength} must be at least 0; 0 leaves colours as they are")
        self.standardise, self.seed, self.pool = standardise, seed, pool
        self.low, self.range = span[0], (span[1] - span[0]) or 1.0
        self.area, self.aspect, self.flip = area, aspect, flip
        self.strength, self.jitter, self.grey, self.corruption = strength, jitter, grey, corruption

    @torch.no_grad()
    def __call__(self, x: Tensor, *, at: tuple[int, int, int], part: slice, joint: int) -> Tensor:
        """This rank's rows of a batch, augmented and standardised.

        Args:
            x: `(B, C, H, W)` images with C = 1 or 3, or `(B, D)` rows, uint8 or float, on any device.
            at: epoch, step and view.
            part: which rows of the joint batch these are.
            joint: rows of the joint batch.

        Returns:
            The shape of `x`, float32.

        Raises:
            ValueError: inputs of another shape, or rows that `pool` has none for.
        """
        rng = generator(self.seed, "contrast", *at)
        if x.ndim == 4 and x.shape[1] in (1, 3):
            out: Tensor = self.standardise(self._image(x, rng, part, joint))
        elif x.ndim == 2:
            out = self.standardise(self._corrupted(x, rng, part, joint) if at[2] else x)
        else:
            raise ValueError(
                f"contrastive views need images of 1 or 3 channels, (C, H, W), or rows (D,), but these inputs are "
                f"{tuple(x.shape[1:])}: reshape them, or pre-train an encoder elsewhere and pass its features as rows"
            )
        return out

    def _corrupted(self, x: Tensor, rng: torch.Generator, part: slice, joint: int) -> Tensor:
        if self.pool is None or self.pool.shape[1:] != x.shape[1:]:
            has = "None" if self.pool is None else f"of shape {tuple(self.pool.shape)}"
            raise ValueError(
                f"pool is {has}, but rows are {tuple(x.shape[1:])}: contrastive views of rows take values from it, so "
                f"pass the raw training rows, (M, {x.shape[1]})"
            )
        count = max(1, int(self.corruption * x.shape[1])) if self.corruption else 0
        hit = (torch.rand(joint, x.shape[1], generator=rng).argsort(1) < count)[part]
        source = torch.randint(len(self.pool), (joint, x.shape[1]), generator=rng)[part]
        hit, source = (t.to(x.device, non_blocking=True) for t in (hit, source))
        return torch.where(hit, self.pool.gather(0, source), x)

    def _image(self, x: Tensor, rng: torch.Generator, part: slice, joint: int) -> Tensor:
        height, width = x.shape[-2:]
        box = _boxes(height, width, rng=rng, joint=joint, area=self.area, aspect=self.aspect)
        flip = torch.rand(joint, generator=rng) < (0.5 if self.flip else 0.0)
        colour = _colour(rng=rng, joint=joint, strength=self.strength, jitter=self.jitter, grey=self.grey)
        # everything in one transfer to the device
        drawn = torch.stack([*box, flip, *colour.factors, colour.grey]).t()[part].to(x.device, non_blocking=True)
        top, left, tall, wide, mirrored, *factors, lost = drawn.unbind(1)
        rows, cols = _resize(top, tall, torch.zeros_like(top), height), _resize(left, wide, mirrored, width)
        out = _product((x.float() - self.low).div_(self.range).clamp_(0, 1), rows, cols).clamp_(0, 1)
        kinds = (_brightness, _contrast, _saturation, _hue) if x.shape[1] == 3 else (_brightness, _contrast)
        for operation in colour.order:
            if operation < len(kinds):
                out = kinds[operation](out, factors[operation].view(-1, 1, 1, 1))
        if x.shape[1] == 3:
            out = torch.lerp(out, _luma(out), lost.view(-1, 1, 1, 1))
        return out.mul_(self.range).add_(self.low)


class _Colour(NamedTuple):
    """Draws of the colour operations for a joint batch.

    Attributes:
        factors: `(joint,)` each: brightness, contrast and saturation (1 changes nothing), turns of the hue (0).
        order: of these four.
        grey: `(joint,)`, 1 where colour is lost.
    """

    factors: list[Tensor]
    order: list[int]
    grey: Tensor


def _colour(*, rng: torch.Generator, joint: int, strength: float, jitter: float, grey: float) -> _Colour:
    draw = torch.rand(6, joint, generator=rng)
    moved = (draw[4] < jitter).float()
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    factors = [torch.lerp(torch.ones(joint), low + (high - low) * draw[i], moved) for i in range(3)]
    hue = (2 * draw[3] - 1) * 0.2 * strength * moved
    return _Colour([*factors, hue], torch.randperm(4, generator=rng).tolist(), (draw[5] < grey).float())


def _boxes(
    height: int,
    width: int,
    *,
    rng: torch.Generator,
    joint: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> list[Tensor]:
    """Top, left, height and width of a crop in whole pixels for each image, `(joint,)` each.

    The first of ten draws of area and aspect that fits into the image counts; where none does, it is the whole image.
    """
    share, ratio = torch.rand(2, _TRIES, joint, generator=rng)
    pixels = (area[0] + (area[1] - area[0]) * share) * height * width
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** ratio
    tall = (pixels / ratio).sqrt().round().clamp(min=1)
    wide = (pixels * ratio).sqrt().round().clamp(min=1)
    fits = (tall <= height) & (wide <= width)
    first = fits.float().argmax(0, keepdim=True)
    fits = fits.gather(0, first)[0]
    tall = torch.where(fits, tall.gather(0, first)[0], float(height))
    wide = torch.where(fits, wide.gather(0, first)[0], float(width))
    y, x = torch.rand(2, joint, generator=rng)
    return [(y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor(), tall, wide]


def _resize(first: Tensor, length: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Weights that stretch the pixels from `first` on, `length` of them, over the whole side, perhaps in reverse.

    Keys' bicubic kernel with a = -1/2 over the pixels inside the crop, as Pillow has it. A product of matrices then
    crops, resizes and flips. On one core that takes 0.4 times as long as a bicubic `grid_sample` for 32x32 pixels, 0.7
    times for 96x96, 1.2 times for 224x224.

    Args:
        first: `(B,)`.
        length: `(B,)`.
        mirrored: `(B,)`, 0 or 1.
        size: of the side, in pixels.

    Returns:
        `(B, size, size)`, output pixels by input pixels; rows add up to 1.
    """
    pixel = torch.arange(size, device=first.device) + 0.5
    place = torch.lerp(pixel, size - pixel, mirrored[:, None])
    centre = first[:, None] + place * (length / size)[:, None]
    inside = (pixel > first[:, None]) & (pixel < (first + length)[:, None])
    d = (pixel - centre[:, :, None]).abs_()
    u, v = (2 - d).clamp_(min=0), (1 - d).clamp_(min=0)
    weight = (u - 1).mul_(u * u).mul_(0.5).addcmul_(v * v, 1 - 2 * v)  # the two cubics, without a branch
    weight *= inside[:, None]
    return weight.div_(weight.sum(2, keepdim=True))


def _product(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """`rows @ x @ cols.T` for each channel of `(B, C, H, W)`."""
    b, c, h, w = x.shape
    wide = torch.bmm(x.reshape(b, c * h, w), cols.transpose(1, 2)).view(b, c, h, w)
    return rows[:, None] @ wide


def _luma(x: Tensor) -> Tensor:
    """`(B, 1, H, W)` of `(B, 3, H, W)`; one channel is its own."""
    if x.shape[1] == 1:
        return x
    r, g, b = (x[:, i : i + 1] for i in range(3))
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean brightness of each image, or towards it."""
    return torch.addcmul((1 - factor) * _luma(x).mean((2, 3), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's grey, or towards it."""
    return torch.addcmul((1 - factor) * _luma(x), x, factor).clamp_(0, 1)


def _hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of HSV; largest and smallest channel of each pixel keep their values."""
    r, g, b = (x[:, i : i + 1] for i in range(3))
    top = torch.maximum(torch.maximum(r, g), b)
    d = top - torch.minimum(torch.minimum(r, g), b)
    # along the hexagon of hues, in sixths of a turn: red is 0, green 2, blue -2, and green above blue makes it positive
    h = (g + b).sub_(r).sub_(top).div_(d.clamp(min=torch.finfo(x.dtype).tiny)).add_(2).copysign_(g - b)
    h += 6 * turns
    h -= (h / 6).floor_().mul_(6)
    out = torch.empty_like(x)
    for i, (far, slope, start) in enumerate(((3.0, -1.0, 2.0), (2.0, 1.0, -1.0), (4.0, 1.0, -1.0))):
        # how far this channel lies below the largest, as a share of d
        below = (h - far).abs_().mul_(slope).add_(start).clamp_(0, 1)
        out[:, i : i + 1] = torch.addcmul(top, below, d, value=-1)
    return out
