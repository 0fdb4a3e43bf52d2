"""Per-sample state under every way a sampler can hand out ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, WeightedRandomSampler

from labelproof.core.state import RunningScale, SampleParameter, SampleTable


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.floats(0, 0.99))
def test_ema_with_repeated_ids_keeps_the_first(ids: list[int], beta: float) -> None:
    table, index = SampleTable(10, 2), torch.tensor(ids)
    table.values.add_(1)
    new = torch.arange(2.0 * len(ids)).reshape(-1, 2)
    want = table.values.clone()
    for i in dict.fromkeys(ids):
        want[i] = beta * 1 + (1 - beta) * new[ids.index(i)]
    rows = table.ema(index, new, beta)
    torch.testing.assert_close(table.values, want)
    torch.testing.assert_close(rows, want[index])


def test_any_sampler_gives_the_same_state_per_id() -> None:
    """Shuffled, cut into subsets and put together again: the row of a sample is the row of its id."""
    n = 23
    data = TensorDataset(torch.arange(n), torch.arange(n).float()[:, None] / n)
    parts = ConcatDataset([Subset(data, list(range(0, n, 2))), Subset(data, list(range(1, n, 2)))])
    loaders = [
        DataLoader(data, batch_size=5),
        DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(parts, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(1)),
    ]
    states = []
    for loader in loaders:
        table = SampleTable(n, 1)
        for index, value in loader:
            table.ema(index, value, 0.5)
        states.append(table.values)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_sampling_with_replacement_is_deterministic() -> None:
    weights = torch.tensor([1.0, 5.0, 1.0, 1.0])
    runs = []
    for _ in range(2):
        table = SampleTable(4, 1)
        sampler = WeightedRandomSampler(weights, 40, generator=torch.Generator().manual_seed(0))
        for index in torch.tensor(list(sampler)).split(10):
            table.ema(index, index[:, None] + torch.arange(10.0)[:, None], 0.9)
        runs.append(table.values)
    assert torch.equal(*runs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_computes_in_fp32(dtype: torch.dtype) -> None:
    table = SampleTable(3, 2, memory={torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype])
    rows = table.ema(torch.tensor([1]), torch.tensor([[0.3, 0.7]]), 0.0)
    assert rows.dtype == torch.float32
    assert table.nbytes == 3 * 2 * 2
    torch.testing.assert_close(rows, torch.tensor([[0.3, 0.7]]), atol=2e-3, rtol=0)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"num_samples=0 and shape=\(3,\) must be positive"):
        SampleTable(0, 3)
    with pytest.raises(ValueError, match="must be positive"):
        SampleParameter(4, 0)


def test_sample_parameter_steps_cost_rows_not_samples() -> None:
    torch.manual_seed(0)
    u = SampleParameter(1000, 2, std=0.0)
    optimizer = torch.optim.SGD(u.parameters(), lr=0.5)
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (u.rows(torch.tensor([7, 900])) - target).square().sum().backward()
    assert u.weight.grad.is_sparse
    assert u.weight.grad._values().shape == (2, 2)
    optimizer.step()
    np.testing.assert_allclose(u.weight.detach()[[7, 900]], target)
    assert int((u.weight != 0).any(1).sum()) == 2


@pytest.mark.parametrize("bad", [5, -1])
def test_ids_out_of_range_are_an_error_not_another_sample(bad: int) -> None:
    """ELR#4: the size of a batch given for that of the data set ran, and was wrong."""
    table, index = SampleTable(5, 2), torch.tensor([0, bad])
    for call in (
        lambda: table.rows(index),
        lambda: table.write(index, torch.ones(2, 2)),
        lambda: table.ema(index, torch.ones(2, 2), 0.5),
        lambda: SampleParameter(5).rows(index),
    ):
        with pytest.raises(IndexError, match=r"sample id -?[0-9]+ is not in \[0, 5\): .* num_samples=5 must be"):
            call()
    assert float(table.values.abs().sum()) == 0, "nothing was written"


@pytest.mark.parametrize("memory", ["dense", "fp16", "cpu", "topk:2"])
def test_an_overflow_does_not_poison_the_memory(memory: str) -> None:
    """One batch whose outputs are inf or NaN: its rows stay as they were, the others are written."""
    table, index = SampleTable(6, 4, memory=memory), torch.tensor([1, 4, 5])
    table.write(index, torch.full((3, 4), 0.25))
    bad = torch.tensor([[0.0, torch.nan, 0, 1], [torch.inf, 0, 0, 0], [1.0, 0, 0, 0]])
    table.ema(index, bad, 0.5)
    assert table.rows(index).isfinite().all()
    torch.testing.assert_close(table.rows(index)[:2], torch.full((2, 4), 0.25))
    assert table.rows(index)[2, 0] > 0.5


def test_a_running_scale_moves_in_training_only_and_is_in_checkpoints() -> None:
    s, r = RunningScale(0.5), torch.tensor([[-1.0], [0.0], [1.0]])
    one = 1 / 0.674490  # the median of |r| over that of a standard normal
    assert float(s(7 * r, training=False)) == pytest.approx(7 * one), "before it has begun, of the batch alone"
    assert s.value.isnan()
    assert float(s(r, training=True)) == pytest.approx(one)
    assert float(s(3 * r, training=True)) == pytest.approx(2 * one)
    assert float(s(100 * r, training=False)) == float(s.value) == pytest.approx(2 * one)
    again = RunningScale(0.5)
    again.load_state_dict(s.state_dict())
    assert again.value == s.value
