"""ResNet-32 with the parameter-free shortcut, against other spellings of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelproof import networks
from labelproof.networks.factory import as_factory
from labelproof.networks.resnet32 import PaddedShortcut


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("channels", "width"), [(16, 32), (32, 64), (3, 8)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
def test_shortcut_against_numpy(channels, width, size):
    x = torch.randn(2, channels, *size)
    expected = np.zeros((2, width, -(-size[0] // 2), -(-size[1] // 2)), np.float32)
    first = (width - channels) // 2
    for channel in range(channels):
        for row in range(0, size[0], 2):
            for column in range(0, size[1], 2):
                expected[:, first + channel, row // 2, column // 2] = x[:, channel, row, column]
    shortcut = PaddedShortcut(channels, width, 2, nn.BatchNorm2d)
    np.testing.assert_array_equal(shortcut(x), expected)
    assert not list(shortcut.parameters())
    kept = shortcut(x.contiguous(memory_format=torch.channels_last))
    np.testing.assert_array_equal(kept, expected)


def test_a_quarter_of_the_channels_is_added_on_each_side():
    net = networks.build("resnet32", (3, 32, 32), 10)
    padded = [m for m in net.modules() if isinstance(m, PaddedShortcut)]
    assert [(m.before, m.after, m.stride) for m in padded] == [(8, 8, 2), (16, 16, 2)]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 14)])
def test_forward_against_a_spelling_with_functions_alone(shape):
    """`resnet32-gn` from its parameters in order, which also fixes the order and the number of its layers."""
    net = networks.build("resnet32-gn", shape, 10)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.1)
    left = list(net.parameters())

    def conv(x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, left.pop(0), stride=stride, padding=1)
        return F.group_norm(x, min(32, x.shape[1]), left.pop(0), left.pop(0))

    x = torch.randn(2, *shape)
    out = conv(x).relu()
    for width in (16, 32, 64):
        for position in range(5):
            halve = position == 0 and width > 16
            past = conv(conv(out, 2 if halve else 1).relu())
            if halve:
                zeros = torch.zeros(2, width // 4, *past.shape[2:])
                out = torch.cat((zeros, out[..., ::2, ::2], zeros), 1)
            out = (past + out).relu()
    expected = out.mean((2, 3)) @ left.pop(0).T + left.pop(0)
    assert not left
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.features(x), out.mean((2, 3)), rtol=1e-4, atol=1e-4)


def check_start(net: nn.Module) -> None:
    weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 32
    for module in weighted:
        fan_in = module.weight[0].numel()
        draws = module.weight.detach().flatten() / math.sqrt(2 / fan_in)
        error = 5 / math.sqrt(draws.numel())  # of mean and standard deviation, of which the mean's is 1/sqrt(n)
        assert abs(float(draws.mean())) < error
        assert abs(float(draws.std()) - 1) < error
        assert float(draws.abs().max()) > 1.8  # a uniform of this variance ends at 1.74


def test_weights_start_normal_with_variance_two_by_fan_in():
    check_start(networks.build("resnet32", (3, 32, 32), 10))


def test_a_second_network_starts_alike_from_other_draws():
    net = networks.build("resnet32", (3, 32, 32), 10)
    make = as_factory(net, (3, 32, 32), 10)
    second = make(1)
    check_start(second)
    assert not torch.equal(second.head.weight, net.head.weight)
    assert torch.equal(make(0).head.weight, net.head.weight)


def test_group_norm_changes_nothing_but_the_norms():
    torch.manual_seed(4)
    plain = networks.build("resnet32", (3, 32, 32), 10)
    torch.manual_seed(4)
    other = networks.build("resnet32-gn", (3, 32, 32), 10)
    for (name, a), (same, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b)
    groups = {(m.num_groups, m.num_channels) for m in other.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {(16, 16), (32, 32), (32, 64)}
