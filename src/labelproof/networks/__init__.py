"""The built-in networks, by name.

>>> import torch
>>> from labelproof import networks
>>> net = networks.build("cnn", (1, 28, 28), 10)
>>> x = torch.zeros(2, 1, 28, 28)
>>> net.features(x).shape, net(x).shape
(torch.Size([2, 1024]), torch.Size([2, 10]))

Any `nn.Module` of the user's serves just as well; one that offers `features(x)` and `head` serves every method.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from labelproof.core.registry import lookup
from labelproof.networks.base import Backbone, group_norm
from labelproof.networks.cnn import SmallCNN
from labelproof.networks.cnn9 import CNN9
from labelproof.networks.inception_resnet_v2 import InceptionResNetV2
from labelproof.networks.linear import Linear
from labelproof.networks.mlp import MLP
from labelproof.networks.preact import PreActBlock
from labelproof.networks.resnet import ResNet
from labelproof.networks.resnet32 import ResNet32
from labelproof.networks.resnet32_keras import ResNet32Keras
from labelproof.networks.resnet50 import ResNet50, imagenet_stem
from labelproof.networks.resnet110 import ResNet110

__all__ = ["Backbone", "available", "build"]


class _Entry(NamedTuple):
    make: Callable[..., Backbone]
    smallest: int  # pixels a side; 0 for a network that takes inputs of any shape
    what: str

    @property
    def about(self) -> str:
        return f"{self.what}; images from {self.smallest}x{self.smallest}" if self.smallest else self.what


_IMAGE_NETWORKS = {
    "cnn": _Entry(SmallCNN, 4, "3 small conv layers, quick on a CPU"),
    "cnn9": _Entry(CNN9, 28, "the 9-layer CNN of Co-teaching"),
    "resnet18": _Entry(partial(ResNet, depths=(2, 2, 2, 2)), 8, "ResNet-18 for small images"),
    "resnet32": _Entry(ResNet32, 8, "ResNet-32 for small images (PRL), 24 times smaller than ResNet-18"),
    "resnet32-keras": _Entry(ResNet32Keras, 8, "ResNet-32 with the layers of Keras (INCV)"),
    "resnet34": _Entry(partial(ResNet, depths=(3, 4, 6, 3)), 8, "ResNet-34 for small images (ELR, SOP)"),
    "preact-resnet18": _Entry(
        partial(ResNet, depths=(2, 2, 2, 2), block=PreActBlock), 8, "PreActResNet-18 (ELR+, SOP+, DivideMix)"
    ),
    "resnet50": _Entry(ResNet50, 8, "ResNet-50 for small images (SimCLR, Ghosh & Lan)"),
    "resnet110": _Entry(
        ResNet110, 8, "ResNet-110 of pre-activation bottlenecks, with the layers of Keras (INCV's theory)"
    ),
    "resnet18-imagenet": _Entry(partial(ResNet, depths=(2, 2, 2, 2), stem=imagenet_stem), 32, "ResNet-18"),
    "resnet34-imagenet": _Entry(partial(ResNet, depths=(3, 4, 6, 3), stem=imagenet_stem), 32, "ResNet-34"),
    "resnet50-imagenet": _Entry(partial(ResNet50, stem=imagenet_stem), 32, "ResNet-50 (Clothing1M)"),
    "inception-resnet-v2": _Entry(InceptionResNetV2, 75, "Inception-ResNet-v2 (WebVision)"),
}
_SMALLEST_WITH_GROUPNORM = {"cnn": 8}  # the others need no more than with BatchNorm; why, says SmallCNN


def _with_groupnorm(name: str, entry: _Entry) -> _Entry:
    return _Entry(
        partial(entry.make, norm=group_norm),
        _SMALLEST_WITH_GROUPNORM.get(name, entry.smallest),
        f"{name} with GroupNorm for BatchNorm",
    )


_NETWORKS = {
    "linear": _Entry(Linear, 0, "one linear layer, for embeddings; rows, or images flattened"),
    "mlp": _Entry(MLP, 0, "two hidden layers of 256, no BatchNorm; rows, or images flattened"),
    **_IMAGE_NETWORKS,
    **{f"{name}-gn": _with_groupnorm(name, entry) for name, entry in _IMAGE_NETWORKS.items()},
}


def available() -> dict[str, str]:
    """The names `build` knows, each with one line about it.

    Every image network is offered twice: as published, with BatchNorm, and under the same name with `-gn` at the end
    with GroupNorm, for methods that look at single samples' gradients.

    >>> list(available())[:8]
    ['linear', 'mlp', 'cnn', 'cnn9', 'resnet18', 'resnet32', 'resnet32-keras', 'resnet34']
    >>> available()["cnn-gn"]
    'cnn with GroupNorm for BatchNorm; images from 8x8'
    """
    return {name: entry.about for name, entry in _NETWORKS.items()}


def build(name: str, in_shape: Sequence[int], num_outputs: int) -> Backbone:
    """A freshly initialised network, drawn from torch's global generator.

    Weights start as PyTorch has it, those of `resnet32`, `resnet32-keras` and `resnet110` as their papers have it.

    Args:
        name: one of `available()`.
        in_shape: shape of one input without the batch: `(C, H, W)` for images, `(D,)` for rows.
        num_outputs: classes in classification, targets in regression; at least 1.

    Returns:
        A module from float input `(B, *in_shape)` to `(B, num_outputs)`; it has `features(x)` and `head`.

    Raises:
        ValueError: unknown name, a shape the network cannot take, or no output.

    >>> build("mlp", (13,), 1).head
    Linear(in_features=256, out_features=1, bias=True)
    """
    entry = lookup("network", name, _NETWORKS)
    shape, outputs = tuple(operator.index(side) for side in in_shape), operator.index(num_outputs)
    if outputs < 1:
        raise ValueError(f"num_outputs={outputs} must be at least 1: the number of classes, or of regression targets")
    if not shape or min(shape) < 1:
        raise ValueError(f"in_shape={shape} must be (C, H, W) for images or (D,) for rows, every entry at least 1")
    _check_image(name, shape, entry.smallest)
    return entry.make(shape, outputs)


def _check_image(name: str, shape: tuple[int, ...], smallest: int) -> None:
    if smallest == 0:
        return
    if len(shape) != 3:
        raise ValueError(
            f"network={name!r} takes images (C, H, W), but one input has in_shape={shape}: "
            "use network='mlp', or reshape the inputs to images"
        )
    if min(shape[1:]) < smallest:
        fitting = [other for other, entry in _NETWORKS.items() if entry.smallest <= min(shape[1:])]
        raise ValueError(
            f"network={name!r} needs images of at least {smallest}x{smallest} pixels, not {shape[1]}x{shape[2]}: "
            f"resize them (image_size={smallest}) or use one of {', '.join(fitting)}"
        )
