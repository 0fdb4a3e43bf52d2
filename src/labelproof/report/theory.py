"""The figures of noisy cross-validation (Chen et al., ICML 2019), written as SVG, PNG or PDF files.

Three of them: test accuracy, label precision and label recall against the noise rate, theory beside measurement; the
confusion of a trained network above the transition matrix of the noise; precision and recall of what is selected, by
iteration. They are given numbers, and know nothing of where these come from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike

from labelproof.report.figures import COLOURS, own_style, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png", ".pdf")
_PANELS = {"accuracy": "Test accuracy (noisy labels)", "precision": "Label precision", "recall": "Label recall"}
_MARKS = "osD^vP"
_ANNOTATED = 10  # classes: more than 100 numbers in a panel cannot be read
_LONGEST = 24  # characters of a name


class Agreement(NamedTuple):
    """A row of the first figure.

    Attributes:
        name: of the noise, say.
        line: theory: `(P,)` each of `rate`, rising, `accuracy`, `precision` and `recall`; a mapping or a DataFrame.
        dots: what was measured, `(R,)` of the same names; NaN is left out.
    """

    name: str
    line: Mapping[str, ArrayLike] | pd.DataFrame
    dots: Mapping[str, ArrayLike] | pd.DataFrame


class Confusion(NamedTuple):
    """A column of the second figure.

    Attributes:
        name: the noise and its rate, say.
        measured: `(K, K)` M, P(prediction | true class), rows = true class; rows of NaN are drawn grey.
        transition: `(K, K)` T, P(given label | true class).
    """

    name: str
    measured: ArrayLike
    transition: ArrayLike


class Selection(NamedTuple):
    """A curve of the third figure.

    Attributes:
        name: for the legend.
        precision: `(I,)` clean share of the selected set after each iteration.
        recall: `(I,)` selected share of the clean labels.
    """

    name: str
    precision: ArrayLike
    recall: ArrayLike


def draw_agreement(rows: Sequence[Agreement], out: Path | str) -> Path:
    """Accuracy, precision and recall against the noise rate: theory as lines, what was measured as dots.

    Args:
        rows: one for each kind of noise.
        out: the file; its ending, one of `ENDINGS`, is the format.

    Returns:
        The file, written whole or not at all.

    Raises:
        ValueError: no row, or another ending.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> rate = np.linspace(0, 1, 11)
    >>> line = {"rate": rate, "accuracy": (1 - rate) ** 2 + rate**2 / 9, "precision": 1 - rate, "recall": 1 - rate}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_agreement([Agreement("symmetric", line, line)], folder + "/theory.svg").name
    'theory.svg'
    """
    _check(rows, "rows")

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(rows), len(_PANELS), sharex=True, sharey=True, squeeze=False)
        for ax, title in zip(axes[0], _PANELS.values(), strict=True):
            ax.set_title(title)
        for ax in axes[-1]:
            ax.set_xlabel("noise rate")
        for row, panels in zip(rows, axes, strict=True):
            for ax, key in zip(panels, _PANELS, strict=True):
                ax.plot(row.line["rate"], row.line[key], color=COLOURS["blue"], label="theory")
                ax.plot(
                    row.dots["rate"],
                    row.dots[key],
                    "o",
                    color=COLOURS["red"],
                    label="measured",
                    zorder=3,
                    clip_on=False,
                )
                _unit(ax)
            panels[0].set_ylabel(_plain(row.name), parse_math=False)
            panels[0].set(xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6))
        _legend(figure, axes[0, 0])

    return _save(draw, (9.6, 0.75 + 2.6 * len(rows)), out, "Test accuracy, label precision and label recall")


def draw_confusion(columns: Sequence[Confusion], out: Path | str, *, classes: Sequence[Any] | None = None) -> Path:
    """Above what a network predicts for each true class, below how that class is labelled: M and T as heat maps.

    Args:
        columns: one for each noise; matrices of one size K, with numbers in the cells for K up to 10.
        out: as for `draw_agreement`.
        classes: `(K,)` what rows and columns stand for; by default 0 to K - 1.

    Returns:
        The file, written whole or not at all.

    Raises:
        ValueError: no column, another ending, or matrices and classes of different sizes.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_confusion([Confusion("no noise", np.eye(2), np.eye(2))], folder + "/confusion.svg").name
    'confusion.svg'
    """
    _check(columns, "columns")
    pairs = [[np.asarray(m, dtype=np.float64) for m in column[1:]] for column in columns]
    K = len(pairs[0][0])
    names = [_plain(c) for c in (range(K) if classes is None else classes)]
    for column, pair in zip(columns, pairs, strict=True):
        if any(m.shape != (K, K) for m in pair) or len(names) != K:
            raise ValueError(
                f"column {column.name!r} has matrices of shapes {pair[0].shape} and {pair[1].shape}, and there are "
                f"{len(names)} classes: all must be of one size"
            )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
        for column, pair, panels in zip(columns, pairs, axes.T, strict=True):
            panels[0].set_title(_plain(column.name), parse_math=False)
            for ax, matrix, xlabel in zip(panels, pair, ("predicted class", "given label"), strict=True):
                shown = _heat(ax, matrix)
                ax.set_xlabel(xlabel)
                _class_ticks(ax, names)
        for ax, what in zip(axes[:, 0], ("M, the network", "T, the noise"), strict=True):
            ax.set_ylabel(f"{what}\ntrue class")
        figure.colorbar(shown, ax=axes, shrink=0.6, aspect=30, pad=0.01, label="share of the true class")

    return _save(draw, (1.5 + 3.1 * len(columns), 6.6), out, "Predictions and given labels by true class")


def draw_selection(curves: Sequence[Selection], out: Path | str) -> Path:
    """Label precision and label recall of the selected set, by iteration.

    Args:
        curves: one for each run.
        out: as for `draw_agreement`.

    Returns:
        The file, written whole or not at all.

    Raises:
        ValueError: no curve, or another ending.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_selection([Selection("symmetric 0.5", [0.95, 0.93], [0.7, 0.9])], folder + "/incv.svg").name
    'incv.svg'
    """
    _check(curves, "curves")

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, key in zip(axes, ("precision", "recall"), strict=True):
            for k, curve in enumerate(curves):
                y, look = np.asarray(getattr(curve, key)), style(k)
                dashes = (0, look.dash) if look.dash else "-"
                looks: dict[str, Any] = {"color": COLOURS[look.colour], "linestyle": dashes, "clip_on": False}
                ax.plot(np.arange(1, len(y) + 1), y, marker=_MARKS[k % len(_MARKS)], label=_plain(curve.name), **looks)
            ax.set(title=_PANELS[key], xlabel="iteration")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            _unit(ax)
        _legend(figure, axes[0])

    return _save(draw, (9.6, 4.0), out, "Label precision and label recall of the selected set")


def _heat(ax: Axes, matrix: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    import matplotlib

    ax.set_facecolor(COLOURS["rule"])
    ax.grid(visible=False)
    # Not the whole of the map: its darkest end is all but black.
    colours = matplotlib.colormaps["Blues"](np.linspace(0, 0.85, 256))
    shown = ax.imshow(matrix, cmap=matplotlib.colors.ListedColormap(colours), vmin=0, vmax=1)
    if len(matrix) <= _ANNOTATED:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if value > 0.75 else COLOURS["ink"]
                ax.text(j, i, _cell(value), ha="center", va="center", fontsize=8, color=colour)
    return shown


def _cell(value: float) -> str:
    """Two digits behind the point; what rounds to nothing leaves its cell empty.

    >>> [_cell(x) for x in (0.004, 0.07, 0.5, 0.999, 1)]
    ['', '.07', '.50', '1', '1']
    """
    text = f"{value:.2f}"
    return {"0.00": "", "1.00": "1"}.get(text, text.removeprefix("0"))


def _class_ticks(ax: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // _ANNOTATED)
    at = range(0, len(names), step)
    long = max(map(len, names)) > 3
    ax.set_xticks(at, [names[i] for i in at], rotation=90 if long else 0, parse_math=False)
    ax.set_yticks(at, [names[i] for i in at], parse_math=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _unit(ax: Axes) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks(np.linspace(0, 1, 6))


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(name: Any) -> str:
    """A name of the user's, short, without what no SVG can hold.

    >>> _plain("a" * 30), _plain(chr(0) + "<$x^")
    ('aaaaaaaaaaaaaaaaaaaaaaa…', '?<$x^')
    """
    text = "".join(c if c.isprintable() else "?" for c in str(name))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _check(things: Sequence[Any], name: str) -> None:
    if not things:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def _save(draw: Callable[[Figure], None], size: tuple[float, float], out: Path | str, title: str) -> Path:
    from matplotlib.figure import Figure

    target = Path(out)
    if target.suffix.lower() not in ENDINGS:
        raise ValueError(f"out={str(out)!r} must end in one of {', '.join(ENDINGS)}, which is the format")
    draft = target.with_name(f".{uuid4().hex}{target.suffix.lower()}")
    look = {"font.size": 11, "axes.titlesize": 11, "lines.linewidth": 2, "lines.markersize": 6}
    with own_style({**look, "axes.titlecolor": COLOURS["ink"]}):
        figure = Figure(figsize=size, dpi=144, layout="constrained")
        draw(figure)
        told = {"Title": title, **({} if target.suffix.lower() == ".png" else {"Creator": None})}
        told |= {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(target.suffix.lower(), {})
        try:
            figure.savefig(draft, metadata=told)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    return target
