"""Twins follow their networks, BatchNorm's statistics included."""

from __future__ import annotations

import torch
from torch import nn

from labelproof.core.nets import Nets


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
