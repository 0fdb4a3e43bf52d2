"""The 9-layer CNN of Co-teaching and most comparisons after it.

Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy labels", NeurIPS 2018, table 2;
after Laine & Aila, "Temporal ensembling", ICLR 2017.

Every convolution is 3x3 with bias, followed by BatchNorm and LeakyReLU(0.01):

    128-128-128, pool, dropout | 256-256-256, pool, dropout | 512-256-128 without padding, average, linear

Deviation from the released code: dropout is `nn.Dropout2d`, so that it is off at evaluation. There it was called as a
function that ignores `eval()`, and noised every prediction on PyTorch 1.0 and later.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from labelproof.networks.base import Backbone, Norm


class CNN9(Backbone):
    """Needs 28x28 or more: two poolings and three unpadded convolutions leave `size // 4 - 6` pixels a side.

    Args:
        in_shape: `(C, H, W)`.
        num_outputs: outputs of the last layer.
        norm: makes the layer that normalises so many channels. `group_norm` sees four numbers per group in the last
            layer at 28x28, the fewest of any network here.
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        conv = partial(_conv, norm=norm)
        self.layers = nn.Sequential(
            *conv(in_shape[0], 128, padding=1),
            *conv(128, 128, padding=1),
            *conv(128, 128, padding=1),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.25),
            *conv(128, 256, padding=1),
            *conv(256, 256, padding=1),
            *conv(256, 256, padding=1),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.25),
            *conv(256, 512, padding=0),
            *conv(512, 256, padding=0),
            *conv(256, 128, padding=0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 128)`."""
        out: Tensor = self.layers(x)
        return out


def _conv(channels: int, width: int, *, padding: int, norm: Norm) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, padding=padding), norm(width), nn.LeakyReLU(0.01)
