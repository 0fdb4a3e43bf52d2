"""How numbers and sentences are written in the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.report.record import RunRecord, finite

NOTHING = "–"
_MINUS = "\u2212"
_NBSP = "\u00a0"
_Z95 = 1.959964
_PLAIN = 1e15  # from here on numbers are written with powers of ten


class Words(NamedTuple):
    """What the task calls what was given for each sample."""

    one: str
    many: str


def words(run: RunRecord) -> Words:
    """Classes are labels, numbers are targets."""
    return Words("target", "targets") if run.regression else Words("label", "labels")


def target_name(run: RunRecord) -> str:
    """What the data calls the target of a regression; empty where it has no name of its own."""
    name = str(run.section("data").get("target") or "")
    return short(name, 40) if run.regression and name not in ("label", "target") else ""


def percent(value: object) -> str:
    r"""A fraction as a percentage with one decimal.

    >>> percent(0.9417), percent(None), percent(float("nan"))
    ('94.2\xa0%', '–', '–')
    """
    number = finite(value)
    return NOTHING if number is None else f"{100 * number:.1f}{_NBSP}%"


def count(value: object) -> str:
    """A whole number with thousands separated.

    >>> count(1437)
    '1,437'
    """
    number = finite(value)
    return NOTHING if number is None else f"{round(number):,}"


def number(value: object) -> str:
    """Any number with about four significant digits.

    >>> number(3.14159), number(12345.6), number(0.00001234), number(7), number(1612345678.9)
    ('3.142', '12,346', '1.23e−05', '7', '1,612,345,679')
    """
    x = finite(value)
    if x is None:
        return NOTHING
    if x == int(x) and abs(x) < _PLAIN:
        text = f"{int(x):,}"
    elif abs(x) < 1e-3 or abs(x) >= _PLAIN:
        text = f"{x:.2e}"
    else:
        text = f"{x:,.0f}" if abs(x) >= 999.95 else f"{x:.4g}"
    return text.replace("-", _MINUS)


def writer(values: Sequence[float] | NDArray[np.float64], step: float = 0.0) -> Callable[[object], str]:
    """How to write numbers of one kind: with as many decimals as the middle one needs, none if all are whole.

    Args:
        values: the numbers; those that are not finite do not count.
        step: a difference that must still show, in the units of `values`.

    >>> write = writer([4.1, 9.25, 1e6], step=0.05)
    >>> write(4.2), write(1e6), write(-0.0001), write(None), writer([17941, 3])(17941.0)
    ('4.200', '1,000,000.000', '−1.00e−04', '–', '17,941')
    """
    sizes = sorted(abs(float(x)) for x in values if x and math.isfinite(x))
    decimals = 0
    if any(x != int(x) for x in sizes):
        decimals = 3 - math.floor(math.log10(sizes[len(sizes) // 2]))
        decimals = max(decimals, 1 - math.floor(math.log10(step))) if 0 < step < math.inf else decimals
        decimals = min(max(decimals, 0), 9)

    def write(value: object) -> str:
        x = finite(value)
        if x is None:
            return NOTHING
        text = f"{x:,.{decimals}f}"
        lost = x != 0 and not text.strip("-0.")
        return number(x) if lost or abs(x) >= _PLAIN else text.replace("-", _MINUS)

    return write


def aligned(values: Sequence[object]) -> list[str]:
    """The numbers of a column, all with as many decimals as suit the middle one; text is left as it is.

    >>> aligned([0.00061, 0.2, None, 1.0]), aligned([3, 14]), aligned([152.8, -9.397])
    (['0.001', '0.200', '–', '1.000'], ['3', '14'], ['152.8', '−9.4'])
    """
    sizes = sorted(abs(x) for value in values if (x := finite(value)))
    whole = all(x == int(x) for value in values if (x := finite(value)) is not None)
    if not sizes or whole or not 1e-3 <= sizes[-1] < _PLAIN:
        return [_cell(value, None) for value in values]
    decimals = 3 if sizes[-1] <= 1 else min(max(3 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 5)
    return [_cell(value, decimals) for value in values]


def _cell(value: object, decimals: int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return short(value, 40) or NOTHING
    x = finite(value)
    return number(value) if x is None or decimals is None else f"{x:,.{decimals}f}".replace("-", _MINUS)


def probability(value: object) -> str:
    """A probability with three decimals.

    >>> probability(0.98765)
    '0.988'
    """
    x = finite(value)
    return NOTHING if x is None else f"{x:.3f}"


def duration(seconds: object) -> str:
    r"""A time in the unit that suits it.

    >>> duration(12.34), duration(245), duration(7380)
    ('12.3\xa0s', '4\xa0min 05\xa0s', '2\xa0h 03\xa0min')
    """
    x = finite(seconds)
    if x is None:
        return NOTHING
    if x < 59.95:
        return f"{x:.1f}{_NBSP}s"
    if x < 3599.5:
        minutes, rest = divmod(round(x), 60)
        return f"{minutes}{_NBSP}min {rest:02d}{_NBSP}s"
    hours, minutes = divmod(round(x / 60), 60)
    return f"{hours}{_NBSP}h {minutes:02d}{_NBSP}min"


def memory(megabytes: object) -> str:
    r"""An amount of memory given in MB.

    >>> memory(310.2), memory(2150)
    ('310\xa0MB', '2.1\xa0GB')
    """
    x = finite(megabytes)
    if x is None:
        return NOTHING
    return f"{x:.0f}{_NBSP}MB" if x < 1000 else f"{x / 1000:.1f}{_NBSP}GB"


def short(value: object, limit: int = 160) -> str:
    """Text cut to a readable length.

    >>> short("abcdefgh", 5)
    'abcd…'
    """
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listing(words: Sequence[str]) -> str:
    """Words as an enumeration.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def wilson(fraction: float, n: float) -> tuple[float, float]:
    """95 % interval of a fraction measured on `n` samples (Wilson, JASA 1927).

    >>> tuple(round(bound, 4) for bound in wilson(0.9, 100))
    (0.8256, 0.9448)
    """
    shrink = 1 + _Z95**2 / n
    centre = (fraction + _Z95**2 / (2 * n)) / shrink
    half = _Z95 / shrink * math.sqrt(fraction * (1 - fraction) / n + _Z95**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(bounds: object) -> str:
    r"""A pair of fractions, or nothing if it is not one.

    >>> interval([0.361, 0.419])
    '36.1\xa0% to 41.9\xa0%'
    """
    if not isinstance(bounds, list | tuple) or len(bounds) != 2 or any(finite(bound) is None for bound in bounds):
        return ""
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def noise_words(noise: Mapping[str, object], what: str = "label") -> str:
    r"""What is known of the noise in words; empty if nothing is.

    >>> noise_words({"kind": "symmetric", "rate": 0.4, "realised": 0.3998})
    'label noise: symmetric, 40.0\xa0%'
    """
    rate = next((noise[key] for key in ("realised", "rate") if finite(noise.get(key)) is not None), None)
    if not noise.get("kind"):
        return ""
    return f"{what} noise: {noise['kind']}" + (f", {percent(rate)}" if rate is not None else "")


def headline(runs: Sequence[RunRecord], labels: Sequence[str], main: int) -> list[str]:
    """What was trained and found: one sentence on the training, one on the labels.

    Args:
        runs: at least one run.
        labels: what to call each.
        main: position of the run whose list of wrong labels is shown.
    """
    run = runs[main]
    where = _where(run)
    measure, write = ("RMSE", number) if run.regression else ("accuracy", percent)
    scores = [one.last("test_rmse" if run.regression else "test_accuracy") for one in runs]
    if len(runs) > 1:
        known = [i for i, score in enumerate(scores) if score is not None]
        if several := len({data_name(one) for one in runs}) > 1:
            where = listing(list(dict.fromkeys(map(_where, runs))))
        told = [f"{labels[i]} {write(scores[i])}" + f" on {data_name(runs[i])}" * several for i in known]
        measure += f" of {target_name(run)}" if target_name(run) else ""
        score = f"Test {measure} at the last epoch: {listing(told)}." if told else "There is no test score."
        return [f"Trained on {where}. {score}", *_findings(run, f" by {labels[main]}")]
    epochs = len(run.metrics)
    time = f"{count(epochs)} epoch{'s' if epochs != 1 else ''}"
    if scores[0] is None:
        first = f"{labels[0]} was trained{f' for {time}' if epochs else ''} on {where}; there is no test score."
    else:
        name = f" for {target_name(run)}" if target_name(run) else ""
        reached = (
            f"a test RMSE of {number(scores[0])}{name}" if run.regression else f"{percent(scores[0])} test accuracy"
        )
        first = f"{labels[0]} reached {reached}{f' after {time}' if epochs else ''} on {where}."
    return [first, *_findings(run, "")]


def data_name(run: RunRecord) -> str:
    """What to call the data that a run was trained on."""
    return str(run.section("data").get("name", "the data"))


def _where(run: RunRecord) -> str:
    kind = "samples" if run.regression else "labelled samples"
    facts = [f"{count(run.num_samples)} {kind}"] if run.num_samples else []
    facts += [f"target: {name}"] if (name := target_name(run)) else []
    facts += [told] if (told := noise_words(run.noise, words(run).one)) else []
    return data_name(run) + (f" ({'; '.join(facts)})" if facts else "")


def _findings(run: RunRecord, who: str) -> list[str]:
    flagged = num_flagged(run)
    if flagged is None:
        return []
    total = f" of {count(run.num_samples)}" if run.num_samples else ""
    found = f"{count(flagged) if flagged else 'None'}{total} {words(run).many}"
    found += f" {'were' if who else 'are'} flagged{who} as wrong"
    kind = "target_noise" if run.regression else "noise"
    rate = run.number(f"{kind}_rate")
    if rate is None:
        return [f"{found}."]
    bounds = interval(run.section("result").get(f"{kind}_interval"))
    estimate = f"; {percent(rate)} are estimated to be wrong" + (f" (95{_NBSP}% interval {bounds})" if bounds else "")
    true_rate = run.true_rate
    return [f"{found}{estimate}" + (f", {percent(true_rate)} really are." if true_rate is not None else ".")]


def num_flagged(run: RunRecord) -> int | None:
    """How many labels or targets the run calls wrong; `None` if it has no list yet."""
    flagged = run.number("flagged")
    if flagged is not None:
        return int(flagged)
    return None if run.issues is None else int(run.issues["flagged"].sum())
