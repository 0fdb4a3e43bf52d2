"""The bottleneck of ResNet-50, and the stem of ResNets for ImageNet.

He et al., "Deep residual learning for image recognition", CVPR 2016: figure 5 (right) and table 1. Stages of 3, 4, 6
and 3 blocks give 256, 512, 1024 and 2048 channels. The stride sits on the 3x3 convolution of a block, not on the first
1x1 one as in the paper: so do torchvision's weights ("v1.5") and the encoders of Ghosh & Lan, CVPRW 2021.

    network             stem                                   parameters without the last layer
    resnet50            3x3, stride 1                          23,500,352
    resnet50-imagenet   7x7, stride 2; 3x3 max-pool, stride 2  23,508,032

Weights start as PyTorch has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelproof.networks.base import Norm
from labelproof.networks.resnet import ResNet, Stem, convolution, projection, small_stem

_EXPANSION = 4


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, each with BN, ReLU after the first two; plus the input, then ReLU.

    Args:
        channels: channels in.
        width: channels out, a multiple of 4; the 3x3 convolution has a quarter of them.
        stride: of the 3x3 convolution, and of the shortcut.
        norm: makes the layer that normalises so many channels.
    """

    def __init__(self, channels: int, width: int, stride: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        inner = width // _EXPANSION
        self.conv1 = convolution(channels, inner, 1, 1)
        self.bn1 = norm(inner)
        self.conv2 = convolution(inner, inner, 3, stride)
        self.bn2 = norm(inner)
        self.conv3 = convolution(inner, width, 1, 1)
        self.bn3 = norm(width)
        changes = stride != 1 or channels != width
        self.shortcut = projection(channels, width, stride, norm) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet50(ResNet):
    """Sixteen bottlenecks, `(B, C, H, W) -> (B, 2048)` before the last layer.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels.
        stem: makes the layers before the first block.

    >>> ResNet50((3, 32, 32), 10).head
    Linear(in_features=2048, out_features=10, bias=True)
    """

    def __init__(
        self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = nn.BatchNorm2d, stem: Stem = small_stem
    ) -> None:
        super().__init__(
            in_shape,
            num_outputs,
            depths=(3, 4, 6, 3),
            widths=(256, 512, 1024, 2048),
            start=64,
            block=Bottleneck,
            norm=norm,
            stem=stem,
        )


def imagenet_stem(channels: int, width: int, norm: Norm) -> nn.Sequential:
    """A 7x7 convolution with stride 2, BN, ReLU, and 3x3 max-pooling with stride 2: a quarter of the pixels a side."""
    return nn.Sequential(convolution(channels, width, 7, 2), norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
