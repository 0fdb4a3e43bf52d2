"""Which curves a report shows, from the records of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.report.figures import (
    CORRECT,
    MEMORISED,
    OTHERWISE,
    PLAIN,
    Series,
    Style,
    histogram,
    line_chart,
    style,
)
from labelproof.report.record import RunRecord
from labelproof.report.text import count, listing, number, percent

_POINTS = 250  # of a curve over samples; more cannot be seen


class Panel(NamedTuple):
    """One set of axes: its heading, the SVG, what it shows in words, and its own legend."""

    title: str
    svg: str
    alt: str
    legend: Sequence[tuple[str, Style]] = ()


class Chart(NamedTuple):
    """Panels that share a caption and perhaps a legend."""

    panels: Sequence[Panel]
    caption: str
    legend: Sequence[tuple[str, Style]] = ()


class _Curve(NamedTuple):
    column: str
    title: str  # over a panel of its own, several runs in it
    name: str  # in the legend of a panel it shares, one run in it
    percent: bool = True


_LOSS = _Curve("loss", "Training loss", "training loss", percent=False)
_GROUPS: tuple[tuple[str, tuple[_Curve, ...]], ...] = (
    (
        "Accuracy",
        (
            _Curve("test_accuracy", "Test accuracy", "test"),
            _Curve("val_accuracy", "Accuracy on held-out given labels", "held-out given labels"),
            _Curve("agree", "Training predictions equal to the given label", "training, given labels"),
        ),
    ),
    (
        "Error",
        (
            _Curve("test_rmse", "Test RMSE", "test", percent=False),
            _Curve("val_rmse", "RMSE on held-out given labels", "held-out given labels", percent=False),
            _Curve("train_rmse", "Training RMSE", "training, given labels", percent=False),
        ),
    ),
    ("Training loss", (_LOSS,)),
    (
        "Trusted labels",
        (
            _Curve("label_precision", "Share of trusted labels that are right", "trusted labels that are right"),
            _Curve("label_recall", "Share of right labels that are trusted", "right labels that are trusted"),
        ),
    ),
)


def learning_curves(runs: Sequence[RunRecord], labels: Sequence[str]) -> Chart | None:
    """Accuracy (or error), loss and selection by epoch: one run by metric, several runs metric by metric."""
    if len(runs) == 1:
        panels = [_one_run(runs[0], title, curves) for title, curves in _GROUPS]
        if np.unique(runs[0].curve("lr")[1]).size > 1:
            panels.append(_one_run(runs[0], "Learning rate", (_Curve("lr", "", "learning rate", percent=False),)))
        legend: list[tuple[str, Style]] = []
    else:
        panels = [_many_runs(runs, labels, curve) for _, curves in _GROUPS for curve in curves]
        legend = [(label, style(i)) for i, label in enumerate(labels)]
    drawn = [panel for panel in panels if panel is not None]
    if not drawn:
        return None
    caption = ["Scores and loss after each epoch."]
    if any(_best_epoch(run) is not None for run in runs):
        caption.append("The ring marks the epoch that the held-out given (noisy) labels would choose.")
    if any(np.any(run.curve("loss")[1] < 0) for run in runs):
        caption.append("A loss below zero is in order: the regulariser of ELR is a logarithm of a number below one.")
    if len(runs) > 1:
        caption.append("Losses of different methods are on different scales.")
    return Chart(drawn, " ".join(caption), legend)


def _best_epoch(run: RunRecord) -> float | None:
    return run.number("best_val_epoch")


def _one_run(run: RunRecord, title: str, curves: Sequence[_Curve]) -> Panel | None:
    series = []
    for i, curve in enumerate(curves):
        x, y = run.curve(curve.column)
        if x.size:
            mark = _best_epoch(run) if curve.column.startswith(("test", "val")) else None
            series.append(Series(curve.name, x, y, style(i), mark))
    if not series:
        return None
    legend = [(line.name, line.style) for line in series] if len(series) > 1 else []
    return _panel(title, series, legend, as_percent=curves[0].percent)


def _many_runs(runs: Sequence[RunRecord], labels: Sequence[str], curve: _Curve) -> Panel | None:
    series = []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        x, y = run.curve(curve.column)
        if x.size:
            mark = _best_epoch(run) if curve.column.startswith(("test", "val")) else None
            series.append(Series(label, x, y, style(i), mark))
    return _panel(curve.title, series, [], as_percent=curve.percent) if series else None


def _panel(title: str, series: Sequence[Series], legend: Sequence[tuple[str, Style]], *, as_percent: bool) -> Panel:
    write = percent if as_percent else number
    ends = [f"{line.name} goes from {write(line.y[0])} to {write(line.y[-1])}" for line in series]
    epochs = int(max(line.x[-1] for line in series))
    alt = f"{title} by epoch, up to epoch {epochs}: {listing(ends)}."
    svg = line_chart(series, xlabel="epoch", ylabel="", percent=as_percent)
    return Panel(title, svg, alt, legend)


def memorisation(runs: Sequence[RunRecord], labels: Sequence[str]) -> Chart | None:
    """The figure of the ELR paper (Liu et al. 2020): what becomes of samples with clean and with wrong labels.

    One row for each run that has both, clean labels on the left.
    """
    panels = []
    for run, label in zip(runs, labels, strict=True):
        if not all(run.curve(column)[0].size for column in ("clean_correct", "wrong_correct")):
            continue  # without wrong labels there is nothing to memorise, and a half row would upset the columns
        clean = [("correct", "clean_correct", CORRECT), ("other", "clean_other", OTHERWISE)]
        wrong = [
            ("correct", "wrong_correct", CORRECT),
            ("memorised", "wrong_memorised", MEMORISED),
            ("other", "wrong_other", OTHERWISE),
        ]
        for group, curves in (("clean labels", clean), ("wrong labels", wrong)):
            series = [Series(name, *run.curve(column), look) for name, column, look in curves]
            series = [line for line in series if line.x.size]
            title = f"{label}: {group}"
            ends = listing([f"{percent(line.y[-1])} {line.name}" for line in series])
            svg = line_chart(series, xlabel="epoch", ylabel="fraction of these training samples", unit_range=True)
            panels.append(Panel(title, svg, f"{title}, by epoch. At the last epoch {ends}."))
    if not panels:
        return None
    caption = (
        "What the network predicts for training samples whose given label is right, and for those whose given label "
        "is wrong. Correct: it predicts the true class. Memorised: it predicts the wrong given label. Other: it "
        "predicts some other class. The fractions of a panel add up to one. Rising red means that wrong labels are "
        "being learnt by heart."
    )
    return Chart(panels, caption, [("correct", CORRECT), ("memorised", MEMORISED), ("other", OTHERWISE)])


def review_curve(runs: Sequence[RunRecord], labels: Sequence[str], main: int) -> Chart | None:
    """How many wrong labels a reviewer meets who reads each list from the top."""
    series = []
    several = len(runs) > 1
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if (wrong := run.really_wrong()) is not None and run.issues is not None and wrong.any():
            mark = int(run.issues["flagged"].sum()) if run.issues["flagged"].any() else None
            name = label if several else "wrong labels found"
            series.append(_cumulative(name, wrong.astype(np.float64), style(i), mark))
    known = [run.really_wrong() for run in runs]
    wrong_of_main, listed = known[main], runs[main].issues
    if listed is None or len(listed) < 2:
        return None
    expected = listed["p_wrong"].fillna(0.0).to_numpy(dtype=np.float64)
    if wrong_of_main is None or not several:
        series.append(_cumulative("expected from p_wrong", expected, style(len(series)), None))
    if wrong_of_main is not None and wrong_of_main.any():
        series.append(_cumulative("a perfect list", np.sort(wrong_of_main)[::-1].astype(np.float64), PLAIN, None))
    end = _far_enough(series, len(listed))
    series = [line._replace(x=line.x[line.x <= end], y=line.y[line.x <= end]) for line in series]
    title = "Wrong labels met when reading the list from the top"
    ends = [f"{line.name} reaches {count(line.y[line.y.size // 2])} half-way" for line in series]
    svg = line_chart(series, xlabel="labels reviewed", ylabel="wrong labels")
    caption = "What a review buys: the steeper the start, the less there is to read."
    if any(line.mark is not None for line in series):
        caption += " The ring marks the last flagged label."
    if wrong_of_main is None:
        caption += " The truth is not known here, so this is what p_wrong promises."
    return Chart([Panel(title, svg, f"{title}: {listing(ends)}.")], caption, [(s.name, s.style) for s in series])


def _far_enough(series: Sequence[Series], total: int) -> float:
    """Where to end the axis: at twice what there is to find, since the rest of the list is flat."""
    found = max(float(line.y[-1]) for line in series)
    marks = [line.mark for line in series if line.mark is not None]
    return min(total, 2 * max([found, 25, *marks]))


def _cumulative(name: str, gains: NDArray[np.float64], look: Style, mark: int | None) -> Series:
    # Dense at the start, where the eye looks.
    at = np.unique(np.rint(len(gains) * np.linspace(0, 1, _POINTS) ** 2).astype(int))
    if mark is not None:
        at = np.union1d(at, [mark])
    total = np.concatenate([[0.0], np.cumsum(gains)])
    return Series(name, at.astype(np.float64), total[at], look, mark)


def residuals(run: RunRecord) -> Chart | None:
    """Given minus suggested value over all samples, the flagged ones apart (regression)."""
    import pandas as pd

    if run.issues is None or run.issues.empty:
        return None
    predicted = "suggested_value" if "suggested_value" in run.issues else "suggested"  # lists of older versions
    given, suggested = (
        pd.to_numeric(run.issues[name], errors="coerce").to_numpy(dtype=np.float64) for name in ("given", predicted)
    )
    residual = given - suggested
    flagged = run.issues["flagged"].to_numpy(dtype=bool)
    keep = np.isfinite(residual)
    groups = [
        ("not flagged", residual[keep & ~flagged], Style("blue")),
        ("flagged", residual[keep & flagged], MEMORISED),
    ]
    groups = [group for group in groups if group[1].size]
    if not groups:
        return None
    title = "Given minus suggested value"
    told = [
        f"{count(values.size)} labels {name}, median {number(float(np.median(values)))}" for name, values, _ in groups
    ]
    svg = histogram([(values, look) for _, values, look in groups], xlabel="given − suggested", ylabel="labels")
    caption = "Residuals of all labels, counts on a logarithmic axis. The outermost bars hold everything beyond them."
    return Chart([Panel(title, svg, f"{title}: {listing(told)}.")], caption, [(name, look) for name, _, look in groups])
