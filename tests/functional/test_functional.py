"""Selections, reductions, losses and schedules against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelproof.core.schedule import parse_schedule
from labelproof.core.task import Classification, Regression
from labelproof.core.types import Clock
from labelproof.functional.losses import cross_entropy, squared_error
from labelproof.functional.regularisers import elr_term
from labelproof.functional.select import num_kept, smallest, weighted_mean
from tests.reference import oracles

scores = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)


@given(scores, st.floats(0, 1))
def test_smallest_keeps_the_smallest(values: list[float], fraction: float) -> None:
    score = torch.tensor(values)
    kept = smallest(score, fraction).bool()
    assert int(kept.sum()) == num_kept(fraction, len(values)) >= 1
    if not kept.all():
        assert score[kept].max() <= score[~kept].min()


@given(st.integers(1, 1000), st.integers(0, 100))
def test_num_kept_is_the_floor_in_exact_arithmetic(n: int, per_cent: int) -> None:
    assert num_kept(1 - per_cent / 100, n) == max(1, (100 - per_cent) * n // 100)


def test_smallest_ranks_nan_last_and_carries_no_gradient() -> None:
    score = torch.tensor([math.nan, 1.0, 2.0], requires_grad=True)
    weight = smallest(score, 2 / 3)
    assert weight.tolist() == [0.0, 1.0, 1.0]
    assert not weight.requires_grad


@given(scores)
def test_weighted_mean_is_the_mean_of_the_selected(values: list[float]) -> None:
    value = torch.tensor(values, requires_grad=True)
    weight = (torch.arange(len(values)) % 2 == 0).float()
    got = weighted_mean(value, weight)
    torch.testing.assert_close(got, value[weight > 0].mean(), atol=1e-3, rtol=1e-4)
    got.backward()
    torch.testing.assert_close(value.grad, weight / weight.sum())


def test_an_empty_selection_is_zero_and_attached() -> None:
    value = torch.tensor([1.0, math.inf], requires_grad=True)
    got = weighted_mean(value, torch.zeros(2))
    got.backward()
    assert float(got) == 0
    assert value.grad.tolist() == [0.0, 0.0]


def test_a_dropped_row_that_overflowed_does_no_harm() -> None:
    value = torch.tensor([1.0, math.inf], requires_grad=True)
    got = weighted_mean(value, torch.tensor([1.0, 0.0]))
    assert float(got) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_are_fp32_per_sample(dtype: torch.dtype) -> None:
    z = np.random.default_rng(0).normal(size=(6, 5))
    y = np.random.default_rng(1).integers(0, 5, 6)
    got = cross_entropy(torch.tensor(z, dtype=dtype), torch.from_numpy(y))
    assert got.dtype == torch.float32
    want = oracles.cross_entropy(torch.tensor(z, dtype=dtype).double().numpy(), oracles.one_hot(y, 5))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert squared_error(torch.zeros(3, 2, dtype=dtype), torch.ones(3, 2)).tolist() == [1.0, 1.0, 1.0]
    assert elr_term(torch.ones(2, 3, dtype=dtype) / 3, torch.ones(2, 3) / 3).dtype == torch.float32


@pytest.mark.parametrize("task", [Classification(4), Regression(3)])
def test_residual_is_the_gradient_of_the_loss(task: Classification | Regression) -> None:
    out = torch.randn(7, task.num_outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.arange(7) % 4 if task.kind == "classification" else torch.randn(7, 3)
    task.loss(out, target).sum().backward()
    torch.testing.assert_close(out.grad, task.residual(out, target).detach())


def clock(epoch: int, step: int = 0, epochs: int = 10, steps: int = 4) -> Clock:
    return Clock(epoch, epochs, step, steps, torch.Generator())


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("constant", [1, 1, 1]),
        ("cosine", [1, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))]),
        ("restarts:5", [1, 1, 0.5 * (1 + math.cos(0.8 * math.pi))]),
        ("multistep:3,6:0.1", [1, 0.1, 0.01]),
        ("warmup:2+constant", [1 / 8, 1, 1]),
    ],
)
def test_schedules(text: str, want: list[float]) -> None:
    factor = parse_schedule(text)
    assert [factor(clock(e)) for e in (0, 5, 9)] == pytest.approx(want)


def test_warmup_rises_by_step() -> None:
    factor = parse_schedule("warmup:1+constant")
    assert [factor(clock(0, s)) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
