"""Norms of single samples' gradients against plain autograd, one sample at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import labelproof as lp
from labelproof.functional import gradnorm
from labelproof.functional.gradnorm import gradient_norms
from tests.functional.samplewise import OTHERS, RULES, B, K, Net, check, conv, crooked, deep, images, made, oracle, rows


@pytest.fixture
def by_vmap(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows whenever the rules did not cover a network."""
    calls: list[bool] = []
    plain = gradnorm._by_vmap
    monkeypatch.setattr(gradnorm, "_by_vmap", lambda *words: (calls.append(True), plain(*words))[1])
    return calls


@pytest.mark.parametrize("name", RULES)
def test_the_rules_equal_microbatches_of_one(name: str, by_vmap: list[bool]) -> None:
    net, x, target = made(*RULES[name])
    norms = check(net, x, target)
    assert float(norms.min()) > 1e-3, "a test of zeros tests nothing"
    assert float(norms.std() / norms.mean()) > 1e-3, "nor does one of equal norms"
    double = x.double() if x.is_floating_point() else x
    check(net.double(), double, target.double(), rtol=1e-5)
    assert not by_vmap, "these are the networks that the rules are for"


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_equal_microbatches_of_one(name: str, by_vmap: list[bool]) -> None:
    net, x, target = made(*OTHERS[name])
    assert float(check(net, x, target).min()) > 1e-3
    double = x.double() if x.is_floating_point() else x
    check(net.double(), double, target.double(), rtol=1e-5)
    assert len(by_vmap) == 2


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("name", ["mlp", "few positions", "many positions", "conv2d", "text", "called twice", "PReLU"])
def test_few_samples(name: str, n: int) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name], n=n)
    assert check(net, x, target).shape == (n,)


