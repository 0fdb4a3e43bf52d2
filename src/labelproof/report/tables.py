"""The tables of the report: cells as text, ready to be escaped by the template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.report.figures import matrix_picture, opacity, picture
from labelproof.report.record import RunRecord, finite
from labelproof.report.text import (
    NOTHING,
    aligned,
    count,
    listing,
    percent,
    probability,
    short,
    writer,
)

_ROWS, _EVIDENCE, _FEATURES, _ANNOTATED, _SWAPS = 100, 6, 12, 20, 10
_WIDE = 60  # characters of a label or an id


class Table(NamedTuple):
    """A table whose first column holds the headers of the rows. `words` are the columns that are not numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    note: str = ""


class Tile(NamedTuple):
    """A suspicious sample as a picture. `wrong` is `None` where the truth is not known.

    `coarse` pictures are shown as pixels, not smoothed.
    """

    id: str
    given: str
    suggested: str
    p_wrong: str
    truth: str
    wrong: bool | None
    source: str
    coarse: bool


class Cell(NamedTuple):
    """A cell of an annotated matrix: its text, how strongly it is shaded, whether its text must be light."""

    text: str
    shade: str
    strong: bool


class Matrix(NamedTuple):
    """A transition matrix: with numbers (`cells`) where it is small, as a picture (`source`) where it is large."""

    title: str
    names: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    upright: bool
    source: str
    alt: str
    note: str


def suspicious(run: RunRecord) -> Table | None:
    """The first rows of the list of wrong labels."""
    if run.issues is None or run.issues.empty:
        return None
    top = run.issues.head(_ROWS)
    evidence = [str(name) for name in top.columns if str(name).startswith("evidence_")]
    wrong = run.really_wrong()
    columns = ["Rank", "Id", "Given", _answer(run), "p_wrong", "Flagged"]
    columns += ["Truth", "Really wrong"] if wrong is not None else []
    words = frozenset({0, *range(len(columns))} - {4} - ({2, 3, 6} if run.regression else set()))
    shown = evidence[:_EVIDENCE]
    columns += [name.removeprefix("evidence_").replace("_", " ") for name in shown]
    told = [aligned(top[name].tolist()) for name in shown]
    write = _writers(run)
    rows = []
    for i, row in enumerate(top.to_dict("records")):
        name, given, answer, p_wrong = _labels(write, row)
        cells = [
            count(row["rank"]),
            name,
            given,
            answer + _range(write, row),
            p_wrong,
            "yes" if row["flagged"] else "no",
        ]
        if wrong is not None:
            cells += [write.given(row["truth"]), "yes" if wrong[i] else "no"]
        rows.append([*cells, *(column[i] for column in told)])
    note = f"The first {count(len(top))} of {count(len(run.issues))} rows of issues.csv."
    if len(evidence) > len(shown):
        note += f" {len(evidence) - len(shown)} more columns of evidence stand in that file."
    return Table(columns, rows, words, note)


def _answer(run: RunRecord) -> str:
    # In regression the model's value says more than what stays as given where nothing is flagged.
    return "Model's value" if run.regression else "Suggested"


class _Writers(NamedTuple):
    """How to write what was given (and the truth), and what the model says."""

    given: Callable[[object], str]
    model: Callable[[object], str]


def _writers(run: RunRecord) -> _Writers:
    if not run.regression or run.issues is None:
        return _Writers(_cut, _cut)
    given, modelled = run.listed("given"), run.listed("modelled")
    # The model's value is known no better than its range says; old lists have none, but how far it usually is off.
    width = run.listed("suggested_high") - run.listed("suggested_low")
    width = width if np.isfinite(width).any() else np.abs(given - modelled)
    width = width[np.isfinite(width)]
    step = float(np.median(width)) if width.size else 0.0
    return _Writers(_or_cut(writer(given, step)), _or_cut(writer(modelled, step)))


def _or_cut(write: Callable[[object], str]) -> Callable[[object], str]:
    def written(text: object) -> str:
        try:
            return write(float(str(text)))
        except ValueError:
            return _cut(text)

    return written


def _cut(text: object) -> str:
    return short(text, _WIDE)


def _labels(write: _Writers, row: Mapping[Any, Any]) -> tuple[str, str, str, str]:
    given, answer = write.given(row["given"]), write.model(row.get("suggested_value", row["suggested"]))
    return short(row["id"], _WIDE), given, answer, probability(row["p_wrong"])


def _range(write: _Writers, row: Mapping[Any, Any]) -> str:
    low, high = (finite(row.get(f"suggested_{end}")) for end in ("low", "high"))
    return "" if low is None or high is None else f" ({write.model(low)} to {write.model(high)})"


