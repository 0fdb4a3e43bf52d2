"""Training on the rows that score lowest, by one pass and by two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labelproof.core import chosen
from labelproof.core.chosen import loss_of_rows, loss_of_smallest
from labelproof.core.nets import Nets
from labelproof.core.task import Classification, Regression, Task
from labelproof.core.types import Batch, Loss
from labelproof.functional.mixing import Mixup

N = 12
VALUES = Regression(2)


def networks(peers: int = 2, *first: nn.Module) -> Nets:
    torch.manual_seed(0)
    return Nets([nn.Sequential(*(type(m)(3) for m in first), nn.Linear(3, 2)) for _ in range(peers)]).train()


def batch(task: Task = VALUES) -> Batch:
    g = torch.Generator().manual_seed(1)
    y = torch.randn(N, 2, generator=g) if task.kind == "regression" else torch.randint(0, 2, (N,), generator=g)
    return Batch(torch.arange(N), (torch.randn(N, 3, generator=g),), y)


def by_loss(net: nn.Module, b: Batch) -> tuple[Tensor, Tensor]:
    out = net(b.x)
    return out, VALUES.loss(out, b.target)


def given(*scores: Any) -> Any:
    """Scores as given, one list for each network in turn."""
    turn = iter(scores)
    return lambda net, b: (net(b.x), torch.as_tensor(next(turn), dtype=torch.float32))


def gradients(nets: Nets, loss: Loss | Tensor) -> list[Tensor]:
    nets.zero_grad()
    (loss.value if isinstance(loss, Loss) else loss).backward()
    return [p.grad.clone() for p in nets.parameters()]  # type: ignore[union-attr]


def test_each_network_is_trained_on_its_rows() -> None:
    nets, b, rows = networks(), batch(), [torch.tensor([4, 1, 7]), torch.tensor([0])]
    value, weight = loss_of_rows(VALUES, nets, b, rows)
    want = [
        torch.cat([VALUES.loss(net(b.x[i : i + 1]), b.target[i : i + 1]) for i in r])
        for net, r in zip(nets, rows, strict=True)
    ]
    torch.testing.assert_close(value, want[0].mean() + want[1].mean())
    assert [w.nonzero().flatten().tolist() for w in weight] == [[1, 4, 7], [0]]
    got = gradients(nets, value)
    torch.testing.assert_close(got, gradients(nets, want[0].mean() + want[1].mean()))


def test_rows_are_normalised_among_themselves() -> None:
    nets, b, rows = networks(2, nn.BatchNorm1d(3)), batch(), [torch.tensor([4, 1, 7]), torch.arange(6)]
    loss_of_rows(VALUES, nets, b, rows)
    for net, i in zip(nets, rows, strict=True):
        assert int(net[0].num_batches_tracked) == 1
        torch.testing.assert_close(net[0].running_mean, 0.1 * b.x[i].mean(0))
        torch.testing.assert_close(net[0].running_var, 0.9 + 0.1 * b.x[i].var(0))


@pytest.mark.parametrize("task", [VALUES, Classification(2)], ids=["values", "classes"])
def test_inputs_and_targets_are_mixed_alike(task: Task) -> None:
    nets, b, rows = networks(), batch(task), [torch.tensor([4, 1, 7]), torch.tensor([2, 3, 0])]
    mix = Mixup(0.6, torch.tensor([1, 2, 0]))
    value, weight = loss_of_rows(task, nets, b, rows, mix)
    want = torch.zeros(())
    for net, i in zip(nets, rows, strict=True):
        j = i[[1, 2, 0]]
        x, y = 0.6 * b.x[i] + 0.4 * b.x[j], task.encode(b.target)
        want = want + task.loss(net(x), 0.6 * y[i] + 0.4 * y[j]).mean()
    torch.testing.assert_close(value, want)
    assert weight.sum(1).tolist() == [3, 3]


@pytest.mark.parametrize("first", [False, True])
def test_the_exchange(first: bool) -> None:
    low, high = torch.arange(N), torch.arange(N).flip(0)
    nets, b = networks(), batch()
    got = loss_of_smallest(VALUES, nets, b, 0.25, given(low, high), first=first)
    assert [w.nonzero().flatten().tolist() for w in got.trust] == [[9, 10, 11], [0, 1, 2]]  # type: ignore[union-attr]
    want = sum(
        VALUES.loss(net(b.x[i]), b.target[i]).mean() for net, i in zip(nets, (slice(9, 12), slice(3)), strict=True)
    )
    torch.testing.assert_close(got.value, want)
    torch.testing.assert_close(got.out, torch.stack([net(b.x) for net in nets]))
    alone = networks(1)
    got = loss_of_smallest(VALUES, alone, b, 0.25, given(low), first=first)
    assert got.trust.tolist() == [[1] * 3 + [0] * 9]  # type: ignore[union-attr]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("peers", [1, 2])
def test_one_pass_and_two_are_the_same_update(keep: float, peers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, b = networks(peers), batch()
    one, two = (loss_of_smallest(VALUES, nets, b, keep, by_loss, first=first) for first in (False, True))
    monkeypatch.setattr(chosen, "world_size", lambda: 2)  # as each of several processes does it
    three = loss_of_smallest(VALUES, nets, b, keep, by_loss, first=True)
    for other in (two, three):
        torch.testing.assert_close(one.value, other.value)
        torch.testing.assert_close(gradients(nets, one.value.clone()), gradients(nets, other))
        assert torch.equal(one.trust, other.trust)  # type: ignore[arg-type]
        torch.testing.assert_close(one.out, other.out)
        one = loss_of_smallest(VALUES, nets, b, keep, by_loss, first=False)


@pytest.mark.parametrize(("first", "processes"), [(False, 1), (True, 1), (True, 2)])
def test_statistics_move_once(first: bool, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the kept rows where these pass alone, of the whole batch where all pass."""
    nets, b = networks(2, nn.BatchNorm1d(3)), batch()
    monkeypatch.setattr(chosen, "world_size", lambda: processes)
    got = loss_of_smallest(VALUES, nets, b, 0.5, by_loss, first=first)
    for net, w in zip(nets, got.trust, strict=True):  # type: ignore[arg-type]
        rows = b.x[w.bool()] if first and processes == 1 else b.x
        assert int(net[0].num_batches_tracked) == 1
        torch.testing.assert_close(net[0].running_mean, 0.1 * rows.mean(0))
    normal = nn.functional.batch_norm(b.x, None, None, training=True)
    torch.testing.assert_close(got.out, torch.stack([net[1](normal) for net in nets]))


