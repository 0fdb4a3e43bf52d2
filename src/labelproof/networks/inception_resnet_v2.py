"""Inception-ResNet-v2, which ELR, DivideMix and others train on mini-WebVision.

Szegedy et al., "Inception-v4, Inception-ResNet and the impact of residual connections on learning", AAAI 2017, in the
form that its authors released weights of and that the works above train. It differs from the paper's figures: the stem
is that of Inception-v3, `mixed_5b` follows it, the three kinds of blocks are repeated 10, 20 and 10 times, and they
are wider. Convolutions have no bias and are followed by BN (1e-3 added to the variance) and ReLU; those of the stem
and those with stride 2 are not padded.

    part        what                                            channels out    pixels a side of 299
    stem        3x3/2 32, 3x3 32, 3x3 64 padded, pool,                     192                  35
                1x1 80, 3x3 192, pool
    mixed_5b    1x1 96 | 1x1 48, 5x5 64 | 1x1 64, 3x3 96,                  320                  35
                3x3 96 | average of 3x3, 1x1 64
    block35     10 times: 1x1 32 | 1x1 32, 3x3 32 |                        320                  35
                1x1 32, 3x3 48, 3x3 64; scale 0.17
    mixed_6a    3x3/2 384 | 1x1 256, 3x3 256, 3x3/2 384 | pool            1088                  17
    block17     20 times: 1x1 192 | 1x1 128, 1x7 160, 7x1 192;            1088                  17
                scale 0.10
    mixed_7a    1x1 256, 3x3/2 384 | 1x1 256, 3x3/2 288 |                 2080                   8
                1x1 256, 3x3 288, 3x3/2 320 | pool
    block8      9 times: 1x1 192 | 1x1 192, 1x3 224, 3x1 256;             2080                   8
                scale 0.20; and once with scale 1, without ReLU
    conv_7b     1x1                                                       1536                   8

A block adds its branches, put together and brought to the channels of its input by a 1x1 convolution with bias, to that
input: x + scale * branches(x), then ReLU. A global average and one linear layer follow; there is no dropout.

54,383,314 parameters for 3 channels in and 50 outputs; 244 convolutions. Weights start as PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from labelproof.networks.base import Backbone, Norm

_BATCH_NORM = partial(nn.BatchNorm2d, eps=1e-3)
#: Makes a convolution, its norm and ReLU from channels in, channels out and the kernel.
Unit = Callable[..., nn.Module]
_Sides = int | tuple[int, int]


class Branches(nn.Module):
    """What several branches make of the same input, `(B, C, H, W)`, behind one another along the channels."""

    def __init__(self, *branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class ResidualBranches(Branches):
    """`x + scale * project(branches(x))`, then ReLU.

    Args:
        branches: the layers of each.
        mixed: channels that the branches give together.
        channels: of the input, and so of the output.
        scale: of what is added; small, or training breaks down (section 3.3 of the paper).
        relu: whether a ReLU follows.
    """

    def __init__(
        self, *branches: Sequence[nn.Module], mixed: int, channels: int, scale: float, relu: bool = True
    ) -> None:
        super().__init__(*branches)
        self.project = nn.Conv2d(mixed, channels, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.scale * self.project(super().forward(x))
        return torch.relu(out) if self.relu else out


class InceptionResNetV2(Backbone):
    """`(B, C, H, W) -> (B, 1536)` before the last layer.

    Made for 299x299. Of 75x75 pixels, the fewest that its unpadded convolutions take, one is left at the end.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels.
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = _BATCH_NORM) -> None:
        super().__init__()
        unit = partial(_unit, norm)
        self.stem = nn.Sequential(
            unit(in_shape[0], 32, 3, stride=2),
            unit(32, 32, 3),
            unit(32, 64, 3, padding=1),
            nn.MaxPool2d(3, 2),
            unit(64, 80, 1),
            unit(80, 192, 3),
            nn.MaxPool2d(3, 2),
        )
        self.mixed_5b = _mixed_5b(unit)
        self.block35 = nn.Sequential(*(_block35(unit) for _ in range(10)))
        self.mixed_6a = _mixed_6a(unit)
        self.block17 = nn.Sequential(*(_block17(unit) for _ in range(20)))
        self.mixed_7a = _mixed_7a(unit)
        self.block8 = nn.Sequential(*(_block8(unit, 0.20) for _ in range(9)), _block8(unit, 1.0, relu=False))
        self.conv_7b = unit(2080, 1536, 1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(1536, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 1536)`."""
        x = self.block35(self.mixed_5b(self.stem(x)))
        x = self.block8(self.mixed_7a(self.block17(self.mixed_6a(x))))
        out: Tensor = self.pool(self.conv_7b(x))
        return out


def _unit(norm: Norm, channels: int, width: int, size: _Sides, *, stride: int = 1, padding: _Sides = 0) -> nn.Module:
    convolution = nn.Conv2d(channels, width, size, stride=stride, padding=padding, bias=False)
    return nn.Sequential(convolution, norm(width), nn.ReLU())


def _mixed_5b(unit: Unit) -> nn.Module:
    return Branches(
        [unit(192, 96, 1)],
        [unit(192, 48, 1), unit(48, 64, 5, padding=2)],
        [unit(192, 64, 1), unit(64, 96, 3, padding=1), unit(96, 96, 3, padding=1)],
        [nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), unit(192, 64, 1)],
    )


def _block35(unit: Unit) -> nn.Module:
    return ResidualBranches(
        [unit(320, 32, 1)],
        [unit(320, 32, 1), unit(32, 32, 3, padding=1)],
        [unit(320, 32, 1), unit(32, 48, 3, padding=1), unit(48, 64, 3, padding=1)],
        mixed=128,
        channels=320,
        scale=0.17,
    )


def _mixed_6a(unit: Unit) -> nn.Module:
    return Branches(
        [unit(320, 384, 3, stride=2)],
        [unit(320, 256, 1), unit(256, 256, 3, padding=1), unit(256, 384, 3, stride=2)],
        [nn.MaxPool2d(3, 2)],
    )


def _block17(unit: Unit) -> nn.Module:
    return ResidualBranches(
        [unit(1088, 192, 1)],
        [unit(1088, 128, 1), unit(128, 160, (1, 7), padding=(0, 3)), unit(160, 192, (7, 1), padding=(3, 0))],
        mixed=384,
        channels=1088,
        scale=0.10,
    )


def _mixed_7a(unit: Unit) -> nn.Module:
    return Branches(
        [unit(1088, 256, 1), unit(256, 384, 3, stride=2)],
        [unit(1088, 256, 1), unit(256, 288, 3, stride=2)],
        [unit(1088, 256, 1), unit(256, 288, 3, padding=1), unit(288, 320, 3, stride=2)],
        [nn.MaxPool2d(3, 2)],
    )


def _block8(unit: Unit, scale: float, *, relu: bool = True) -> nn.Module:
    return ResidualBranches(
        [unit(2080, 192, 1)],
        [unit(2080, 192, 1), unit(192, 224, (1, 3), padding=(0, 1)), unit(224, 256, (3, 1), padding=(1, 0))],
        mixed=448,
        channels=2080,
        scale=scale,
        relu=relu,
    )
