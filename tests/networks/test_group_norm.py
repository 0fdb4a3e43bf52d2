"""The same networks with GroupNorm: every sample by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof import networks
from labelproof.networks.base import group_norm
from labelproof.networks.cnn import SmallCNN

GN = [name for name in networks.available() if name.endswith("-gn")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def training(name: str, side: int, *, channels: int = 2) -> nn.Module:
    """In training mode, but for dropout, which would make each pass another."""
    net = networks.build(name, (channels, side, side), 3).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    return net


def side_of(name: str) -> int:
    if name.startswith("inception"):
        return 75
    return 32 if "imagenet" in name else 28 if name.startswith("cnn9") else 8


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (16, 16), (32, 32), (48, 16), (80, 16), (64, 32), (512, 32)])
def test_group_norm_against_numpy(channels, groups):
    norm = group_norm(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, 4, 5)
    rows = x.numpy().astype(np.float64).reshape(3, groups, -1)
    scaled = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    weight, bias = (p.detach().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    np.testing.assert_allclose(norm(x).detach(), scaled.reshape(x.shape) * weight + bias, atol=1e-5)


@pytest.mark.parametrize("name", GN)
def test_names_and_shapes_of_the_parameters_are_those_of_the_plain_network(name):
    with_groups, plain = (networks.build(n, (3, 75, 75), 5) for n in (name, name.removesuffix("-gn")))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in with_groups.modules())
    assert not list(with_groups.buffers())
    shapes = [{key: p.shape for key, p in net.named_parameters()} for net in (with_groups, plain)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", GN)
def test_a_sample_does_not_see_the_rest_of_the_batch(name):
    side = side_of(name)
    net = training(name, side)
    x = torch.randn(3, 2, side, side)
    with torch.no_grad():
        alone, among = net(x[:1]), net(torch.cat((x[:1], 100 * x[1:])))[:1]
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-5)
    plain = training(name.removesuffix("-gn"), side)
    with torch.no_grad():
        assert (plain(x)[:1] - plain(torch.cat((x[:1], 100 * x[1:])))[:1]).abs().max() > 1e-3


def telling(net: nn.Module, side: int) -> float:
    """Share of the features that take more than two values, to a tenth, over 24 images."""
    with torch.no_grad():
        features = net.features(torch.randn(24, 2, side, side))
    return float(np.mean([len(column.mul(10).round().unique()) > 2 for column in features.T]))


@pytest.mark.parametrize("name", GN)
def test_the_smallest_images_are_told_apart(name):
    """Each feature has its ReLU, and some of these are off for all images."""
    assert telling(training(name, side_of(name)), side_of(name)) > 0.6


def test_the_small_cnn_with_groups_is_not_offered_below_8x8_because_it_tells_little_apart():
    """One pixel of two channels per group: all that is left is which is larger."""
    assert telling(SmallCNN((2, 4, 4), 3, norm=group_norm).train(), 4) < 0.4
    assert telling(SmallCNN((2, 4, 4), 3).train(), 4) > 0.6
    with pytest.raises(ValueError, match=r"network='cnn-gn' needs images of at least 8x8 pixels, not 4x4"):
        networks.build("cnn-gn", (2, 4, 4), 3)


@pytest.mark.parametrize("name", ["resnet32", *GN])
def test_channels_last_computes_the_same(name):
    side = side_of(name)
    net = training(name, side)
    x = torch.randn(2, 2, side, side)
    out = net(x)
    out.square().sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.to(memory_format=torch.channels_last)
    again = net(x.contiguous(memory_format=torch.channels_last))
    again.square().sum().backward()
    torch.testing.assert_close(again, out, rtol=1e-3, atol=1e-4)
    rounding = 1e-6
    if name.startswith(("resnet32-keras", "resnet110")):  # biases before a norm have nothing but rounding, of the whole
        rounding = 1e-7 * torch.cat([g.flatten() for g in gradients]).norm()
    # Groups of few numbers, one after another in these, make more of it; in float64 all agree to 1e-13.
    share = 2e-2 if name.startswith(("resnet50", "inception")) else 1e-3
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= share * gradient.norm() + rounding


@pytest.mark.parametrize("name", networks.available())
def test_the_layout_with_channels_last_is_for_networks_without_groups(name):
    assert networks.build(name, (1, 75, 75), 2).channels_last == (name not in GN)


def test_a_black_image_is_safe():
    net = training("resnet32-gn", 8)
    net(torch.zeros(2, 2, 8, 8)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_small_cnn_learns_digits_sample_by_sample():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
    y = torch.tensor(digits.target)
    net = networks.build("cnn-gn", (1, 8, 8), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        for rows in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net(x[1400:]).argmax(1) == y[1400:]).float().mean()
    assert accuracy > 0.85
