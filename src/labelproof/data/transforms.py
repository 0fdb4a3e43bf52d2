"""Raw inputs on their way into a network: augmentation and standardisation, on the device, per batch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Standardise(nn.Module):
    """`(x - mean) / std`, per channel of `(B, C, H, W)` images or per column of `(B, D)` rows, uint8 or float.

    Part of the trained model: saved with it, so that prediction can never use another normalisation than training.

    Args:
        mean: `(C,)` or `(D,)`.
        std: likewise; a column where it is 0 is constant and becomes 0, whatever it holds at prediction.
        dims: number of dimensions of one input (1 for rows, 3 for images).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, std: Tensor, dims: int) -> None:
        super().__init__()
        shape = (-1,) + (1,) * (dims - 1)
        self.register_buffer("mean", mean.float().reshape(shape))
        scale = torch.where(std > 0, 1 / std, torch.zeros_like(std))
        self.register_buffer("scale", scale.float().reshape(shape))

    @classmethod
    def scaled(cls, mean: Tensor, scale: Tensor, dims: int) -> Standardise:
        """`(x - mean) * scale`, with the scale as it is."""
        made = cls(mean, torch.ones_like(scale), dims)
        made.scale.copy_(scale.reshape(made.scale.shape))
        return made

    @classmethod
    def fit(cls, x: NDArray[np.generic] | Tensor, rows: NDArray[np.int64] | None = None) -> Standardise:
        """From the given rows of `(N, D)` or `(N, C, H, W)` inputs."""
        x = np.asarray(x)
        dims = x.ndim - 1
        axes = (0,) if dims == 1 else (0, *range(2, x.ndim))
        total, square, count = 0.0, 0.0, 0
        rows = np.arange(len(x)) if rows is None else rows
        for part in np.array_split(rows, max(1, len(rows) // 1024)):  # bounded memory: N images never become floats
            chunk = x[part].astype(np.float64)
            total, square = total + chunk.sum(axes), square + np.square(chunk).sum(axes)
            count += chunk.size // chunk.shape[1]
        mean = np.asarray(total / count)
        std = np.sqrt(np.maximum(square / count - mean**2, 0))
        std[std <= 1e-7 * np.abs(mean)] = 0  # a constant column, up to rounding
        return cls(torch.from_numpy(mean), torch.from_numpy(std), dims)

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) * self.scale


def crop_flip(x: Tensor, rng: torch.Generator, *, pad: int, flip: bool, part: slice, joint: int) -> Tensor:
    """Random crop after zero padding, and random horizontal flip, in one gather, before images become floats.

    Args:
        x: `(B, C, H, W)`, uint8 or float.
        rng: CPU generator; drawn from for the whole joint batch, so that the augmentation of a sample does not depend
            on how many ranks share the batch.
        pad: pixels added on each side, and largest shift.
        flip: whether to mirror half of the images.
        part: this rank's rows of the joint batch.
        joint: rows of the joint batch.
    """
    height, width = x.shape[-2:]
    draw = torch.rand(3, joint, generator=rng)[:, part].to(x.device, non_blocking=True)
    dy, dx = (draw[:2] * (2 * pad + 1)).long()
    cols = torch.arange(width, device=x.device).expand(len(x), -1)
    if flip:
        cols = torch.where(draw[2, :, None] < 0.5, width - 1 - cols, cols)
    rows = torch.arange(height, device=x.device) + dy[:, None]
    padded = nn.functional.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    picked: Tensor = padded[batch, rows[:, :, None], (cols + dx[:, None])[:, None, :]]
    return picked.permute(0, 3, 1, 2)


#: Targets further from the median than so many units of spread are trained on as that far. Squared errors of gross
#: errors would drive the first epochs, before a method can know them, out of all bounds: the advice of PRL's authors is
#: to cut extreme targets.
FAR = 10.0


class TargetScale(nn.Module):
    """Regression targets in robust units: `(y - median) / (1.4826 * MAD)` per column, cut at ±`FAR`.

    Training then does not depend on the unit of the targets, nor do gross errors stretch the scale. Both ways are in
    float64 on the host, so that 1e9 + 0.1 keeps its last digit; only what networks see is float32.

    Args:
        centre: `(D,)`.
        scale: `(D,)`, positive.

    >>> y = np.array([[1e9], [1e9 + 0.25], [1e9 + 0.5], [1e300]])
    >>> TargetScale.fit(y)(torch.from_numpy(y)).squeeze(1)
    tensor([-1.0117, -0.3372,  0.3372, 10.0000])
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre.double())
        self.register_buffer("scale", scale.double())

    @classmethod
    def fit(cls, y: NDArray[np.generic]) -> TargetScale:
        """From `(N, D)` targets. Where more than half are equal, the MAD is that of the others; a constant stays."""
        values = np.asarray(y, dtype=np.float64)
        centre = np.median(values, axis=0)
        off = np.abs(values - centre)
        spread = np.array([np.median(d[d > 0]) if np.median(d) == 0 < d.max() else np.median(d) for d in off.T])
        return cls(torch.from_numpy(centre), torch.from_numpy(np.where(spread > 0, 1.4826 * spread, 1.0)))

    def forward(self, y: Tensor) -> Tensor:
        return ((y.cpu().double() - self.centre) / self.scale).clamp(-FAR, FAR).float()

    def inverse(self, y: Tensor) -> Tensor:
        """Back to the user's units, float64 on the host."""
        return y.cpu().double() * self.scale + self.centre
