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
    scatter,
    style,
)
from labelproof.report.record import RunRecord
from labelproof.report.text import count, listing, number, percent, target_name, words

_POINTS = 250  # of a curve over samples; more cannot be seen
_DOTS = 5000  # of a scatter; each is about 100 bytes of the page
_STEPS = 25  # of the band about its diagonal
_COLUMNS = 4  # of targets that are drawn
_ORDINARY, _FLAGGED = Style("blue", mark="dot"), Style("red", mark="cross")


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


def _groups(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[_Curve, ...]]]:
    """Titles of the panels and what they show, in the words of the task."""
    one, many = words(runs[0])
    held_out = f"held-out given {many}"
    groups: list[tuple[str, tuple[_Curve, ...]]] = [
        (
            "Accuracy",
            (
                _Curve("test_accuracy", "Test accuracy", "test"),
                _Curve("val_accuracy", f"Accuracy on {held_out}", held_out),
                _Curve("agree", f"Training predictions equal to the given {one}", f"training, given {many}"),
            ),
        ),
        (
            "Error",
            (
                _Curve("test_rmse", "Test RMSE", "test", percent=False),
                _Curve("val_rmse", f"RMSE on {held_out}", held_out, percent=False),
            ),
        ),
        ("Training loss", (_Curve("loss", "Training loss", "training loss", percent=False),)),
        (
            f"Trusted {many}",
            (
                _Curve("label_precision", f"Share of trusted {many} that are right", f"trusted {many} that are right"),
                _Curve("label_recall", f"Share of right {many} that are trusted", f"right {many} that are trusted"),
            ),
        ),
    ]
    if not any(run.curve("test_rmse")[0].size for run in runs):  # with test data, that error says more
        name = "Training RMSE, in units of the targets' spread"
        groups.insert(2, (name, (_Curve("train_rmse_scaled", name, "training, given targets", percent=False),)))
    return groups


def learning_curves(runs: Sequence[RunRecord], labels: Sequence[str]) -> Chart | None:
    """Accuracy (or error), loss and selection by epoch: one run by metric, several runs metric by metric."""
    if len(runs) == 1:
        panels = [_one_run(runs[0], title, curves) for title, curves in _groups(runs)]
        if np.unique(runs[0].curve("lr")[1]).size > 1:
            panels.append(_one_run(runs[0], "Learning rate", (_Curve("lr", "", "learning rate", percent=False),)))
        legend: list[tuple[str, Style]] = []
    else:
        panels = [_many_runs(runs, labels, curve) for _, curves in _groups(runs) for curve in curves]
        legend = [(label, style(i)) for i, label in enumerate(labels)]
    drawn = [panel for panel in panels if panel is not None]
    if not drawn:
        return None
    caption = ["Scores and loss after each epoch."]
    if any(_best_epoch(run) is not None for run in runs):
        caption.append(f"The ring marks the epoch that the held-out given (noisy) {words(runs[0]).many} would choose.")
    if any(np.any(run.curve("loss")[1] < 0) for run in runs):
        caption.append("A loss below zero is in order: the regulariser of ELR is a logarithm of a number below one.")
    if len(runs) > 1:
        caption.append("Losses of different methods are on different scales.")
    return Chart(drawn, " ".join(caption), legend)


#: Of each iteration of INCV: panels, and what they show under which name.
_SELECTION = {
    "Samples": {"selected": "selected", "candidates": "undecided"},
    "Selected labels": {
        "label_precision": "of the selected, right",
        "estimated_precision": "of the selected, estimated right",
        "label_recall": "of the right, selected",
    },
}


