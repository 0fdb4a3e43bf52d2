"""Learning-rate schedules: pure functions of the clock, chosen by a short text.

`constant` · `cosine` (to 0 at the end) · `multistep:40,80:0.01` (times 0.01 after epochs 40 and 80) ·
`restarts:10` (cosine warm restarts every 10 epochs) · any of them after `warmup:5+` (linear over 5 epochs).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from labelproof.core.types import Clock

Schedule = Callable[[Clock], float]

_HELP = "'constant', 'cosine', 'multistep:40,80:0.01', 'restarts:10', each also after 'warmup:5+'"


def parse_schedule(text: str) -> Schedule:
    """A function from the clock to the factor on the learning rate.

    Args:
        text: one of the forms at the top of this module.

    Raises:
        ValueError: the text has another form.

    >>> import torch
    >>> f = parse_schedule("multistep:2,4:0.1")
    >>> [round(f(Clock(e, 6, 0, 10, torch.Generator())), 4) for e in range(6)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    warmup, plus, body = text.partition("+") if text.startswith("warmup:") else ("", "", text)
    try:
        main = _parse_body(body)
        length = float(warmup.removeprefix("warmup:")) if plus else 0.0
        if plus and not 0 < length < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"schedule={text!r} is not understood; allowed: {_HELP}") from None

    def factor(now: Clock) -> float:
        t = now.epoch + now.step / now.steps_per_epoch
        return min(1.0, (t + 1 / now.steps_per_epoch) / length) * main(now) if t < length else main(now)

    return factor


def _parse_body(text: str) -> Schedule:
    name, _, rest = text.partition(":")
    if text == "constant":
        return lambda now: 1.0
    if text == "cosine":
        return lambda now: _cosine((now.epoch + now.step / now.steps_per_epoch) / now.epochs)
    if name == "restarts":
        period = int(rest)
        if period < 1:
            raise ValueError
        return lambda now: _cosine((now.epoch % period + now.step / now.steps_per_epoch) / period)
    if name == "multistep":
        when, _, gamma = rest.partition(":")
        milestones, factor = [int(m) for m in when.split(",")], float(gamma or 0.1)
        if min(milestones) < 0 or not factor > 0:
            raise ValueError
        return lambda now: factor ** sum(now.epoch >= m for m in milestones)
    raise ValueError


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