def test_several_processes_that_mix_keep_that_share_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, b = networks(), batch()
    monkeypatch.setattr(chosen, "world_size", lambda: 2)
    mix = Mixup(0.6, torch.tensor([1, 2, 0]))
    got = loss_of_smallest(VALUES, nets, b, 0.25, by_loss, first=True, mix=mix)
    rows = [by_loss(net, b)[1].argsort()[:3] for net in nets][::-1]
    torch.testing.assert_close(got.value, loss_of_rows(VALUES, nets, b, rows, mix)[0])


@pytest.mark.parametrize("first", [False, True])
def test_what_is_no_number_ranks_last_and_ties_go_to_the_earlier(first: bool) -> None:
    scores = [torch.nan, 1, 1, 0, torch.inf, 1, torch.nan, 1, 1, 1, 1, 1]
    got = loss_of_smallest(VALUES, networks(1), batch(), 0.5, given(scores), first=first)
    assert got.trust[0].nonzero().flatten().tolist() == [1, 2, 3, 5, 7, 8]  # type: ignore[index]


def test_scoring_first_has_no_gradient_and_drops_what_autocast_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped, plain, seen = [], torch.clear_autocast_cache, []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (dropped.append(True), plain()))
    nets, b = networks(), batch()

    def score(net: nn.Module, some: Batch) -> tuple[Tensor, Tensor]:
        out, s = by_loss(net, some)
        seen.append(out.requires_grad)
        return out, s

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_of_smallest(VALUES, nets, b, 0.5, score, first=True)
        assert dropped == [True], "between the two passes"
        assert all(g.abs().sum() > 0 for g in gradients(nets, got))
        assert got.value.dtype == torch.float32
    assert seen == [False, False]
    loss_of_smallest(VALUES, nets, b, 0.5, score, first=False)
    assert seen == [False, False, True, True]