def test_more_samples_than_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and `torch.func` take some at a time: no sample is lost at the seams."""
    monkeypatch.setattr(gradnorm, "_AT_ONCE", 500)
    for name in ("conv2d", "PReLU"):
        check(*made(*{**RULES, **OTHERS}[name], n=37))
    monkeypatch.undo()
    check(*made(*RULES["conv1d"], n=67))


@pytest.mark.parametrize("how", ["inputs", "network", "both"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d, all different", "GroupNorm of images"])
def test_channels_last(name: str, how: str) -> None:
    net, x, target = made(*RULES[name])
    want = gradient_norms(net, x, crooked(target))[0]
    if how != "inputs":
        net = net.to(memory_format=torch.channels_last)
    if how != "network":
        x = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(check(net, x, target), want, rtol=1e-5, atol=0)


NETWORKS = {"mlp": (8, 8), **{name: (28, 28) for name in lp.networks.available() if name.endswith("-gn")}}
NETWORKS |= {name: (8, 8) for name in NETWORKS if name.startswith(("resnet", "preact"))}
NETWORKS |= {name: (32, 32) for name in NETWORKS if "imagenet" in name} | {"inception-resnet-v2-gn": (75, 75)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_we_offer(name: str, by_vmap: list[bool]) -> None:
    torch.manual_seed(0)
    shape = (3, *NETWORKS[name])
    net = lp.networks.build(name, shape, K).eval()  # dropout would draw another mask for each microbatch
    check(net, torch.randn(2, *shape), torch.randn(2, K), rtol=2e-4)
    assert not by_vmap


@pytest.mark.parametrize("name", ["mlp", "conv2d", "GroupNorm of images", "text", "PReLU", "tied weights"])
def test_nothing_is_left_behind(name: str) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    part = next(iter(net.children()))
    part.eval()
    next(p for p in net.parameters() if p.ndim == 1).requires_grad_(False)
    for p in net.parameters():
        p.grad = torch.full_like(p, 7.0)
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    values, inputs, rng = [p.detach().clone() for p in net.parameters()], x.clone(), torch.get_rng_state()
    gradient_norms(net, x, crooked(target))
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(bool((p.grad == 7).all()) for p in net.parameters() if p.grad is not None)
    assert all(p.grad is not None and p.is_leaf for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))
    assert torch.equal(x, inputs)
    assert torch.equal(torch.get_rng_state(), rng)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(m, kind) for m in net.modules() for kind in hooks)
    assert not any(p._backward_hooks for p in net.parameters())


def test_no_hook_is_left_after_an_error() -> None:
    net, x, target = made(*RULES["mlp"])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradient_norms(net, x[:, :2], crooked(target))

    def broken(out: Tensor) -> Tensor:
        raise LookupError("the loss is at fault")

    with pytest.raises(LookupError, match="at fault"):
        gradient_norms(net, x, broken)
    assert not any(m._forward_hooks for m in net.modules())
    check(net, x, target)


@pytest.mark.parametrize("name", ["mlp", "PReLU"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.enable_grad])
def test_whatever_the_mode_of_gradients_outside(name: str, guard: Any) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    want = oracle(net, x, target)
    with guard():
        norms, out = gradient_norms(net, x, crooked(target))
        assert torch.is_grad_enabled() == (guard is torch.enable_grad)
    torch.testing.assert_close(norms, want.float(), rtol=1e-4, atol=0)
    assert not out.requires_grad


@pytest.mark.parametrize("name", ["mlp", "conv2d", "text", "PReLU"])
def test_nothing_to_train(name: str) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    net.requires_grad_(False)
    norms, out = gradient_norms(net, x, crooked(target))
    assert norms.tolist() == [0] * B
    torch.testing.assert_close(out, net(x))


@pytest.mark.parametrize("name", ["mlp", "few positions", "many positions", "conv2d", "LayerNorm", "text", "PReLU"])
def test_losses_without_gradient_have_norm_zero(name: str) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    there = torch.tensor([1.0, 0, 1, 0, 0])
    norms = gradient_norms(net, x, lambda out: crooked(target)(out) * there)[0]
    assert torch.equal(norms > 0, there > 0)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "few positions", "many positions", "GroupNorm of images", "PReLU"])
def test_a_sample_that_is_not_a_number_spoils_itself_alone(name: str) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    want = gradient_norms(net, x, crooked(target))[0]
    x[1] = torch.nan
    norms = gradient_norms(net, x, crooked(target))[0]
    assert norms.isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(norms[[0, 2, 3, 4]], want[[0, 2, 3, 4]], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["mlp", "few positions", "many positions", "conv2d", "text", "LayerNorm", "PReLU"])
def test_scales_with_the_loss(name: str) -> None:
    """Far from overflow and from underflow, and never as the loss of the batch divided by its size."""
    net, x, target = made(*{**RULES, **OTHERS}[name])
    want = gradient_norms(net, x, crooked(target))[0]
    for factor in (1e-12, 1e12):
        norms = gradient_norms(net, x, lambda out, f=factor: f * crooked(target)(out))[0]
        torch.testing.assert_close(norms / factor, want, rtol=1e-4, atol=0)
    twice = gradient_norms(net, torch.cat([x, x]), crooked(torch.cat([target, target])))[0]
    torch.testing.assert_close(twice, torch.cat([want, want]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "GroupNorm of images", "LayerNorm", "text", "PReLU"])
def test_under_autocast(name: str) -> None:
    net, x, target = made(*{**RULES, **OTHERS}[name])
    want = oracle(net, x, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms, out = gradient_norms(net, x, lambda out: crooked(target)(out.float()))
    assert out.dtype == (torch.float32 if name in OTHERS else torch.bfloat16)  # torch.func is run in full precision
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, want.float(), rtol=0.05, atol=0)


def test_autocast_leaves_weights_that_can_still_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights cast to half precision without gradient are kept by older versions of torch: they must be dropped."""
    for name, times in (("mlp", 2), ("PReLU", 1)):  # after the first look, and at the end
        net, x, target = made(*{**RULES, **OTHERS}[name])
        dropped, plain = [], torch.clear_autocast_cache
        with monkeypatch.context() as patched, torch.autocast("cpu", dtype=torch.bfloat16):
            patched.setattr(torch, "clear_autocast_cache", lambda: (dropped.append(True), plain()))  # noqa: B023
            gradient_norms(net, x, lambda out: crooked(target)(out.float()))  # noqa: B023
            assert len(dropped) == times, "leaving autocast drops them too, which is too late"
            net(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_dropout_that_is_covered_by_the_rules() -> None:
    """One mask: outputs and norms are of the same pass."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1, bias=False))
    nn.init.ones_(net[1].weight)
    torch.manual_seed(0)
    norms, out = gradient_norms(net, torch.ones(64, 1), lambda out: out.square().sum(1))
    torch.testing.assert_close(norms, 8 * (out.flatten() > 0).float())  # 2 f x, both 2 or 0
    assert 16 < int((norms > 0).sum()) < 48


def test_batchnorm_in_evaluation_mode_is_a_layer_as_others() -> None:
    for case in ((deep(nn.BatchNorm1d(8)), rows(4)), (conv(2, after=nn.BatchNorm2d(6)), images(2))):
        net, x, target = made(*case)
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()
                nn.init.normal_(m.running_mean)
        check(net, x, target)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)])
def test_batchnorm_in_training_mode_is_refused(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Flatten(), nn.Linear(36, K))
    with pytest.raises(ValueError, match=r"Sequential: gradients of single samples .* such as prl-l"):
        gradient_norms(net, torch.randn(B, 2, 11), crooked(torch.randn(B, K)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layers_are_right_or_refused(kind: Any, dtype: torch.dtype) -> None:
    """What `torch.func` can do with them depends on its version and on the precision."""
    torch.manual_seed(0)
    net = Net(lambda s, x: s.head(s.body(x)[0][:, -1]), body=kind(4, 6, batch_first=True), head=nn.Linear(6, K))
    x, target = torch.randn(B, 7, 4, dtype=dtype), torch.randn(B, K, dtype=dtype)
    try:
        gradient_norms(net.to(dtype), x, crooked(target))
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        check(net, x, target)
    assert not said or re.search("^Net: gradients of single samples cannot be taken .* such as prl-l$", said)


PEAK = """
import resource, torch
from torch import nn
from labelproof.functional.gradnorm import gradient_norms
torch.set_num_threads(1)
net, x = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4)), torch.randn(96, 1024)
gradient_norms(net, x[:2], lambda out: out.square().sum(1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gradient_norms(net, x, lambda out: out.square().sum(1))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_the_gradients_of_all_samples_never_exist_together() -> None:
    """96 gradients of 4.2 MB each are 400 MB; the peak of a process of its own grows by far less."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40
