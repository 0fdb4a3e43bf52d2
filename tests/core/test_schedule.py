"""Learning-rate schedules: pure functions of the clock, checked against torch's own and against their texts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts

from labelproof.core.schedule import parse_schedule
from labelproof.core.types import Clock


def clock(epoch: int, step: int = 0, epochs: int = 10, steps: int = 4) -> Clock:
    return Clock(epoch, epochs, step, steps, torch.Generator())


@pytest.mark.parametrize(
    ("text", "make", "epochs"),
    [
        ("cosine:0.01", lambda opt: CosineAnnealingLR(opt, T_max=300, eta_min=2e-4), 300),  # SOP
        ("restarts:10:0.05", lambda opt: CosineAnnealingWarmRestarts(opt, T_0=10, eta_min=1e-3), 150),  # ELR, "cosine"
        ("cosine", lambda opt: CosineAnnealingLR(opt, T_max=30), 30),
        ("cosine:0", lambda opt: CosineAnnealingLR(opt, T_max=30), 30),
        ("restarts:5", lambda opt: CosineAnnealingWarmRestarts(opt, T_0=5), 30),
    ],
)
def test_cosines_are_those_of_torch_at_whole_epochs(text: str, make: object, epochs: int) -> None:
    ours = parse_schedule(text)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    theirs = make(optimizer)  # type: ignore[operator]
    for epoch in range(epochs):
        assert 0.02 * ours(clock(epoch, epochs=epochs)) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_the_floor_is_approached_within_the_last_epoch() -> None:
    factor = parse_schedule("warmup:1+restarts:5:0.2")
    assert factor(clock(0, 0)) == pytest.approx(0.25)  # the warm-up starts below the floor
    last = [factor(clock(4, step, steps=1000)) for step in range(1000)]
    assert min(last) == last[-1] == pytest.approx(0.2, abs=1e-5)
    assert all(a >= b for a, b in pairwise(last))
    want = 0.2 + 0.8 * 0.5 * (1 + math.cos(0.9 * math.pi))
    assert factor(clock(9, 2)) == pytest.approx(want)


def test_linear_is_full_until_its_epoch_and_falls_to_zero_at_the_end() -> None:
    """Co-teaching's plan: from epoch 80 of 200 on, (200 - epoch) / 120."""
    factor = parse_schedule("linear:80")
    got = [factor(clock(e, epochs=200)) for e in range(200)]
    assert got == pytest.approx([1.0] * 80 + [(200 - e) / 120 for e in range(80, 200)])
    assert factor(clock(80, 2, epochs=200, steps=4)) == pytest.approx(119.5 / 120), "it moves with every step"
    assert 0 < factor(clock(199, 99, epochs=200, steps=100)) < 1e-4


def test_linear_alone_falls_from_the_start() -> None:
    plain, zero = parse_schedule("linear"), parse_schedule("linear:0")
    assert [plain(clock(e)) for e in range(10)] == pytest.approx([1 - e / 10 for e in range(10)])
    assert [zero(clock(e)) for e in range(10)] == [plain(clock(e)) for e in range(10)]
    late = parse_schedule("linear:10")
    assert [late(clock(e, 3)) for e in range(10)] == [1.0] * 10, "training ends before the fall begins"
    assert parse_schedule("warmup:2+linear")(clock(0)) == pytest.approx(1 / 8)


def test_another_setting_is_called_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"^momentum_schedule='lineal' is not understood; allowed: 'constant'"):
        parse_schedule("lineal", "momentum_schedule")


@pytest.mark.parametrize(
    "text",
    [
        "cosine:",
        "cosine:x",
        "cosine:1",
        "cosine:-0.1",
        "cosine:nan",
        "cosine:inf",
        "cosine:0.1:0.2",
        "linear:",
        "linear:-1",
        "linear:2.5",
        "linear:80:0.1",
        "lineal",
        "cosin",
        "constant:0.1",
        "restarts",
        "restarts:10:",
        "restarts:10:1",
        "restarts:0:0.1",
        "restarts::0.1",
    ],
)
def test_other_texts_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="is not understood; allowed: 'constant', 'cosine', 'cosine:FLOOR'") as error:
        parse_schedule(text)
    assert f"schedule={text!r}" in str(error.value)
    assert "share to end at, in [0, 1)" in str(error.value)
