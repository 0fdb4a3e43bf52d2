"""ResNet-32 for small images, as PRL and the comparisons after Meta-Weight-Net train it.

He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, with n = 5: a 3x3 convolution to 16
channels, three stages of five basic blocks at 16, 32 and 64 channels, a global average and one linear layer. Where the
shape changes the shortcut is option A of that paper: every second pixel, and zeros for the channels that are missing;
it has no parameters. Convolutions and the linear layer start as in He et al., "Delving deep into rectifiers", ICCV
2015: normal with variance 2 / fan-in.

464,154 parameters for 3 channels in and 10 outputs, with BatchNorm as with GroupNorm.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from labelproof.networks.base import Norm
from labelproof.networks.resnet import BasicBlock, ResNet


class ResNet32(ResNet):
    """Three stages at 16, 32 and 64 channels, `(B, C, H, W) -> (B, 64)` before the last layer.

    Made for 32x32. Of 8x8 pixels, the fewest offered, 2x2 reach the third stage. With `group_norm` the first two stages
    have one channel per group and the third has two.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels.
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        block = partial(BasicBlock, shortcut=PaddedShortcut)
        super().__init__(in_shape, num_outputs, depths=(5, 5, 5), widths=(16, 32, 64), block=block, norm=norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions and of the linear layer anew, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)


class PaddedShortcut(nn.Module):
    """Option A: `(B, C, H, W) -> (B, width, H / stride, W / stride)`, sizes rounded up, half the zeros on each side."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.before = (width - channels) // 2
        self.after = width - channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(kept, (0, 0, 0, 0, self.before, self.after))
