"""ResNet-110 of pre-activation bottlenecks, against other spellings of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelproof import networks
from labelproof.networks.factory import as_factory


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("shape", "num_outputs", "expected"),
    [((3, 32, 32), 10, 3_302_442), ((3, 32, 32), 100, 3_325_572), ((1, 28, 28), 10, 3_302_442 - 2 * 9 * 16)],
)
def test_it_has_the_published_size(shape, num_outputs, expected):
    net, groups = (networks.build(name, shape, num_outputs) for name in ("resnet110", "resnet110-gn"))
    for made in (net, groups):
        assert sum(p.numel() for p in made.parameters()) == expected
        convolutions = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 112
        assert all(m.bias is not None for m in convolutions)
    assert sum(b.numel() for b in net.buffers() if b.ndim) == 20_768
    assert not list(groups.buffers())


def test_every_twelfth_block_has_a_projection_and_strides_sit_on_convolutions_of_one_pixel():
    net = networks.build("resnet110", (3, 32, 32), 10)
    assert len(net.blocks) == 36
    projections = {n: m.shortcut for n, m in enumerate(net.blocks) if list(m.shortcut.parameters())}
    assert {n: (m.in_channels, m.out_channels, m.stride) for n, m in projections.items()} == {
        0: (16, 64, (1, 1)),
        12: (64, 128, (2, 2)),
        24: (128, 256, (2, 2)),
    }
    strided = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert [m.kernel_size for m in strided] == [(1, 1)] * 4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 14)])
def test_forward_against_a_spelling_with_functions_alone(shape):
    """`resnet110-gn` from its parameters in order, which also fixes the order and the number of its layers."""
    net = networks.build("resnet110-gn", shape, 10)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.1)
    left = list(net.parameters())

    def conv(x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight, bias = left.pop(0), left.pop(0)
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[2] // 2)

    def active(x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, min(32, x.shape[1]), left.pop(0), left.pop(0)).relu()

    x = torch.randn(2, *shape)
    with torch.no_grad():
        out = active(conv(x))
        for stage in range(3):
            for position in range(12):
                stride = 2 if position == 0 and stage > 0 else 1
                past = conv(out if stage == position == 0 else active(out), stride)
                past = conv(active(conv(active(past))))
                out = past + (conv(out, stride) if position == 0 else out)
        features = active(out).mean((2, 3))
        expected = features @ left.pop(0).T + left.pop(0)
        assert not left
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(net.features(x), features, rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 256)


def test_with_its_last_convolution_silent_a_block_is_its_shortcut():
    """Pre-activation: nothing after the sum, and the shortcut carries the raw input, negative values and all."""
    net = networks.build("resnet110", (3, 32, 32), 10).eval()
    with torch.no_grad():
        for number in (0, 1, 12, 13, 24, 35):
            block = net.blocks[number]
            block.branch[-1].weight.zero_()
            x = torch.randn(2, {0: 16, 1: 64, 12: 64, 13: 128, 24: 128, 35: 256}[number], 7, 8)
            kept = x
            if number % 12 == 0:
                step = 2 if number else 1
                kept = torch.einsum("bchw,dc->bdhw", x[..., ::step, ::step], block.shortcut.weight[..., 0, 0])
            torch.testing.assert_close(block(x), kept, rtol=1e-4, atol=1e-5)
            assert kept.min() < 0


def test_the_norms_are_those_of_keras():
    net = networks.build("resnet110", (3, 32, 32), 10)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-3, 0.01)] * 109  # 3 in each block but 2 in the first, 2 outside


def check_start(net: nn.Module) -> None:
    """Normal, cut off at two standard deviations, and after the cut of variance 2 / fan-in."""
    weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 113
    together = []
    for module in weighted:
        draws = module.weight.detach().flatten() / math.sqrt(2 / module.weight[0].numel())
        error = 5 / math.sqrt(draws.numel())  # of mean and standard deviation, of which the mean's is 1/sqrt(n)
        assert abs(float(draws.mean())) < error
        assert abs(float(draws.std()) - 1) < error
        assert not module.bias.any()
        together.append(draws)
    draws = torch.cat(together)  # 3.3 million
    assert abs(float(draws.std()) - 1) < 0.002  # without the widening 0.88
    assert 2.27 < float(draws.abs().max()) <= 2 / 0.87962566 + 1e-5
    inside = float((draws.abs() < 1 / 0.87962566).double().mean())
    assert abs(inside - 0.68269 / 0.95450) < 0.002  # of a normal's one and two standard deviations; a uniform has 0.5


def test_weights_start_as_a_cut_normal_with_variance_two_by_fan_in_and_biases_at_zero():
    check_start(networks.build("resnet110", (3, 32, 32), 10))


def test_a_second_network_starts_alike_from_other_draws():
    net = networks.build("resnet110", (3, 32, 32), 10)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    make = as_factory(net, (3, 32, 32), 10)
    second = make(1)
    check_start(second)
    norms = [m for m in second.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((m.weight == 1).all()) and not m.bias.any() for m in norms)
    assert torch.equal(make(0).head.weight, net.head.weight)
    assert not torch.equal(make(2).head.weight, second.head.weight)


def test_a_few_steps_lower_the_loss():
    net = networks.build("resnet110", (2, 9, 12), 4).train()
    x, y = torch.randn(16, 2, 9, 12), torch.arange(16) % 4
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] / 2


def test_group_norm_changes_nothing_but_the_norms():
    torch.manual_seed(4)
    plain = networks.build("resnet110", (3, 32, 32), 10)
    torch.manual_seed(4)
    other = networks.build("resnet110-gn", (3, 32, 32), 10)
    for (name, a), (same, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b)
    groups = {(m.num_groups, m.num_channels) for m in other.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {(16, 16), (32, 64), (32, 128), (32, 256)}
