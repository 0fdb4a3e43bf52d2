"""ResNet-32 for small images as INCV trains it, which is how Keras makes its layers.

He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2, with n = 5, as `resnet32.ResNet32`
is; Chen et al., "Understanding and utilizing deep neural networks trained with noisy labels", ICML 2019, train it with
five differences:

- where the shape changes the shortcut is a 1x1 convolution and BatchNorm (option B);
- all convolutions have biases, although BatchNorm follows and takes them away again;
- a convolution with stride 2 pads by the rule of TensorFlow (`SamePadding`): at the right and the bottom alone where
  the size is even;
- BatchNorm adds 1e-3 to the variance and its running statistics keep 0.99 of their value (`batch_norm`);
- weights start as in Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
  AISTATS 2010: uniform with variance 2 / (fan-in + fan-out); biases at 0.

The L2 term is the optimiser's. Keras adds 1e-4 times the sum of squares of the weights of blocks and shortcuts, with
the gradient 2e-4 w; the same in torch is `weight_decay=2e-4` with Adam, not with AdamW, on these weights alone. The
paper's code leaves stem, last layer, biases and BatchNorm without; `--weight-decay` takes in all parameters.

468,138 parameters for 3 channels in and 10 outputs, with BatchNorm as with GroupNorm.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from labelproof.networks.base import Norm
from labelproof.networks.resnet import BasicBlock, ResNet, projection, small_stem


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with Keras' defaults; its momentum of 0.99 is what torch calls 0.01.

    After n steps 0.99^n of the running statistics are still their start, 0 and 1: 1 % after 460 steps. A network that
    was trained for fewer is evaluated with statistics that are not its own.

    >>> batch_norm(16).momentum
    0.01
    """
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SamePadding(nn.Module):
    """Zeros around images, so many that a convolution gives `ceil(size / stride)` pixels a side, as TensorFlow has it.

    Half of what is missing goes before, half after, and the odd one after. For a 3x3 kernel with stride 2 that is
    nothing before and one after where the size is even, and one on both sides where it is odd.

    Args:
        size: side of the kernel.
        stride: of the convolution that follows, which itself does not pad.

    >>> import torch
    >>> SamePadding(3, 2)(torch.zeros(1, 1, 32, 7)).shape
    torch.Size([1, 1, 33, 9])
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size = size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same with a larger H and W."""
        rows, columns = self._missing(x.shape[-2]), self._missing(x.shape[-1])
        return nn.functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    def _missing(self, pixels: int) -> int:
        last = (pixels - 1) // self.stride * self.stride  # where the last window starts
        return max(last + self.size - pixels, 0)

    def extra_repr(self) -> str:
        return f"{self.size}, stride={self.stride}"


def biased_convolution(channels: int, width: int, size: int, stride: int) -> nn.Module:
    """With a bias, and padded as TensorFlow does; `size` is odd."""
    if stride == 1 or size == 1:  # the rule asks for the same on all sides
        return nn.Conv2d(channels, width, size, stride=stride, padding=size // 2)
    return nn.Sequential(SamePadding(size, stride), nn.Conv2d(channels, width, size, stride=stride))


class ResNet32Keras(ResNet):
    """Three stages at 16, 32 and 64 channels, `(B, C, H, W) -> (B, 64)` before the last layer.

    Made for 32x32. Of 8x8 pixels, the fewest offered, 2x2 reach the third stage.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels.

    >>> import torch
    >>> ResNet32Keras((3, 32, 32), 10).features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = batch_norm) -> None:
        conv = biased_convolution
        block = partial(BasicBlock, conv=conv, shortcut=partial(projection, conv=conv))
        stem = partial(small_stem, conv=conv)
        super().__init__(
            in_shape, num_outputs, depths=(5, 5, 5), widths=(16, 32, 64), block=block, norm=norm, stem=stem
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions and of the linear layer anew, from torch's global generator; biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
