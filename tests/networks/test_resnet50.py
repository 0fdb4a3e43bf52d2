"""ResNet-50 and the stem for ImageNet, against another spelling of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labelproof import networks

DEPTHS = (3, 4, 6, 3)
GEOMETRY = [("resnet50", 32, (32, 32, 16, 8, 4)), ("resnet50-imagenet", 224, (56, 56, 28, 14, 7))]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "num_outputs", "total", "encoder"),
    [
        ("resnet50", 10, 23_520_842, 23_500_352),
        ("resnet50", 100, 23_705_252, 23_500_352),
        ("resnet50-imagenet", 14, 23_508_032 + 28_686, 23_508_032),
        ("resnet50-imagenet", 1000, 25_557_032, 23_508_032),
        ("resnet34-imagenet", 1000, 21_797_672, 21_284_672),
        ("resnet18-imagenet", 1000, 11_689_512, 11_176_512),
    ],
)
@pytest.mark.parametrize("suffix", ["", "-gn"])
def test_sizes_are_the_published_ones(name, num_outputs, total, encoder, suffix):
    net = networks.build(name + suffix, (3, 32, 32), num_outputs)
    assert count(net) == total
    assert count(net) - count(net.head) == encoder
    running = sum(b.numel() for b in net.buffers() if b.ndim)
    assert running == (0 if suffix else {"resnet50": 53_120, "resnet34": 17_024, "resnet18": 9_600}[name.split("-")[0]])


@pytest.mark.parametrize(("name", "side", "sides"), GEOMETRY)
def test_what_each_stage_sees(name, side, sides):
    net = networks.build(name, (3, side, side), 10).eval()
    seen = []
    firsts = (0, 3, 7, 13)
    net.stem.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    for first, depth in zip(firsts, DEPTHS, strict=True):
        net.blocks[first + depth - 1].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert net.features(torch.randn(1, 3, side, side)).shape == (1, 2048)
    channels = (64, 256, 512, 1024, 2048)
    assert seen == [(c, s, s) for c, s in zip(channels, sides, strict=True)]


@pytest.mark.parametrize("name", ["resnet50", "resnet50-imagenet"])
def test_strides_sit_on_the_3x3_convolutions(name):
    net = networks.build(name, (3, 32, 32), 10)
    assert len(net.blocks) == 16
    strided = {n: m.conv2.stride[0] for n, m in enumerate(net.blocks) if m.conv2.stride != (1, 1)}
    assert strided == {3: 2, 7: 2, 13: 2}
    assert all(m.conv1.stride == m.conv3.stride == (1, 1) for m in net.blocks)
    assert all(m.conv2.kernel_size == (3, 3) and m.conv1.kernel_size == (1, 1) for m in net.blocks)
    projections = [n for n, m in enumerate(net.blocks) if list(m.shortcut.parameters())]
    assert projections == [0, 3, 7, 13]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 53
    assert all(m.bias is None for m in convolutions)


@pytest.mark.parametrize(("name", "shape"), [("resnet50", (2, 9, 14)), ("resnet50-imagenet", (3, 40, 57))])
def test_forward_against_a_spelling_with_functions_alone(name, shape):
    """From the parameters in order, which also fixes the order and the number of its layers."""
    net = networks.build(f"{name}-gn", shape, 10)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.1)
    left = list(net.parameters())

    def layer(x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = left.pop(0)
        out = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return F.group_norm(out, 32, left.pop(0), left.pop(0))

    x = torch.randn(2, *shape)
    with torch.no_grad():
        out = layer(x).relu() if name == "resnet50" else F.max_pool2d(layer(x, 2).relu(), 3, 2, padding=1)
        for stage, depth in enumerate(DEPTHS):
            for position in range(depth):
                stride = 2 if position == 0 and stage > 0 else 1
                past = layer(layer(layer(out).relu(), stride).relu())
                out = (past + (layer(out, stride) if position == 0 else out)).relu()
        features = out.mean((2, 3))
        expected = features @ left.pop(0).T + left.pop(0)
        assert not left
        torch.testing.assert_close(net.features(x), features, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "resnet50-imagenet"])
def test_gradients_reach_every_weight_and_black_images_are_safe(name):
    net = networks.build(name, (3, 32, 32), 3)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in net.parameters())
    with torch.no_grad():
        assert bool(torch.isfinite(net.eval()(torch.zeros(2, 3, 32, 32))).all())
