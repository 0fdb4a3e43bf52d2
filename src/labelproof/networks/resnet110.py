"""ResNet-110 with pre-activation and bottlenecks, which INCV's theory is verified with.

He et al., "Identity mappings in deep residual networks", ECCV 2016, in the form that Chen et al., "Understanding and
utilizing deep neural networks trained with noisy labels", ICML 2019, train: 110 = 9 * 12 + 2 layers. A 3x3 convolution
to 16 channels, BN and ReLU; three stages of twelve blocks, each BN-ReLU-conv three times with kernels of 1, 3 and 1;
BN, ReLU, a global average and one linear layer.

    stage        channels between blocks    within a block    first stride
    1                        64                   16               1
    2                       128                   64               2
    3                       256                  128               2

The first block of a stage has the stride on its first convolution and a shortcut of one 1x1 convolution, without BN, on
its raw input. The very first block starts with its convolution, because the stem ends with BN and ReLU. Convolutions
have biases. No kernel of size 3 has a stride, so that Keras and torch pad alike. BatchNorm is Keras'
(`resnet32_keras.batch_norm`). There is no L2 term.

Weights start as in He et al., "Delving deep into rectifiers", ICCV 2015, with variance 2 / fan-in, biases at 0. They
are drawn as by Keras' `he_normal` of today: from a normal cut off at two of its standard deviations, which is wider by
1 / 0.8796 so that 2 / fan-in is the variance after the cut. Keras 2.1.6, which the paper's code asks for, did not widen
it (keras-team/keras#8048): its weights were smaller by the factor 0.8796.

3,302,442 parameters for 3 channels in and 10 outputs, with BatchNorm as with GroupNorm; 112 convolutions. (The
ResNet-110 of CVPR 2016, of basic blocks, is another and has 1,727,962.)
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from labelproof.networks.base import Backbone, Norm
from labelproof.networks.resnet32_keras import batch_norm

_STAGES = ((16, 64), (64, 128), (128, 256))  # channels within a block, and between blocks
_DEPTH = 12
#: Standard deviation of a standard normal cut off at -2 and 2.
_CUT = math.sqrt(1 - 4 * math.exp(-2) / (math.sqrt(2 * math.pi) * math.erf(math.sqrt(2))))


class Bottleneck(nn.Module):
    """BN-ReLU-conv for kernels of 1, 3 and 1, plus the raw input (through a 1x1 conv where the channels change).

    Args:
        channels: channels in.
        inner: channels of the 3x3 convolution, in and out.
        width: channels out.
        stride: of the first convolution, and of the shortcut.
        activated: whether the input has been through BN and ReLU, so that the block starts with its convolution.
        norm: makes the layer that normalises so many channels.
    """

    def __init__(
        self, channels: int, inner: int, width: int, stride: int, *, activated: bool = False, norm: Norm = batch_norm
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential() if activated else nn.Sequential(norm(channels), nn.ReLU())
        self.branch.append(nn.Conv2d(channels, inner, 1, stride=stride))
        self.branch.extend((norm(inner), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1)))
        self.branch.extend((norm(inner), nn.ReLU(), nn.Conv2d(inner, width, 1)))
        changes = stride != 1 or channels != width
        self.shortcut = nn.Conv2d(channels, width, 1, stride=stride) if changes else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class ResNet110(Backbone):
    """Thirty-six bottlenecks, `(B, C, H, W) -> (B, 256)` before the last layer.

    Made for 32x32. Of 8x8 pixels, the fewest offered, 2x2 reach the third stage.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels.

    >>> import torch
    >>> ResNet110((3, 8, 8), 10).features(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 256])
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = batch_norm) -> None:
        super().__init__()
        channels = _STAGES[0][0]
        self.stem = nn.Sequential(nn.Conv2d(in_shape[0], channels, 3, padding=1), norm(channels), nn.ReLU())
        self.blocks = nn.Sequential()
        for stage, (inner, width) in enumerate(_STAGES):
            for position in range(_DEPTH):
                stride = 2 if stage > 0 and position == 0 else 1
                first = stage == position == 0
                self.blocks.append(Bottleneck(channels, inner, width, stride, activated=first, norm=norm))
                channels = width
        self.pool = nn.Sequential(norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, num_outputs)
        self.reset_parameters()

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 256)`."""
        out: Tensor = self.pool(self.blocks(self.stem(x)))
        return out

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions and of the linear layer anew, from torch's global generator; biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = 2 * math.sqrt(2 / module.weight[0].numel()) / _CUT
                nn.init.trunc_normal_(module.weight, std=bound / 2, a=-bound, b=bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
