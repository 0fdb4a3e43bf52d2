"""Selections whose rows, or whose number, are known to the device alone; the divisor of a mean over few rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelproof.functional.select import num_kept, smallest, smallest_among, smallest_rows, weighted_mean

scores = st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0]), min_size=1, max_size=30)  # few values: many ties


@settings(deadline=None)
@given(scores, st.floats(0, 1))
def test_rows_and_weights_are_the_same_selection(values: list[float], fraction: float) -> None:
    score = torch.tensor(values)
    rows = smallest_rows(score, fraction)
    assert sorted(rows.tolist()) == np.flatnonzero(smallest(score, fraction).numpy()).tolist()
    assert rows.tolist() == sorted(range(len(values)), key=lambda i: values[i])[: len(rows)]


@settings(deadline=None)
@given(scores, st.floats(0, 1), st.integers(0, 2**30 - 1))
def test_smallest_among_is_smallest_of_those_rows(values: list[float], fraction: float, bits: int) -> None:
    among = torch.tensor([bool(bits >> i & 1) for i in range(len(values))])
    score = torch.tensor(values, requires_grad=True)
    got = smallest_among(score, fraction, among)
    want = torch.zeros(len(values))
    if among.any():
        want[among] = smallest(score[among], fraction)
    assert torch.equal(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize("per_cent", range(0, 101))
def test_smallest_among_counts_as_num_kept_does(per_cent: int) -> None:
    """(1 - 0.9) * 10 is 0.99999... in floats: no sample may be lost to rounding, whatever the size."""
    for n in (1, 9, 10, 128, 1000, 4096):
        fraction = 1 - per_cent / 100
        assert int(smallest_among(torch.zeros(n), fraction, torch.ones(n) > 0).sum()) == num_kept(fraction, n)


def test_smallest_among_leaves_out_what_is_not_finite() -> None:
    score = torch.tensor([math.nan, math.inf, 1.0, 0.0])
    among = torch.tensor([True, True, True, False])
    assert smallest_among(score, 0.5, among).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_mean_over_few_rows_is_divided_by_at_least_a_share_of_the_batch() -> None:
    value = torch.arange(10.0, requires_grad=True)
    one, four = torch.zeros(10), torch.zeros(10)
    one[3], four[2:6] = 1, 1
    assert weighted_mean(value, one, at_least=0.2).item() == pytest.approx(3 / 2)
    assert weighted_mean(value, four, at_least=0.2).item() == pytest.approx((2 + 3 + 4 + 5) / 4)
    nothing = weighted_mean(value, torch.zeros(10), at_least=0.2)
    nothing.backward()
    assert nothing.item() == 0
    assert value.grad.tolist() == [0.0] * 10
