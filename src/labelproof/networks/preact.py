"""The block of PreActResNet-18 in the form ELR+, SOP+ and DivideMix train.

He et al., "Identity mappings in deep residual networks", ECCV 2016, with three differences that those works share and
that comparisons with their numbers need: the stem has a BatchNorm and a ReLU; the skip path always carries the
*activated* input relu(bn1(x)), in identity blocks too; and there is no BatchNorm and ReLU after the last block.
Stem and stages are those of `resnet.ResNet`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelproof.networks.base import Norm


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the activated input (through a 1x1 conv where the shape changes)."""

    def __init__(self, channels: int, width: int, stride: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.bn1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active)))) + self.shortcut(active)
        return out
