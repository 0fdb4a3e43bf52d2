"""The scale of residuals against NumPy: quantiles of the chi distribution by sampling, medians by sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labelproof.functional import ranks
from labelproof.functional.robust_scale import FLOOR, chi_median, running_scale

NOT_BEGUN = torch.tensor(torch.nan)


@pytest.mark.parametrize("dims", [1, 2, 3, 7, 40])
def test_median_of_the_norm_of_a_normal_vector(dims: int) -> None:
    norms = np.linalg.norm(np.random.default_rng(dims).normal(size=(200_000, dims)), axis=1)
    assert chi_median(dims) == pytest.approx(np.median(norms), abs=0.01)


def test_median_in_closed_form() -> None:
    assert chi_median(1) == pytest.approx(1 / 1.482602218505602, rel=1e-12)
    assert chi_median(2) == pytest.approx(math.sqrt(2 * math.log(2)), rel=1e-12)


@pytest.mark.parametrize("dims", [1, 4])
def test_of_normal_residuals_it_is_their_standard_deviation(dims: int) -> None:
    r = 0.3 * torch.from_numpy(np.random.default_rng(0).normal(size=(50_000, dims)))
    clean = running_scale(NOT_BEGUN, r, decay=0.9)
    assert float(clean) == pytest.approx(0.3, rel=0.02)
    shifted = running_scale(NOT_BEGUN, r + 7, decay=0.9)
    assert float(shifted) == pytest.approx(float(clean), rel=1e-3), "a shift of all is no scale"
    r[:10_000] += 1e6
    assert float(running_scale(NOT_BEGUN, r, decay=0.9)) < 1.6 * float(clean), "a fifth of gross errors moves it a bit"


def test_is_the_moving_average_of_medians() -> None:
    rng, s, want = np.random.default_rng(1), NOT_BEGUN, None
    for _ in range(5):
        r = rng.normal(size=(11, 3))
        middle = np.sort(r, axis=0)[5]
        new = sorted(math.sqrt(sum(v * v for v in row - middle)) for row in r)[5] / chi_median(3)
        want = new if want is None else 0.8 * want + 0.2 * new
        s = running_scale(s, torch.from_numpy(r).requires_grad_(), decay=0.8)
        assert not s.requires_grad
        assert float(s) == pytest.approx(want, rel=1e-6)


def test_units_come_out_as_they_go_in() -> None:
    r = torch.from_numpy(np.random.default_rng(2).normal(size=(9, 2)))
    one, thousand = (running_scale(NOT_BEGUN, k * r, decay=0.5) for k in (1, 1000))
    assert float(thousand) == pytest.approx(1000 * float(one), rel=1e-6)


def test_a_batch_of_nan_is_passed_over_and_zeros_stop_at_the_floor() -> None:
    broken = torch.full((4, 1), torch.nan)
    assert running_scale(torch.tensor(2.0), broken, decay=0.5) == 2
    assert running_scale(NOT_BEGUN, broken, decay=0.5).isnan()
    assert running_scale(NOT_BEGUN, torch.tensor([[1.0], [torch.nan], [torch.nan], [4.0]]), decay=0.5) > 1
    assert float(running_scale(NOT_BEGUN, torch.zeros(4, 1), decay=0.5)) == pytest.approx(FLOOR)


def test_decay_one_only_begins() -> None:
    r = torch.tensor([[-5.0], [0.0], [5.0]])
    assert running_scale(torch.tensor(2.0), r, decay=1) == 2
    assert float(running_scale(NOT_BEGUN, r, decay=1)) == pytest.approx(5 / chi_median(1))


def test_is_that_of_the_joint_batch_and_is_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 8, 2))).float()
    calls = []

    def all_gather(parts: list[torch.Tensor], rows: torch.Tensor) -> None:
        calls.append(rows)
        parts[0].copy_(rows)
        parts[1].copy_(theirs + 5)

    joint = running_scale(NOT_BEGUN, torch.cat([mine, theirs + 5]), decay=0.5)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "all_gather", all_gather)
    torch.testing.assert_close(running_scale(NOT_BEGUN, mine, decay=0.5), joint)
    assert len(calls) == 1