def swaps(run: RunRecord) -> Table | None:
    """The most frequent corrections among the flagged labels (classification)."""
    if run.issues is None or run.regression:
        return None
    flagged = run.issues[run.issues["flagged"] & (run.issues["given"] != run.issues["suggested"])]
    if flagged.empty:
        return None
    pairs = flagged.groupby(["given", "suggested"], sort=True).size().sort_values(ascending=False, kind="stable")
    top = pairs.head(_SWAPS).reset_index(name="labels").to_dict("records")
    rows = [[short(row["given"], _WIDE), short(row["suggested"], _WIDE), count(row["labels"])] for row in top]
    return Table(["Given", "Suggested", "Labels"], rows, frozenset({0, 1}))


def tiles(run: RunRecord) -> list[Tile]:
    """The most suspicious samples as pictures; empty for tabular data."""
    if run.gallery is None or run.gallery.image is None or run.issues is None:
        return []
    wrong, write = run.really_wrong(), _writers(run)
    found = []
    for position, row in _matched(run, run.gallery.rank):
        truth = "" if wrong is None else write.given(row["truth"])
        verdict = None if wrong is None else bool(wrong[row["position"]])
        sample, given, suggested, p_wrong = _labels(write, row)
        image = run.gallery.image[position]
        found.append(
            Tile(sample, given, suggested, p_wrong, truth, verdict, picture(image), max(image.shape[:2]) <= 16)
        )
    return found


def feature_rows(run: RunRecord) -> Table | None:
    """The most suspicious samples of tabular data, with their feature values."""
    if run.gallery is None or run.gallery.rows is None or run.issues is None:
        return None
    values = run.gallery.rows
    names = run.section("data").get("columns")
    if not isinstance(names, list) or len(names) != values.shape[1]:
        names = [f"feature {i}" for i in range(values.shape[1])]
    wrong, write = run.really_wrong(), _writers(run)
    columns = ["Id", "Given", _answer(run), "p_wrong", *(["Truth"] if wrong is not None else [])]
    words = frozenset({0} | (set() if run.regression else {1, 2} | ({4} if wrong is not None else set())))
    told = [aligned(column.tolist()) for column in values.T[:_FEATURES]]
    rows = []
    for position, row in _matched(run, run.gallery.rank):
        cells = [*_labels(write, row), *([write.given(row["truth"])] if wrong is not None else [])]
        rows.append([*cells, *(column[position] for column in told)])
    extra = values.shape[1] - _FEATURES
    note = f"The first {_FEATURES} of {values.shape[1]} feature columns." if extra > 0 else ""
    return Table([*columns, *(short(name, 40) for name in names[:_FEATURES])], rows, words, note) if rows else None


def _matched(run: RunRecord, ranks: NDArray[np.int64]) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Positions in the gallery with the row of the list that each belongs to, best rank first."""
    if run.issues is None:
        return
    place = {int(rank): i for i, rank in enumerate(run.issues["rank"])}
    for position in np.argsort(ranks, kind="stable"):
        if (i := place.get(int(ranks[position]))) is not None:
            yield int(position), {**run.issues.iloc[i].to_dict(), "position": i}


def matrices(run: RunRecord) -> list[Matrix]:
    """The estimated transition matrix, and the true one where it is known."""
    found = []
    for key, title in (("noise_transition", "Estimated"), ("true_transition", "True")):
        matrix = run.matrix(key)
        if matrix is not None:
            found.append(_matrix(run, title, matrix))
    return found


def _matrix(run: RunRecord, title: str, matrix: NDArray[np.float64]) -> Matrix:
    size = len(matrix)
    names = run.classes if len(run.classes) == size else [str(i) for i in range(size)]
    off = np.where(np.eye(size, dtype=bool), -1.0, np.nan_to_num(matrix, nan=-1.0))
    worst = np.argsort(-off, axis=None, kind="stable")[:3]
    told = [
        f"{short(names[i], 40)} is labelled {short(names[j], 40)} in {percent(matrix[i, j])} of cases"
        for i, j in zip(*np.unravel_index(worst, off.shape), strict=True)
        if off[i, j] > 0
    ]
    kept = np.nan_to_num(np.diag(matrix)).mean()
    alt = f"{title} transition matrix of {size} classes; on average {percent(kept)} of a class keeps its label"
    alt += f"; most often {listing(told)}." if told else "."
    if size <= _ANNOTATED:
        shade = opacity(np.nan_to_num(matrix))
        cells = [
            [Cell(_fraction(matrix[i, j]), f"{shade[i, j]:.3f}", bool(shade[i, j] > 0.6)) for j in range(size)]
            for i in range(size)
        ]
        upright = any(len(name) > 4 for name in names)
        return Matrix(title, [short(name, 40) for name in names], cells, upright, "", alt, "")
    source, block = matrix_picture(matrix)
    note = f"{size} classes, in the order of their codes"
    note += f"; each point is the largest of {block} × {block} entries" if block > 1 else ""
    return Matrix(title, [], [], False, source, alt, note)


def _fraction(value: float) -> str:
    return NOTHING if finite(float(value)) is None else "0" if value < 0.005 else f"{value:.2f}".removeprefix("0")
