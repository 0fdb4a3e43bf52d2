"""Twins follow their networks, BatchNorm's statistics included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelproof.core.nets import (
    Nets,
    Snapshot,
    features,
    last_layer,
    preview,
    side_by_side,
    still_statistics,
    unseen,
    with_features,
)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_twins_start_as_copies_and_average_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    nets = Nets([net(), net()], twins=True)
    for peer, twin in zip(nets.peers, nets.twins, strict=True):
        for a, b in zip(peer.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b)
            assert a.data_ptr() != b.data_ptr()
    before = {k: v.clone() for k, v in nets.twins[0].state_dict().items()}
    nets.peers.train()
    optimizer = torch.optim.SGD(nets.peers.parameters(), lr=0.1)
    nets[0](torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    nets.update_twins(0.9)
    now = nets[0].state_dict()
    for k, v in nets.twins[0].state_dict().items():
        want = 0.9 * before[k] + 0.1 * now[k] if v.is_floating_point() else now[k]
        torch.testing.assert_close(v, want)
    assert any(not torch.equal(before[k], now[k]) for k in before if "running" in k)


def test_twins_are_never_trained() -> None:
    nets = Nets([net()], twins=True)
    assert not any(p.requires_grad for p in nets.twins.parameters())
    assert list(Nets([net()]).twins) == []


def test_features_of_a_network_with_a_convolutional_part_of_that_name() -> None:
    """A submodule `features`, as VGG has it, is not what the last layer sees."""

    class VGG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(1, 9, 3)
            self.classifier = nn.Sequential(nn.Linear(9 * 16, 7), nn.ReLU(), nn.Linear(7, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.classifier(self.features(x).flatten(1))
            return out

    assert features(VGG(), torch.ones(3, 1, 6, 6)).shape == (3, 7)


def test_a_snapshot_puts_parameters_and_statistics_back() -> None:
    torch.manual_seed(0)
    a = net().train()
    kept = Snapshot(a)
    before = {k: v.clone() for k, v in a.state_dict().items()}
    a(torch.randn(8, 3))
    nn.init.zeros_(a[0].weight)
    kept.restore(a)
    for k, v in a.state_dict().items():
        assert torch.equal(v, before[k])
    kept.train()
    assert not kept.net.training


def test_a_preview_leaves_nothing_behind() -> None:
    """Normalised by the batch as the pass that trains, yet no gradient, no moved statistics, no other mode."""
    torch.manual_seed(0)
    nets = Nets([nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)) for _ in range(2)]).train()
    before, x = {k: v.clone() for k, v in nets.state_dict().items()}, 5 + torch.randn(16, 4)
    seen = preview(nets, x)
    assert seen.shape == (2, 16, 3)
    assert not seen.requires_grad
    assert nets.training
    assert all(torch.equal(before[k], v) for k, v in nets.state_dict().items())
    torch.testing.assert_close(seen[1], nets[1](x))  # which moves the statistics
    assert int(nets[1][1].num_batches_tracked) == 1


def test_statistics_of_other_norms_and_of_frozen_ones_stay_too() -> None:
    instance = nn.InstanceNorm1d(2, track_running_stats=True).train()
    frozen = nn.BatchNorm1d(2).eval()  # normalises by what it has learned, in the middle of training
    before, x = instance.running_mean.clone(), 5 + torch.randn(4, 2, 6)
    with still_statistics(nn.ModuleList([instance, frozen])):
        seen, plain = instance(x), frozen(x)
    assert torch.equal(instance.running_mean, before)
    torch.testing.assert_close(plain, frozen(x))
    torch.testing.assert_close(seen, instance(x))
    assert not torch.equal(instance.running_mean, before)


def test_statistics_move_again_after_a_pass_that_failed() -> None:
    norm = nn.BatchNorm1d(2).train()
    with pytest.raises(ValueError, match="expected 2D or 3D"), still_statistics(norm):
        norm(torch.ones(3))
    norm(torch.randn(4, 2))
    assert int(norm.num_batches_tracked) == 1


def test_side_by_side_keeps_the_order() -> None:
    x = torch.ones(1)
    assert [float(t) for t in side_by_side([lambda k=k: x * k for k in (3, 1, 2)], x)] == [3, 1, 2]


class Headed(nn.Module):
    """`head` is the last layer by name; other linear layers are registered after it."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head or nn.Linear(4, 2)
        self.body = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x).tanh())
        return out


def test_the_last_layer() -> None:
    plain, headed = net(), Headed()
    assert last_layer(plain) is plain[2]
    assert last_layer(headed) is headed.head
    deep = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), nn.Softplus())
    assert last_layer(deep) is deep[1][1]
    deep.head = "a word"  # type: ignore[assignment]  # no layer
    assert last_layer(deep) is deep[1][1]
    with pytest.raises(ValueError, match=r"Conv2d has no Linear layer: .* call its last layer `head`"):
        last_layer(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("head", [None, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))])
def test_one_pass_gives_the_outputs_and_what_the_last_layer_saw(head: nn.Module | None) -> None:
    torch.manual_seed(0)
    network, x, passes = Headed(head), torch.randn(6, 3), []
    network.body.register_forward_hook(lambda *_: passes.append(1))
    out, seen = with_features(network, x)
    assert passes == [1]
    torch.testing.assert_close(out, network(x))
    torch.testing.assert_close(seen, network.body(x).tanh())
    assert seen.requires_grad
    assert not network.head._forward_pre_hooks


def test_features_of_images_are_rows() -> None:
    network = Headed(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)))
    out, seen = with_features(network, torch.randn(6, 2, 3))
    assert (out.shape, seen.shape) == ((6, 2), (6, 8))


def test_no_hook_is_left_after_an_error() -> None:
    network = Headed()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with_features(network, torch.ones(2, 7))
    assert not network.head._forward_pre_hooks


def test_a_last_layer_that_is_not_called_is_told() -> None:
    network = Headed()
    network.forward = lambda x: network.body(x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="head"):
        with_features(network, torch.ones(2, 3))


def test_an_unseen_pass_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    network, dropped, plain = net().train(), [], torch.clear_autocast_cache
    before, x = {k: v.clone() for k, v in network.state_dict().items()}, 5 + torch.randn(16, 3)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (dropped.append(True), plain()))
    with unseen(network):
        out = network(x)
        assert not torch.is_grad_enabled()
    assert dropped == [True]
    assert torch.is_grad_enabled()
    assert not out.requires_grad
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    torch.testing.assert_close(out, network(x))  # normalised by the batch, and now the statistics move
    assert int(network[1].num_batches_tracked) == 1
    with pytest.raises(LookupError), unseen(network):
        raise LookupError
    assert torch.is_grad_enabled()
    assert network[1].running_mean is not None
