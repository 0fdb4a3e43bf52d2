"""Inception-ResNet-v2, against its published sizes and another spelling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelproof import networks

SIZES = {
    "stem": 172_672,
    "mixed_5b": 268_320,
    "block35": 1_231_680,
    "mixed_6a": 2_664_960,
    "block17": 22_535_680,
    "mixed_7a": 3_880_960,
    "block8": 18_318_816 + 2_035_424,
    "conv_7b": 3_197_952,
    "head": 76_850,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("suffix", ["", "-gn"])
def test_every_part_has_its_published_size(suffix):
    net = networks.build(f"inception-resnet-v2{suffix}", (3, 299, 299), 50)
    assert count(net) == 54_383_314
    assert {name: count(part) for name, part in net.named_children() if count(part)} == SIZES
    assert count(net.block8[9]) == 2_035_424
    assert len([m for m in net.modules() if isinstance(m, nn.Conv2d)]) == 244
    assert sum(b.numel() for b in net.buffers() if b.ndim) == (0 if suffix else 60_544)


def test_what_each_part_sees_of_299x299():
    net = networks.build("inception-resnet-v2", (3, 299, 299), 50).eval()
    seen = {}
    for name, part in net.named_children():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        net(torch.randn(1, 3, 299, 299))
    assert seen == {
        "stem": (192, 35, 35),
        "mixed_5b": (320, 35, 35),
        "block35": (320, 35, 35),
        "mixed_6a": (1088, 17, 17),
        "block17": (1088, 17, 17),
        "mixed_7a": (2080, 8, 8),
        "block8": (2080, 8, 8),
        "conv_7b": (1536, 8, 8),
        "pool": (1536,),
        "head": (50,),
    }


def test_the_smallest_image_leaves_one_pixel_and_one_less_none():
    net = networks.build("inception-resnet-v2", (3, 75, 75), 2).eval()
    seen = []
    net.conv_7b.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    with torch.no_grad():
        net(torch.randn(1, 3, 75, 75))
        assert seen == [(1, 1)]
        with pytest.raises(RuntimeError, match="size"):
            net(torch.randn(1, 3, 74, 74))


@pytest.mark.parametrize(
    ("part", "scale", "number"),
    [("block35", 0.17, 10), ("block17", 0.10, 20), ("block8", 0.20, 9)],
)
def test_blocks_add_a_scaled_part_to_their_input(part, scale, number):
    """With a projection of nothing but its bias b, a block is relu(x + scale b); the very last is x + b."""
    net = networks.build("inception-resnet-v2", (3, 75, 75), 2).eval()
    blocks = list(getattr(net, part))
    assert len(blocks) == number + (part == "block8")
    for position, block in enumerate(blocks):
        last = part == "block8" and position == 9
        channels = block.project.out_channels
        x, bias = torch.randn(2, channels, 3, 3), torch.randn(channels)
        with torch.no_grad():
            nn.init.zeros_(block.project.weight)
            block.project.bias.copy_(bias)
            want = x + (1.0 if last else scale) * bias[:, None, None]
            torch.testing.assert_close(block(x), want if last else want.relu())
            assert last == bool((block(x) < 0).any())


def test_branches_of_the_mixed_parts():
    """(kernel, channels out, stride) of each convolution on each branch, as in the table of the paper's release."""
    net = networks.build("inception-resnet-v2", (3, 75, 75), 2)

    def layout(part: nn.Module) -> list[list[tuple[int, int, int, int]]]:
        return [
            [(*m.kernel_size, m.out_channels, m.stride[0]) for m in branch.modules() if isinstance(m, nn.Conv2d)]
            for branch in part.branches
        ]

    assert layout(net.mixed_5b) == [
        [(1, 1, 96, 1)],
        [(1, 1, 48, 1), (5, 5, 64, 1)],
        [(1, 1, 64, 1), (3, 3, 96, 1), (3, 3, 96, 1)],
        [(1, 1, 64, 1)],
    ]
    assert layout(net.mixed_6a) == [
        [(3, 3, 384, 2)],
        [(1, 1, 256, 1), (3, 3, 256, 1), (3, 3, 384, 2)],
        [],
    ]
    assert layout(net.block17[7]) == [[(1, 1, 192, 1)], [(1, 1, 128, 1), (1, 7, 160, 1), (7, 1, 192, 1)]]
    assert layout(net.mixed_7a) == [
        [(1, 1, 256, 1), (3, 3, 384, 2)],
        [(1, 1, 256, 1), (3, 3, 288, 2)],
        [(1, 1, 256, 1), (3, 3, 288, 1), (3, 3, 320, 2)],
        [],
    ]
    assert layout(net.block8[9]) == [[(1, 1, 192, 1)], [(1, 1, 192, 1), (1, 3, 224, 1), (3, 1, 256, 1)]]


def test_norms():
    net = networks.build("inception-resnet-v2", (3, 75, 75), 2)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 244 - 40  # the projections of the 40 blocks have none
    assert {m.eps for m in norms} == {1e-3}
    groups = {
        m.num_channels: m.num_groups
        for m in networks.build("inception-resnet-v2-gn", (3, 75, 75), 2).modules()
        if isinstance(m, nn.GroupNorm)
    }
    assert {c: g for c, g in groups.items() if g != 32} == {48: 16, 80: 16}


@pytest.mark.parametrize("name", ["inception-resnet-v2", "inception-resnet-v2-gn"])
def test_gradients_reach_every_weight_and_black_images_are_safe(name):
    net = networks.build(name, (3, 90, 90), 3)
    net(torch.randn(2, 3, 90, 90)).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()) for p in net.parameters())
    with torch.no_grad():
        assert bool(torch.isfinite(net.eval()(torch.zeros(2, 3, 75, 75))).all())
