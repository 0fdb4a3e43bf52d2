"""ResNet-32 with Keras' layers, against other spellings of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelproof import networks
from labelproof.networks.factory import as_factory
from labelproof.networks.resnet32_keras import SamePadding, batch_norm, biased_convolution


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("shape", "num_outputs", "expected"),
    [((3, 32, 32), 10, 468_138), ((3, 32, 32), 100, 473_988), ((1, 28, 28), 10, 468_138 - 2 * 9 * 16)],
)
def test_it_has_the_published_size(shape, num_outputs, expected):
    net, groups = (networks.build(name, shape, num_outputs) for name in ("resnet32-keras", "resnet32-keras-gn"))
    for made in (net, groups):
        assert sum(p.numel() for p in made.parameters()) == expected
        convolutions = [m for m in made.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 33
        assert all(m.bias is not None for m in convolutions)
        assert sum(m.kernel_size == (1, 1) for m in convolutions) == 2
    assert sum(b.numel() for b in net.buffers() if b.ndim) == 2_464
    assert not list(groups.buffers())


def numpy_same(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3x3 convolution with stride 2: windows start at pixels 0, 2, 4 of an even side, at -1, 1, 3 of an odd one."""
    rows, columns = x.shape[2:]
    out = np.zeros((len(x), len(weight), -(-rows // 2), -(-columns // 2)))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            out[:, :, i, j] = bias
            for a in range(3):
                for b in range(3):
                    row, column = 2 * i + a - rows % 2, 2 * j + b - columns % 2
                    if 0 <= row < rows and 0 <= column < columns:
                        out[:, :, i, j] += x[:, :, row, column] @ weight[:, :, a, b].T
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (8, 7), (3, 6), (1, 2), (2, 1), (1, 1)])
def test_a_stride_of_two_against_numpy(size):
    conv = biased_convolution(3, 4, 3, 2)
    weight, bias = conv.parameters()
    nn.init.normal_(bias)
    x = torch.randn(2, 3, *size)
    expected = numpy_same(*(t.detach().double().numpy() for t in (x, weight, bias)))
    with torch.no_grad():
        np.testing.assert_allclose(conv(x), expected, atol=1e-5)
        np.testing.assert_allclose(conv(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
        torchs = F.conv2d(x, weight, bias, stride=2, padding=1)
    assert torchs.shape == expected.shape
    assert np.allclose(torchs, expected, atol=1e-5) == (size[0] % 2 == size[1] % 2 == 1)


def test_other_convolutions_pad_alike_on_all_sides():
    x = torch.randn(2, 3, 8, 7)
    conv = biased_convolution(3, 4, 3, 1)
    torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias))
    conv = biased_convolution(3, 4, 1, 2)
    torch.testing.assert_close(conv(x), F.conv2d(x[..., ::2, ::2], conv.weight, conv.bias))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_the_least_for_the_size_that_is_wanted_and_the_odd_one_comes_after(size, stride):
    padding = SamePadding(size, stride)
    for pixels in range(1, 12):
        line = padding(torch.ones(1, 1, pixels, 6)).amax((0, 1, 3))
        before = int(line.argmax())
        after = len(line) - pixels - before
        assert line.sum() == pixels
        assert after - before in (0, 1)
        wanted = math.ceil(pixels / stride)
        assert (len(line) - size) // stride + 1 == wanted
        if before + after:
            assert (len(line) - 1 - size) // stride + 1 < wanted


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 14)])
def test_forward_against_a_spelling_with_functions_alone(shape):
    """`resnet32-keras-gn` from its parameters in order, which also fixes the order and the number of its layers."""
    net = networks.build("resnet32-keras-gn", shape, 10)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.1)
    left = list(net.parameters())

    def conv(x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight, bias, scale, shift = (left.pop(0) for _ in range(4))
        if weight.shape[2] == 3:
            top, before = (int(stride == 1 or pixels % 2 == 1) for pixels in x.shape[2:])
            x = F.pad(x, (before, 1, top, 1))
        x = F.conv2d(x, weight, bias, stride=stride)
        return F.group_norm(x, min(32, x.shape[1]), scale, shift)

    x = torch.randn(2, *shape)
    out = conv(x).relu()
    for width in (16, 32, 64):
        for position in range(5):
            stride = 2 if position == 0 and width > 16 else 1
            past = conv(conv(out, stride).relu())
            out = (past + (conv(out, 2) if stride == 2 else out)).relu()
    expected = out.mean((2, 3)) @ left.pop(0).T + left.pop(0)
    assert not left
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.features(x), out.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert net.features(x).shape == (2, 64)


def test_with_its_second_convolution_silent_a_block_is_the_relu_of_its_shortcut():
    """Post-activation: the sum goes through ReLU, the shortcut alone through BN."""
    net = networks.build("resnet32-keras", (3, 32, 32), 10).eval()
    same, halving = net.blocks[1], net.blocks[5]
    x = torch.randn(2, 16, 7, 8)
    with torch.no_grad():
        for block in (same, halving):
            block.conv2.weight.zero_()
        torch.testing.assert_close(same(x), x.relu(), rtol=0, atol=0)
        conv, norm = halving.shortcut
        norm.running_mean.normal_()
        kept = F.conv2d(x[..., ::2, ::2], conv.weight) - norm.running_mean[:, None, None]
        torch.testing.assert_close(halving(x), (kept / math.sqrt(1 + 1e-3)).relu(), rtol=1e-5, atol=1e-5)


def test_batch_norm_against_numpy():
    """A variance as small as Keras' 1e-3 tells it from torch's 1e-5; statistics move by a hundredth."""
    norm = batch_norm(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 5 + 0.03 * torch.randn(4, 3, 5, 6)
    rows = x.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    mean, variance = rows.mean(1), rows.var(1)
    weight, bias = (p.detach().numpy()[:, None, None] for p in (norm.weight, norm.bias))
    scaled = (x.numpy() - mean[:, None, None]) / np.sqrt(variance + 1e-3)[:, None, None]
    np.testing.assert_allclose(norm(x).detach(), scaled * weight + bias, atol=1e-4)
    np.testing.assert_allclose(norm.running_mean, 0.01 * mean, rtol=1e-4)
    np.testing.assert_allclose(norm.running_var, 0.99 + 0.01 * rows.var(1, ddof=1), rtol=1e-5)
    net = networks.build("resnet32-keras", (3, 32, 32), 10)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in norms] == [(1e-3, 0.01)] * 33


def check_start(net: nn.Module) -> None:
    weighted = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 34
    for module in weighted:
        fans = module.weight[0].numel() + module.weight[:, 0].numel()
        draws = module.weight.detach().flatten() / math.sqrt(2 / fans)
        error = 5 / math.sqrt(draws.numel())  # of mean and standard deviation, of which the mean's is 1/sqrt(n)
        assert abs(float(draws.mean())) < error
        assert abs(float(draws.std()) - 1) < error
        assert 1.6 < float(draws.abs().max()) <= math.sqrt(3) + 1e-6
        assert not module.bias.any()


def test_weights_start_uniform_with_variance_two_by_both_fans_and_biases_at_zero():
    check_start(networks.build("resnet32-keras", (3, 32, 32), 10))


def test_a_second_network_starts_alike_from_other_draws():
    net = networks.build("resnet32-keras", (3, 32, 32), 10)
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
    net = networks.build("resnet32-keras", (2, 9, 12), 4).train()
    x, y = torch.randn(16, 2, 9, 12), torch.arange(16) % 4
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=2e-4)
    losses = []
    for _ in range(8):
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
    plain = networks.build("resnet32-keras", (3, 32, 32), 10)
    torch.manual_seed(4)
    other = networks.build("resnet32-keras-gn", (3, 32, 32), 10)
    for (name, a), (same, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(a, b)
    groups = {(m.num_groups, m.num_channels) for m in other.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {(16, 16), (32, 32), (32, 64)}
