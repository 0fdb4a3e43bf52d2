"""Schedules of the learning rate and of the momentum: pure functions of the clock, chosen by a short text.

`constant` · `cosine` (to 0 at the end) · `linear` (to 0 at the end) · `linear:80` (the same, but full for the first 80
epochs) · `multistep:40,80:0.01` (times 0.01 after epochs 40 and 80) · `restarts:10` (cosine warm restarts every 10
epochs) · any of them after `warmup:5+` (linear over 5 epochs).

`cosine:0.01` and `restarts:10:0.05` end at that share of the full value instead of at 0: (1 − f) cosine + f.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from labelproof.core.types import Clock

Schedule = Callable[[Clock], float]

_HELP = (
    "'constant', 'cosine', 'cosine:FLOOR', 'linear', 'linear:80' (full until epoch 80), 'multistep:40,80:0.01', "
    "'restarts:10', 'restarts:10:FLOOR' (FLOOR: share to end at, in [0, 1)), each also after 'warmup:5+'"
)


def parse_schedule(text: str, name: str = "schedule") -> Schedule:
    """A function from the clock to the factor on the learning rate, or on what else follows the schedule.

    Args:
        text: one of the forms at the top of this module.
        name: of the setting, for the error message.

    Raises:
        ValueError: the text has another form.

    >>> import torch
    >>> f = parse_schedule("multistep:2,4:0.1")
    >>> [round(f(Clock(e, 6, 0, 10, torch.Generator())), 4) for e in range(6)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    >>> g = parse_schedule("restarts:2:0.1")
    >>> [round(g(Clock(e, 6, 0, 10, torch.Generator())), 4) for e in range(4)]
    [1.0, 0.55, 1.0, 0.55]
    >>> h = parse_schedule("linear:2")
    >>> [round(h(Clock(e, 6, 0, 10, torch.Generator())), 4) for e in range(6)]
    [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup, plus, body = text.partition("+") if text.startswith("warmup:") else ("", "", text)
    try:
        main = _parse_body(body)
        length = float(warmup.removeprefix("warmup:")) if plus else 0.0
        if plus and not 0 < length < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name}={text!r} is not understood; allowed: {_HELP}") from None

    def factor(now: Clock) -> float:
        t = now.epoch + now.step / now.steps_per_epoch
        return min(1.0, (t + 1 / now.steps_per_epoch) / length) * main(now) if t < length else main(now)

    return factor


def _parse_body(text: str) -> Schedule:
    name, _, rest = text.partition(":")
    if text == "constant":
        return lambda now: 1.0
    if name == "cosine":
        floor = _floor(rest) if text != name else 0.0
        return lambda now: _cosine((now.epoch + now.step / now.steps_per_epoch) / now.epochs, floor)
    if name == "linear":
        start = int(rest) if text != name else 0
        if start < 0:
            raise ValueError
        return lambda now: _linear(now.epoch + now.step / now.steps_per_epoch, start, now.epochs)
    if name == "restarts":
        length, colon, end = rest.partition(":")
        period, floor = int(length), _floor(end) if colon else 0.0
        if period < 1:
            raise ValueError
        return lambda now: _cosine((now.epoch % period + now.step / now.steps_per_epoch) / period, floor)
    if name == "multistep":
        when, _, gamma = rest.partition(":")
        milestones, factor = [int(m) for m in when.split(",")], float(gamma or 0.1)
        if min(milestones) < 0 or not factor > 0:
            raise ValueError
        return lambda now: factor ** sum(now.epoch >= m for m in milestones)
    raise ValueError


def _floor(text: str) -> float:
    """The share of the full value to end at."""
    floor = float(text)
    if not 0 <= floor < 1:
        raise ValueError
    return floor


def _linear(t: float, start: int, end: int) -> float:
    return 1.0 if t < start else (end - t) / (end - start)


def _cosine(progress: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
