"""What each method gains on the baseline in each column of a suite, as a figure with intervals."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labelproof.bench.verdict import Gain
from labelproof.report.figures import COLOURS, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour and marker of what may be said of a difference.
_LOOKS = {"gain": ("green", "^"), "loss": ("red", "v"), "no gain": ("ink", "o"), "one seed": ("ink", "x")}
_PANEL, _NAMES, _ROW = 1.75, 2.9, 0.21  # inches


def gains_figure(columns: Mapping[str, Mapping[str, Gain]], rows: Sequence[str], *, xlabel: str) -> str:
    """Dots with 95 % intervals, a panel for each column, a line for each row.

    Where intervals reach far beyond all dots (three seeds of a method that fails on one) they are cut at the frame.

    Args:
        columns: by title; the gain of each row, for rows that have one.
        rows: names from top to bottom.
        xlabel: what a gain is, with its unit.

    Returns:
        A whole SVG file of about 5 KB per panel.

    >>> svg = gains_figure({"digits": {"ELR": Gain(3.0, 1.0, 5.0, 3)}}, ["ELR"], xlabel="points")
    >>> svg.startswith("<svg"), "ELR" in svg
    (True, True)
    """
    from matplotlib.figure import Figure

    height = _ROW * len(rows) + 1.1
    plain = {"text.parse_math": False}  # a row may be called $x
    with own_style({**plain, "font.size": 9, "axes.grid.axis": "both", "axes.spines.left": False}):
        figure = Figure(figsize=(_NAMES + _PANEL * len(columns), height))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for ax, (title, gains) in zip(axes, columns.items(), strict=True):
            _panel(ax, gains, rows)
            ax.set_title(title.replace(" ", "\n", 1), fontsize=9)
        axes[0].set_yticks(range(len(rows)), rows)
        axes[0].tick_params(axis="y", length=0)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        width = figure.get_figwidth()
        figure.subplots_adjust(_NAMES / width, 0.55 / height, 1 - 0.1 / width, 1 - 0.5 / height, wspace=0.12)
        figure.text(0.5 + 0.5 * _NAMES / width, 0.08 / height, xlabel, ha="center")
        return _text(figure)


def _panel(ax: Axes, gains: Mapping[str, Gain], rows: Sequence[str]) -> None:
    ax.axvline(0, color=COLOURS["ink"], linewidth=0.8)
    for place, row in enumerate(rows):
        if row in gains:
            found = gains[row]
            colour, marker = _LOOKS[found.word]
            ends = (found.low, found.high) if math.isfinite(found.low) else (found.mean, found.mean)
            ax.plot(ends, (place, place), color=COLOURS[colour], linewidth=1.1)
            ax.plot(found.mean, place, marker, color=COLOURS[colour], markersize=4)
    means = [g.mean for g in gains.values()]
    low, high = min([0.0, *means]), max([0.0, *means])
    margin = 0.25 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)


def _text(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
