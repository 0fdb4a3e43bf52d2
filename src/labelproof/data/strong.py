"""Strong views: a second, much more distorted version of a sample, for methods that ask for agreement between the two.

Images get an AutoAugment policy, then Cutout; every other input gets masking noise. All draws are pure functions of
(seed, epoch, step, view), made for the joint batch: they do not depend on the number of ranks, and global generators
are left as they were.

Sources: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, the CIFAR-10 policy
(operations of kornia); DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017;
Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008, section 2.3.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from labelproof.data.seeds import generator, seeded
from labelproof.data.transforms import Standardise

_MASKED = 0.2  # of the entries of rows
_GROUP = 16  # images that share a sub-policy: groups of 8 cost half as much again, of 4 almost three times as much
_SIGNED = frozenset({"rotate", "shear_x", "shear_y", "translate_x", "translate_y"})


class Strong:
    """Makes strong views of raw, perhaps cropped and flipped, batches.

    Images are mapped from `span` to [0, 1] and back around the policy, which works on float32 RGB; grey ones (one
    channel) go through it as three equal channels, of which the mean is taken.

    Args:
        standardise: the run's; cut-out and masked entries become 0 after it, that is the mean of the training data.
        seed: of all draws.
        span: smallest and largest value of the images; for uint8 photographs (0, 255).

    Example:
        >>> strong = Strong(Standardise(torch.zeros(5), torch.ones(5), 1), seed=0)
        >>> strong(torch.ones(2, 5), at=(0, 0, 1), part=slice(0, 2), joint=2)
        tensor([[1., 1., 1., 0., 1.],
                [1., 0., 1., 1., 1.]])
    """

    def __init__(self, standardise: Standardise, *, seed: int, span: tuple[float, float] = (0.0, 255.0)) -> None:
        self.standardise, self.seed = standardise, seed
        self.low, self.range = span[0], (span[1] - span[0]) or 1.0

    def __call__(self, x: Tensor, *, at: tuple[int, int, int], part: slice, joint: int) -> Tensor:
        """This rank's rows of a batch, augmented and standardised.

        Args:
            x: `(B, C, H, W)` images or `(B, ...)` anything else, uint8 or float, on any device.
            at: epoch, step and view.
            part: which rows of the joint batch these are.
            joint: rows of the joint batch.

        Returns:
            `(B, ...)` float32.

        Raises:
            ValueError: images have neither one nor three channels, or are smaller than 3x3.
        """
        rng = generator(self.seed, "strong", *at)
        if x.ndim == 4:
            x = self._distorted(x, at, part, joint)
            keep = _cutout(*x.shape[-2:], rng=rng, joint=joint)
        else:
            keep = torch.rand(joint, *x.shape[1:], generator=rng) >= _MASKED
        out: Tensor = self.standardise(x) * keep[part].to(x.device, non_blocking=True)
        return out

    @torch.no_grad()
    def _distorted(self, x: Tensor, at: tuple[int, int, int], part: slice, joint: int) -> Tensor:
        if x.shape[1] not in (1, 3) or min(x.shape[-2:]) < 3:
            raise ValueError(
                f"strong views need images of 1 or 3 channels and at least 3x3 pixels, but these are "
                f"{tuple(x.shape[1:])}: choose a method without strong views"
            )
        unit = (x.float() - self.low).div_(self.range).clamp_(0, 1).expand(-1, 3, -1, -1)
        out = torch.empty_like(x, dtype=torch.float32)  # in the memory layout of weak views: convolutions are faster so
        for first in range(part.start - part.start % _GROUP, part.stop, _GROUP):
            lo, hi = max(first, part.start), min(first + _GROUP, part.stop)
            mine = slice(lo - part.start, hi - part.start)
            # draws are for the whole group: rows of other ranks are blank, and dropped afterwards
            group = unit.new_zeros(min(_GROUP, joint - first), *unit.shape[1:])
            group[lo - first : hi - first] = unit[mine]
            done = self._one_policy(group, (*at, first))[lo - first : hi - first]
            out[mine] = done if x.shape[1] == 3 else done.mean(1, keepdim=True)
        return out.mul_(self.range).add_(self.low)

    def _one_policy(self, group: Tensor, at: tuple[int, ...]) -> Tensor:
        """`(B, 3, H, W)` images in [0, 1], all under one sub-policy."""
        with seeded(self.seed, "policy", *at):  # kornia draws from torch's global generator, on the CPU
            out: Tensor = _policy()(group)
        return out


@cache
def _policy() -> Any:
    """The CIFAR-10 policy of AutoAugment: 25 sub-policies of two operations, each in four variants of sign.

    kornia's own table of it is mended in three points. Its rotations, shears and shifts go one way only, where the
    released AutoAugment draws a sign: so each occurs with the mirrored magnitude (bin 9 - m) too. Its brightness adds
    up to 0.9, which leaves white images, where the paper multiplies: which is what kornia calls contrast. Its shears
    are given in half turns: at bins 7 and 8 they reach 43 degrees instead of 15, which bin 6 (11 to 22) is closest to.
    """
    # imported here: most methods never need it
    from kornia.augmentation.auto import AutoAugment
    from kornia.augmentation.auto.autoaugment.autoaugment import cifar10_policy

    def mend(name: str, probability: float, magnitude: Any, mirror: bool) -> tuple[str, float, Any]:
        if name.startswith("shear"):
            magnitude = 6
        if mirror and name in _SIGNED:
            magnitude = 9 - magnitude
        return "contrast" if name == "brightness" else name, probability, magnitude

    policy = [
        [mend(*op, mirror) for op, mirror in zip(pair, mirrors, strict=True)]
        for pair in cifar10_policy
        for mirrors in product((False, True), repeat=2)
    ]
    return AutoAugment(policy, transformation_matrix_mode="skip")


def _cutout(height: int, width: int, *, rng: torch.Generator, joint: int) -> Tensor:
    """`(joint, 1, H, W)` bool, False in a square of half the shorter side around any pixel, clipped at the borders."""
    size = min(height, width) // 2
    centre = torch.rand(2, joint, 1, generator=rng)

    def near(side: int, where: Tensor) -> Tensor:
        offset = torch.arange(side) - (where * side).long() + size // 2
        return (offset >= 0) & (offset < size)

    return ~(near(height, centre[0])[:, None, :, None] & near(width, centre[1])[:, None, None, :])