def selection(run: RunRecord) -> Chart | None:
    """What INCV selected before the last training, by iteration; `None` for other methods."""
    rows = run.section("result").get("incv")
    if not isinstance(rows, list) or not rows:
        return None
    x, panels = np.arange(1, len(rows) + 1, dtype=np.float64), []
    for title, curves in _SELECTION.items():
        shown = [(key, name) for key, name in curves.items() if key in rows[0]]
        values = [np.array([row[key] for row in rows], dtype=np.float64) for key, _ in shown]
        drawn = [Series(name, x, y, style(i)) for i, ((_, name), y) in enumerate(zip(shown, values, strict=True))]
        legend = [(line.name, line.style) for line in drawn]
        panels.append(_panel(title, drawn, legend, as_percent=title != "Samples", by="iteration"))
    kind = run.section("result").get("incv_noise", {})
    caption = (
        "Networks trained on one half (and on what was selected before) say what the labels of the other should be; "
        "samples whose given label they predict are selected, and the last training sees those alone, later with "
        f"the undecided ones beside them. By the first iteration {percent(kind.get('rate'))} of the labels are wrong "
        f"({kind.get('kind')} noise). What became of each sample stands in selection.csv."
    )
    return Chart(panels, caption)


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


def _panel(
    title: str,
    series: Sequence[Series],
    legend: Sequence[tuple[str, Style]],
    *,
    as_percent: bool,
    by: str = "epoch",
) -> Panel:
    write = percent if as_percent else number
    ends = [f"{line.name} goes from {write(line.y[0])} to {write(line.y[-1])}" for line in series]
    last = int(max(line.x[-1] for line in series))
    alt = f"{title} by {by}, up to {by} {last}: {listing(ends)}."
    svg = line_chart(series, xlabel=by, ylabel="", percent=as_percent)
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
    """How many wrong labels or targets a reviewer meets who reads each list from the top."""
    series = []
    one, many = words(runs[main])
    several = len(runs) > 1
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if (wrong := run.really_wrong()) is not None and run.issues is not None and wrong.any():
            mark = int(run.issues["flagged"].sum()) if run.issues["flagged"].any() else None
            name = label if several else f"wrong {many} found"
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
    title = f"Wrong {many} met when reading the list from the top"
    ends = [f"{line.name} reaches {count(line.y[line.y.size // 2])} half-way" for line in series]
    svg = line_chart(series, xlabel=f"{many} reviewed", ylabel=f"wrong {many}")
    caption = "What a review buys: the steeper the start, the less there is to read."
    if any(line.mark is not None for line in series):
        caption += f" The ring marks the last flagged {one}."
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


def against_model(run: RunRecord) -> Chart | None:
    """Given targets against the model's values: all rows with the flagged ones marked, and how far they are off."""
    if run.issues is None or run.issues.empty:
        return None
    given, modelled, flagged = run.listed("given"), run.listed("modelled"), run.issues["flagged"].to_numpy(dtype=bool)
    keep, columns = np.isfinite(given - modelled), run.listed("evidence_column")
    several = np.unique(columns[keep & np.isfinite(columns)])  # a row is told in the column that is furthest off
    name = target_name(run) or "target"
    panels, notes = [], []
    for column in several[:_COLUMNS] if several.size > 1 else [None]:
        rows = np.flatnonzero(keep if column is None else keep & (columns == column))
        if not rows.size:
            continue
        where = "" if column is None else f" (column {count(column)})"
        panel, note = _scatter(run, rows, flagged[rows], f"Given {name} against the model's value{where}")
        notes += [note] if note else []
        groups = [
            (told, (given - modelled)[part], look)
            for told, part, look in (
                ("not flagged", rows[~flagged[rows]], Style("blue")),
                ("flagged", rows[flagged[rows]], MEMORISED),
            )
            if part.size
        ]
        panels += [panel, _residuals(groups, f"Given {name} minus the model's value{where}")]
    if not panels:
        return None
    caption = ["On the dashed line the model says what was given."]
    if np.isfinite(run.listed("suggested_low")).any():
        caption.append("About 95\u00a0% of right targets should lie in the band.")
    caption += list(dict.fromkeys(notes))
    caption.append("Bars: counts on a logarithmic axis; the outermost hold everything beyond them.")
    if several.size > 1:
        caption.append("Each row is shown once, in the target column that is furthest off.")
    if several.size > _COLUMNS:
        caption.append(f"Of {several.size} columns the first {_COLUMNS} are drawn.")
    return Chart(panels, " ".join(caption))


