"""What benchmarks/incv_table.py shows of its results: tables in Markdown and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mnist_table import HUMAN, Job, Noise, cell
from numpy.typing import NDArray
from tables import spread

from labelproof.report.theory import Selection, draw_selection

#: The distance from the truth that an estimate of a noise rate may have, in points.
CLOSE = 5.0
#: The colours of Okabe and Ito, which colour-blind people can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 1)), (0, (9, 2)))

Results = Mapping[Job, dict[str, Any]]
Floats = NDArray[np.float64]


class Shown(NamedTuple):
    """The finished runs of a data set.

    Attributes:
        title: for people.
        noises: those of the tables.
        rows: methods, in the order of the tables.
        found: results.
    """

    title: str
    noises: Sequence[Noise]
    rows: Sequence[str]
    found: Results

    def of(self, noise: Noise, title: str) -> list[dict[str, Any]]:
        return [r for job, r in self.found.items() if job.noise == noise and job.title == title]

    def seeds(self) -> int:
        """Of what was run most often."""
        return max(len(self.of(n, t)) for n in self.noises for t in self.rows)

    def incv(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The runs of INCV under each noise, by a name for people."""
        for noise in self.noises:
            if made := self.of(noise, "INCV"):
                yield name_of(noise), made


def name_of(noise: Noise) -> str:
    return "human labels" if noise.kind == HUMAN else str(noise)


def scores(part: Shown, key: str, head: str, *, seconds: bool = False) -> Iterator[str]:
    """Methods down, noises across; CPU seconds of all trainings of a run last, if asked for."""
    seeds = part.seeds()
    head = f"{head} ({seeds} seed{'s' * (seeds > 1)})"
    yield f"| {part.title}: {head} | {' | '.join(map(name_of, part.noises))} |" + " CPU seconds per run |" * seconds
    yield "|---|" + "---:|" * (len(part.noises) + seconds)
    for title in part.rows:
        made = [r for n in part.noises for r in part.of(n, title)]
        if made:
            cells = [cell(part.of(n, title), key, seeds) for n in part.noises]
            cells += [spread([r["cpu_seconds"] for r in made], 0)] * seconds
            yield f"| {' | '.join([title, *cells])} |"


def estimates(parts: Sequence[Shown]) -> Iterator[str]:
    """Estimated and true share of wrong labels, of the whole set and of what was selected."""
    yield (
        "| INCV's estimates | kind it found | wrong labels: estimated | true | distance, points | within 5 points | "
        "wrong among the selected: estimated | true |"
    )
    yield "|---|---|---:|---:|---:|---|---:|---:|"
    for part in parts:
        for name, made in part.incv():
            yield f"| {part.title}, {name} | {' | '.join(_estimated(made))} |"


def _estimated(made: Sequence[dict[str, Any]]) -> Iterator[str]:
    models, last = [r["result"]["incv_noise"] for r in made], [r["result"]["incv"][-1] for r in made]
    rate = np.array([100 * m["rate"] for m in models])
    true = np.array([100 * r["noise_realised"]["rate"] for r in made])
    doubts = sorted({f" (doubt: {m['doubt']})" for m in models if m["doubt"]})
    yield ", ".join(sorted({m["kind"] for m in models})) + "".join(doubts)
    yield spread(rate.tolist())
    yield spread(true.tolist())
    yield spread((rate - true).tolist())
    close = int((np.abs(rate - true) <= CLOSE).sum())
    yield f"{'yes' if close == len(made) else 'no' if not close else 'in part'} ({close} of {len(made)})"
    yield spread([100 * (1 - r["estimated_precision"]) for r in last])
    yield spread([100 * (1 - r["label_precision"]) for r in last])


def curve(made: Sequence[dict[str, Any]], key: str, length: int) -> Floats:
    """`(length,)` mean over seeds, in [0, 1]; of a run that ended early the last selection stays."""
    rows = [[row[key] for row in r["result"]["incv"]] for r in made]
    return np.mean([row + [row[-1]] * (length - len(row)) for row in rows], axis=0)


def iterations(parts: Sequence[Shown]) -> Iterator[str]:
    """Label precision and recall of the selected set after each iteration."""
    length = longest(parts)
    numbers = range(1, length + 1)
    heads = [f"{what} {n}" for what in ("precision", "recall") for n in numbers]
    yield f"| label precision and recall, iteration | {' | '.join(heads)} | selected | candidates left |"
    yield "|---|" + "---:|" * (len(heads) + 2)
    for part in parts:
        for name, made in part.incv():
            keys = ("label_precision", "label_recall")
            shares = [f"{100 * v:.1f}" for key in keys for v in curve(made, key, length)]
            counts = [f"{curve(made, key, length)[-1]:,.0f}" for key in ("selected", "candidates")]
            yield f"| {part.title}, {name} | {' | '.join([*shares, *counts])} |"


def longest(parts: Sequence[Shown]) -> int:
    """Iterations of the run that had most."""
    return max((len(r["result"]["incv"]) for part in parts for _, made in part.incv() for r in made), default=0)


def draw_iterations(parts: Sequence[Shown], path: Path) -> bool:
    """Precision and recall by iteration, a curve for each noise; False where there is nothing to draw."""
    length = longest(parts)
    keys = ("label_precision", "label_recall")
    curves = [
        Selection(name, *(curve(made, key, length) for key in keys)) for part in parts for name, made in part.incv()
    ]
    if curves:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_selection(curves, path)
    return bool(curves)


def draw_epochs(panels: Mapping[str, Mapping[str, Floats]], path: Path) -> None:
    """Test accuracy by epoch, a panel for each noise, a line for each method.

    Args:
        panels: by title, and in it by method, `(epochs,)` accuracy in [0, 1].
        path: an SVG.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"svg.hashsalt": "incv", "svg.fonttype": "none", "font.size": 10}
    with mpl.rc_context({**plain, "axes.spines.top": False, "axes.spines.right": False, "lines.scale_dashes": False}):
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(3.3 * columns, 2.7 * lines + 0.7), layout="constrained")
        axes = np.atleast_1d(figure.subplots(lines, columns, sharex=True, squeeze=False)).ravel()
        titles = list(dict.fromkeys(t for panel in panels.values() for t in panel))
        for ax, (title, panel) in zip(axes, panels.items(), strict=False):
            for method, y in panel.items():
                k = titles.index(method)
                at = np.arange(1, len(y) + 1)
                look = {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % len(DASHES)], "label": method}
                ax.plot(at, 100 * y, linewidth=2.2 if k == 0 else 1.4, zorder=3 if k == 0 else 2, **look)
            ax.set(title=title, xlabel="epoch")
            ax.grid(color="#cccccc", linewidth=0.6)
            ax.tick_params(labelbottom=True)
        for ax in axes[:: max(columns, 1)]:
            ax.set_ylabel("test accuracy, %")
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        known = {t: h for ax in axes for h, t in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=4, frameon=False, handlelength=3)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def epochs(part: Shown) -> dict[str, dict[str, Floats]]:
    """What `draw_epochs` draws: the mean over seeds, of the runs that have a curve."""
    panels = {}
    for noise in part.noises:
        made = {t: [r["result"] for r in part.of(noise, t)] for t in part.rows}
        curves = {t: [r["test_curve"] for r in results if "test_curve" in r] for t, results in made.items()}
        panels[f"{part.title}, {name_of(noise)}"] = {t: np.mean(c, axis=0) for t, c in curves.items() if c}
    return {name: panel for name, panel in panels.items() if panel}
