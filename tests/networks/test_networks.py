"""The built-in networks: sizes, shapes, evaluation mode and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labelproof import networks

SMALL = ["cnn", "cnn9", "resnet18", "resnet32", "resnet32-keras", "resnet34", "preact-resnet18"]
SMALL += ["resnet50", "resnet110"]
LARGE = ["resnet18-imagenet", "resnet34-imagenet", "resnet50-imagenet", "inception-resnet-v2"]
PLAIN = SMALL + LARGE
GN = [f"{name}-gn" for name in PLAIN]
CONV = PLAIN + GN
SMALLEST = dict.fromkeys(CONV, 8) | {"cnn": 4, "cnn9": 28, "cnn9-gn": 28}
SMALLEST |= {name: 75 if name.startswith("inception") else 32 for n in LARGE for name in (n, f"{n}-gn")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def running_buffers(net: nn.Module) -> int:
    return sum(b.numel() for name, b in net.named_buffers() if name.endswith(("running_mean", "running_var")))


@pytest.mark.parametrize(
    ("name", "in_shape", "num_outputs", "expected", "buffers"),
    [
        ("cnn9", (3, 32, 32), 10, 4_434_570, 4_096),
        ("cnn9", (3, 32, 32), 100, 4_446_180, 4_096),
        ("cnn9", (1, 28, 28), 10, 4_432_266, 4_096),
        ("resnet18", (3, 32, 32), 10, 11_173_962, 9_600),
        ("resnet18", (3, 32, 32), 100, 11_220_132, 9_600),
        ("resnet34", (3, 32, 32), 10, 21_282_122, 17_024),
        ("resnet34", (3, 32, 32), 100, 21_328_292, 17_024),
        ("preact-resnet18", (3, 32, 32), 10, 11_171_274, 6_912),
        ("preact-resnet18", (3, 32, 32), 100, 11_217_444, 6_912),
        ("resnet32", (3, 32, 32), 10, 464_154, 2_272),
        ("resnet32", (3, 32, 32), 100, 470_004, 2_272),
        ("resnet32", (1, 28, 28), 10, 464_154 - 2 * 9 * 16, 2_272),
        ("resnet32-gn", (3, 32, 32), 10, 464_154, 0),
        ("resnet32-gn", (3, 32, 32), 100, 470_004, 0),
        ("cnn9-gn", (3, 32, 32), 10, 4_434_570, 0),
        ("resnet18-gn", (3, 32, 32), 10, 11_173_962, 0),
        ("resnet34-gn", (3, 32, 32), 10, 21_282_122, 0),
        ("preact-resnet18-gn", (3, 32, 32), 10, 11_171_274, 0),
        ("mlp", (20,), 3, 20 * 256 + 256 + 256 * 256 + 256 + 256 * 3 + 3, 0),
    ],
)
def test_sizes_are_those_of_the_published_networks(name, in_shape, num_outputs, expected, buffers):
    net = networks.build(name, in_shape, num_outputs)
    assert parameters(net) == expected
    assert running_buffers(net) == buffers


@pytest.mark.parametrize(
    ("stages", "sizes"),
    [
        ("resnet34", (221_952, 1_116_416, 6_822_400, 13_114_368)),
        ("preact-resnet18", (147_968, 525_184, 2_098_944, 8_392_192)),
    ],
)
def test_each_stage_has_its_published_size(stages, sizes):
    net = networks.build(stages, (3, 32, 32), 10)
    depths = (3, 4, 6, 3) if stages == "resnet34" else (2, 2, 2, 2)
    blocks, start = list(net.blocks), 0
    for depth, size in zip(depths, sizes, strict=True):
        assert sum(parameters(block) for block in blocks[start : start + depth]) == size
        start += depth


@pytest.mark.parametrize("name", networks.available())
@pytest.mark.parametrize("num_outputs", [1, 7])
def test_forward_is_head_of_features(name, num_outputs):
    side = max(28, SMALLEST.get(name, 0))
    net = networks.build(name, (3, side, side + 5), num_outputs).eval()
    x = torch.randn(2, 3, side, side + 5)
    with torch.no_grad():
        features = net.features(x)
        assert features.shape == (2, net.head.in_features)
        assert isinstance(net.head, nn.Linear)
        out = net(x)
        assert out.shape == (2, num_outputs)
        torch.testing.assert_close(out, net.head(features), rtol=0, atol=0)


@pytest.mark.parametrize("name", CONV)
def test_smallest_image_trains(name):
    side = SMALLEST[name]
    net = networks.build(name, (2, side, side), 3)
    net(torch.randn(2, 2, side, side)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", CONV)
def test_image_below_the_smallest_is_refused_with_the_remedy(name):
    side = SMALLEST[name] - 1
    with pytest.raises(ValueError, match=rf"{name}.*at least {side + 1}x{side + 1} pixels, not {side}x90.*image_size="):
        networks.build(name, (1, side, 90), 3)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 15, 31), (1, 28, 28), (3, 32, 32), (3, 65, 40)])
def test_the_grid_of_the_small_cnn_fits_every_image(shape):
    net = networks.build("cnn", shape, 2).eval()
    features = net.features(torch.randn(1, *shape))
    assert features.shape[1] == net.head.in_features <= 64 * 16


@pytest.mark.parametrize("name", networks.available())
def test_evaluation_is_repeatable(name):
    side = max(28, SMALLEST.get(name, 0))
    net = networks.build(name, (1, side, side), 4).eval()
    x = torch.randn(2, 1, side, side)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(x), rtol=0, atol=0)


def test_dropout_of_the_nine_layer_cnn_is_on_in_training_alone():
    net = networks.build("cnn9", (1, 28, 28), 4)
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert not torch.equal(net(x), net(x))


def test_preact_skip_carries_the_activated_input():
    """With its convolutions silenced, an identity block returns relu(bn1(x)), not x."""
    block = networks.build("preact-resnet18", (1, 8, 8), 2).blocks[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 64, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), torch.relu(block.bn1(x)))


def test_mlp_treats_every_sample_alone():
    net = networks.build("mlp", (5,), 2)
    x = torch.randn(6, 5)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


def test_small_cnn_learns_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.5
    y = torch.tensor(digits.target)
    net = networks.build("cnn", (1, 8, 8), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        for rows in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean()
    assert accuracy > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnet-34", (3, 32, 32), 10),
            r"unknown network 'resnet-34': did you mean 'resnet34'\? There are: cnn, cnn-gn, cnn9",
        ),
        (("CNN", (3, 32, 32), 10), r"did you mean 'cnn'\?"),
        (("zzz", (3, 32, 32), 10), r"unknown network 'zzz'; There are: cnn"),
        (("resnet18", (20,), 10), r"takes images \(C, H, W\), but one input has in_shape=\(20,\): use network='mlp'"),
        (("mlp", (), 10), r"in_shape=\(\) must be \(C, H, W\)"),
        (("mlp", (0,), 10), r"in_shape=\(0,\).*at least 1"),
        (("mlp", (3,), 0), r"num_outputs=0 must be at least 1"),
    ],
)
def test_unfit_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.build(*arguments)


def test_numpy_integers_are_accepted():
    assert networks.build("mlp", (np.int64(4),), np.int64(2)).head.out_features == 2


def test_available_describes_every_network():
    about = networks.available()
    assert list(about) == ["linear", "mlp", *CONV]
    assert all(line and "\n" not in line for line in about.values())
    assert about["cnn"].endswith("; images from 4x4")
    assert about["cnn-gn"] == "cnn with GroupNorm for BatchNorm; images from 8x8"
