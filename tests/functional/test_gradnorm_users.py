"""What networks of users do that rules for layers must not be applied to blindly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
import torch.utils.checkpoint
from torch import Tensor, nn

from labelproof.functional.gradnorm import gradient_norms
from tests.functional.samplewise import (
    OTHERS,
    B,
    K,
    Make,
    Net,
    Prompt,
    check,
    crooked,
    deep,
    made,
    oracle,
    rows,
    sequence,
    sums,
    tokens,
)


def pruned() -> nn.Module:
    net = deep(nn.Tanh())()
    nn.utils.prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def spectral() -> nn.Module:
    net = deep(nn.Tanh())()
    nn.utils.spectral_norm(net[0])
    return net.eval()  # in training each pass would move its vectors


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many a network
        layer = nn.utils.weight_norm(nn.Linear(4, 8))
    nn.init.constant_(layer.weight_g, 3.0)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, K))


def doubled() -> nn.Module:
    net = deep(nn.Tanh())()
    net[0].register_forward_hook(lambda layer, inputs, out: 2 * out)
    return net


def by_hand() -> nn.Module:
    """The tied weights of many a language model: the last layer is no layer."""
    return Net(
        lambda s, x: F.linear(s.hidden(s.embed(x).mean(1)).tanh(), s.embed.weight),
        embed=nn.Embedding(K, 6), hidden=nn.Linear(6, 6),
    )  # fmt: skip


def without_gradient() -> nn.Module:
    """A backbone that is not to be trained, though nobody told its parameters."""

    def join(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = s.body(x)
        out: Tensor = s.head(h)
        return out

    return Net(join, body=nn.Linear(4, 6), head=nn.Linear(6, K))


def placed() -> nn.Module:
    return OTHERS["positions by an embedding"][0]()


def time_first() -> nn.Module:
    return Net(
        lambda s, x: s.head(s.body(x.transpose(0, 1)).tanh().transpose(0, 1).mean(1)),
        body=nn.Linear(4, 6), head=nn.Linear(6, K),
    )  # fmt: skip


def in_place(f: Callable[[Tensor], Any]) -> Make:
    def join(s: Any, x: Tensor) -> Tensor:
        h = s.body(x)
        f(h)
        out: Tensor = s.head(h).mean(1)
        return out

    return lambda: Net(join, body=nn.Linear(4, 6), head=nn.Linear(6, K))


def checkpointed(reentrant: bool) -> Make:
    def join(s: Any, x: Tensor) -> Tensor:
        h = torch.utils.checkpoint.checkpoint(s.body, s.first(x), use_reentrant=reentrant)
        out: Tensor = s.head(h)
        return out

    body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return lambda: Net(join, first=nn.Linear(4, 6), body=body, head=nn.Linear(6, K))


USERS: dict[str, tuple[Make, Callable[[int], Tensor]]] = {
    "in-place ReLU after positions": (sequence(nn.ReLU(inplace=True)), rows(7, 4)),
    "in-place on a part of the positions": (in_place(lambda h: h[:, 0].mul_(3)), rows(7, 4)),
    "in-place on rows": (
        lambda: Net(lambda s, x: s.head(s.body(x).mul_(2)), body=nn.Linear(4, 6), head=nn.Linear(6, K)), rows(4)
    ),
    "weights by hand": (by_hand, tokens(4)),
    "as many positions as samples, embedded": (placed, tokens(B, 7)),
    "as many positions as samples, first": (time_first, rows(B, 4)),
    "two positions, embedded": (placed, tokens(2, 7)),
    "two positions, first": (time_first, rows(2, 4)),
    "other numbers of positions, first": (time_first, rows(7, 4)),
    "pruned": (pruned, rows(4)),
    "spectral_norm": (spectral, rows(4)),
    "weight_norm of old": (old_weight_norm, rows(4)),
    "a hook that changes the output": (doubled, rows(4)),
    "keyword": (
        lambda: Net(lambda s, x: s.head(input=s.body(input=x)), body=nn.Linear(4, 6), head=nn.Linear(6, K)), rows(4)
    ),
    "no_grad inside": (without_gradient, rows(4)),
    "checkpointed": (checkpointed(False), rows(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_what_users_networks_do(name: str) -> None:
    check(*made(*USERS[name]))


def test_positions_that_are_alike_under_autocast() -> None:
    """Small differences of large products: the rules need fp32."""
    torch.manual_seed(0)

    def join(s: Any, x: Tensor) -> Tensor:
        h = s.body(x).tanh()
        out: Tensor = s.head(h[:, ::2].sum(1) - 0.9 * h[:, 1::2].sum(1))
        return out

    net = Net(join, body=nn.Linear(64, 64), head=nn.Linear(64, K))
    x, target = torch.randn(16, 1, 64) + 0.05 * torch.randn(16, 4, 64), torch.randn(16, K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms = gradient_norms(net, x, lambda out: crooked(target)(out.float()))[0]
        want = oracle(net, x, target)
    torch.testing.assert_close(norms, want.float(), rtol=0.03, atol=0)


def test_positions_that_are_alike() -> None:
    net, x, target = made(lambda: sums(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, K)), lambda n: torch.randn(n, 1, 64))
    check(net, x + 0.01 * torch.randn(B, 4, 64), target, rtol=1e-3)


def test_a_transformer_under_autocast() -> None:
    net, x, target = made(*OTHERS["transformer"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms = gradient_norms(net, x, lambda out: crooked(target)(out.float()))[0]
    torch.testing.assert_close(norms, oracle(net, x, target).float(), rtol=0.05, atol=0)


def test_dropout_is_of_one_pass_with_other_layers_too() -> None:
    net = nn.Sequential(Prompt(), nn.Dropout(0.5))
    torch.manual_seed(0)
    norms, out = gradient_norms(net, torch.ones(64, 4), lambda out: out.square().sum(1))
    torch.testing.assert_close(norms, 2 * 2 * out.norm(dim=1))  # d f_j² / d w_j = 2 f_j x_j / (1 - p) where kept


@pytest.mark.parametrize("how", [{"affine": False}, {"track_running_stats": False}, {"frozen": True}])
def test_any_batchnorm_in_training_mode_is_refused(how: dict[str, bool]) -> None:
    norm = nn.BatchNorm1d(4, **how) if "frozen" not in how else nn.BatchNorm1d(4).requires_grad_(False)
    net = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Flatten(), nn.Linear(36, K))
    with pytest.raises(ValueError, match="prl-l"):
        gradient_norms(net, torch.randn(B, 2, 11), crooked(torch.randn(B, K)))


def test_batchnorm_of_rows_is_refused_with_the_remedy() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, K))
    with pytest.raises(ValueError, match="prl-l"):
        gradient_norms(net, torch.randn(B, 4), crooked(torch.randn(B, K)))


def test_a_refusal_leaves_statistics_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, K))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="prl-l"):
        gradient_norms(net, 5 + torch.randn(B, 4), crooked(torch.randn(B, K)))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_reentrant_checkpoints_are_refused() -> None:
    """`torch.func` knows nothing of them."""
    net, x, target = made(checkpointed(True), rows(4))
    with pytest.raises(ValueError, match=r"Net: gradients of single samples cannot be taken .* such as prl-l"):
        gradient_norms(net, x, crooked(target))


@pytest.mark.parametrize(
    ("n", "positions"),
    [(1, 3), (1, 4), (2, 3), (2, 4), (3, 3), (3, 4), (4, 3), (4, 4)],
)
def test_few_samples_and_few_positions(n: int, positions: int) -> None:
    for make, inputs in ((time_first, rows(positions, 4)), (placed, tokens(positions, 7))):
        check(*made(make, inputs, n=n))


def test_the_first_look_leaves_no_weights_without_gradient_to_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, target = made(deep(nn.Tanh()), rows(4))
    events, plain = [], torch.clear_autocast_cache
    net.register_forward_pre_hook(lambda *_: events.append("pass" if torch.is_grad_enabled() else "look"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (events.append("clear"), plain()))
        gradient_norms(net, x, lambda out: crooked(target)(out.float()))
        assert events == ["look", "clear", "pass", "clear"]
