"""ResNets: stages of residual blocks; ResNet-18 and ResNet-34 as ELR, SOP and CIFAR-N train them.

He et al., "Deep residual learning for image recognition", CVPR 2016. The stem for small images is one 3x3 convolution
with stride 1 and no max-pooling, in place of the 7x7 one with stride 2 and pooling meant for ImageNet
(`resnet50.imagenet_stem`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from labelproof.networks.base import Backbone, Norm

#: Makes a convolution from channels in, channels out, side of the kernel and stride: `convolution`, or as it.
Convolution = Callable[[int, int, int, int], nn.Module]
#: Makes what comes before the blocks from channels in, channels out and the norm: `small_stem`, or as it.
Stem = Callable[[int, int, Norm], nn.Module]


def convolution(channels: int, width: int, size: int, stride: int) -> nn.Module:
    """Padded with half the kernel on every side, without bias, which the normalisation after it brings."""
    return nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False)


def small_stem(channels: int, width: int, norm: Norm, *, conv: Convolution = convolution) -> nn.Module:
    """The stem for small images: a 3x3 convolution with stride 1, BN and ReLU."""
    return nn.Sequential(conv(channels, width, 3, 1), norm(width), nn.ReLU())


def projection(channels: int, width: int, stride: int, norm: Norm, *, conv: Convolution = convolution) -> nn.Module:
    """The shortcut of option B: a 1x1 conv and BN."""
    return nn.Sequential(conv(channels, width, 1, stride), norm(width))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input, then ReLU.

    Args:
        channels: channels in.
        width: channels out.
        stride: of the first convolution.
        norm: makes the layer that normalises so many channels.
        shortcut: makes what the input goes through where the shape changes, from the four above.
        conv: makes the two 3x3 convolutions.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        *,
        norm: Norm = nn.BatchNorm2d,
        shortcut: Callable[[int, int, int, Norm], nn.Module] = projection,
        conv: Convolution = convolution,
    ) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, 1)
        self.bn2 = norm(width)
        changes = stride != 1 or channels != width
        self.shortcut = shortcut(channels, width, stride, norm) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(Backbone):
    """Stages of residual blocks, four at 64, 128, 256 and 512 channels for small images, unless told otherwise.

    Args:
        in_shape: `(C, H, W)`; height and width are halved at each stage but the first, then averaged away.
        num_outputs: outputs of the last layer.
        depths: blocks in each stage.
        widths: channels that each stage gives.
        start: channels that the stem gives; those of the first stage if not given.
        block: makes one block from (channels in, channels out, stride, norm=).
        norm: makes the layer that normalises so many channels.
        stem: makes the layers before the first block.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        start: int | None = None,
        block: Callable[..., nn.Module] = BasicBlock,
        norm: Norm = nn.BatchNorm2d,
        stem: Stem = small_stem,
    ) -> None:
        super().__init__()
        channels = start or widths[0]
        self.stem = stem(in_shape[0], channels, norm)
        self.blocks = nn.Sequential()
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for position in range(depth):
                self.blocks.append(block(channels, width, 2 if stage > 0 and position == 0 else 1, norm=norm))
                channels = width
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, F)`, F the channels of the last stage: 512 in ResNet-18 and ResNet-34."""
        out: Tensor = self.pool(self.blocks(self.stem(x)))
        return out
