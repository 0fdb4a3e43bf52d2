"""The end of early learning, read off curves whose form is known."""

from __future__ import annotations

import pytest
import torch

from labelproof.functional.turning import slowdown


@pytest.mark.parametrize(("a", "b", "c"), [(0.6, 1.0, 4.0), (0.9, 0.5, 1.0), (0.5, 1.5, 10.0)])
def test_recovers_the_slope_of_a_curve_of_the_family(a: float, b: float, c: float) -> None:
    t = torch.arange(1.0, 13)
    slope = a * b / c * t ** (b - 1) * torch.exp(-(t**b) / c)
    want = float(abs(slope[0] - slope[-1]) / slope[0])
    assert slowdown(a * (1 - torch.exp(-(t**b) / c))) == pytest.approx(want, abs=0.05)


def test_says_nothing_too_early_and_survives_flat_curves() -> None:
    assert slowdown(torch.tensor([0.1, 0.2])) == 0
    for flat in (torch.zeros(9), torch.full((9,), 0.5)):
        assert 0 <= slowdown(flat) <= 1
    assert slowdown(torch.linspace(0.1, 0.9, 9)) < 0.9, "still rising"