def _scatter(run: RunRecord, rows: NDArray[np.intp], flagged: NDArray[np.bool_], title: str) -> tuple[Panel, str]:
    """The picture of some rows of the list, `flagged` for each, and what its reader must know of it."""
    points = np.stack([run.listed("modelled")[rows], run.listed("given")[rows]], axis=1)
    frame = _frame(points, flagged)
    notes = []
    low, high = zip(*frame, strict=True)
    if np.any((points < low) | (points > high)):
        notes.append("Points beyond the frame are drawn on its edge.")
    marked, others = np.flatnonzero(flagged), np.flatnonzero(~flagged)
    most = max(_DOTS // 2, _DOTS - others.size)
    drawn = [_spaced(marked, most), _spaced(others, _DOTS - min(marked.size, most))]
    if (shown := sum(part.size for part in drawn)) < len(rows):
        notes.append(
            f"Drawn are {count(shown)} of {count(len(rows))} rows, evenly chosen down the list: "
            f"{'all' if drawn[0].size == marked.size else count(drawn[0].size)} of the flagged, "
            f"{count(drawn[1].size)} of the others."
        )
    parts = [("not flagged", others, drawn[1], _ORDINARY), ("flagged", marked, drawn[0], _FLAGGED)]
    parts = [part for part in parts if part[1].size]
    off = np.abs(points[:, 1] - points[:, 0])
    told = [
        f"{count(part.size)} targets {name}, half of them within {number(float(np.median(off[part])))} of it"
        for name, part, _, _ in parts
    ]
    svg = scatter(
        [(points[dots], look) for _, _, dots, look in parts],
        frame=frame,
        band=_band(run, rows),
        xlabel="model's value",
        ylabel="given",
    )
    legend = [*((name, look) for name, _, _, look in parts), ("as the model says", PLAIN)]
    return Panel(title, svg, f"{title}: {listing(told)}.", legend), " ".join(notes)


def _frame(points: NDArray[np.float64], flagged: NDArray[np.bool_]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of both axes. What is given may lie as far beyond the usual range as that is wide; the rest is cut."""
    usual = np.concatenate([points[:, 0], points[~flagged, 1]])
    ends = []
    for values, middle, room in ((points[:, 0], points[:, 0], 0.1), (points.ravel(), usual, 1.0)):
        low, high = (float(end) for end in np.quantile(middle, [0.002, 0.998]))
        span = high - low or abs(high) or 1.0
        low, high = max(float(values.min()), low - room * span), min(float(values.max()), high + room * span)
        edge = 0.03 * (high - low) or 0.5 * span
        ends.append((low - edge, high + edge))
    return ends[0], ends[1]


def _spaced(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of the rows, from the first to the last."""
    return rows if rows.size <= most else rows[np.linspace(0, rows.size - 1, most).astype(int)]


def _band(run: RunRecord, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """`(P, 3)`: the model's value, rising, and the usual range of right targets there; P = 0 in lists without it."""
    x, half = run.listed("modelled")[rows], (run.listed("suggested_high") - run.listed("suggested_low"))[rows] / 2
    order = np.argsort(x, kind="stable")
    order = order[np.isfinite(half[order])]
    if not order.size:
        return np.empty((0, 3))
    x, half = x[order], half[order]
    # Single ranges jump, since noise depends on the other features too.
    parts = np.array_split(np.arange(order.size), min(_STEPS, order.size))
    at = np.array([x[0], *(np.median(x[part]) for part in parts), x[-1]])
    wide = np.array([np.median(half[part]) for part in (parts[0], *parts, parts[-1])])
    return np.stack([at, at - wide, at + wide], axis=1)


def _residuals(groups: Sequence[tuple[str, NDArray[np.float64], Style]], title: str) -> Panel:
    told = [
        f"{count(values.size)} targets {name}, median {number(float(np.median(values)))}" for name, values, _ in groups
    ]
    svg = histogram(
        [(values, look) for _, values, look in groups], xlabel="given \u2212 model's value", ylabel="targets"
    )
    return Panel(title, svg, f"{title}: {listing(told)}.", [(name, look) for name, _, look in groups])
