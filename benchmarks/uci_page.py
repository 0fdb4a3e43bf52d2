"""What benchmarks/uci_table.py shows of its results: tables in Markdown and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tables import spread

FIGURE = "figures/uci.svg"
#: The colours of Okabe and Ito, which colour-blind people can tell apart, and grey for rows beside the eight.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#009E73", "#999999")
MARKERS = "osD^vPX*h"


class Level(NamedTuple):
    """Runs of one method under one corruption."""

    values: list[float]
    diverged: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


class Grid:
    """All results by problem, title, kind and rate."""

    def __init__(self, found: Mapping[Any, dict[str, Any]], titles: Sequence[str]) -> None:
        self.titles = [t for t in titles if any(job.title == t for job in found)]
        self._runs: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
        for job, result in found.items():
            self._runs.setdefault((job.problem, job.title, job.kind, job.rate), []).append(result)

    def level(self, problem: str, title: str, kind: str, rate: float, key: str) -> Level:
        found = self._runs.get((problem, title, kind, rate), [])
        values = [r[key] for r in found if r.get(key) is not None]
        return Level(values, sum("diverged" in r for r in found))

    def rates(self, problem: str, kind: str) -> list[float]:
        return sorted({r for p, _, k, r in self._runs if (p, k) == (problem, kind)})


def bold(row: Sequence[Level], *, least: bool) -> list[bool]:
    """Which are best, or within one standard deviation of the best; where a run diverged a mean of the rest is not."""
    fair = [x for x in row if x.values and not x.diverged]
    if not fair:
        return [False] * len(row)
    best = (min if least else max)(fair, key=lambda x: x.mean)
    return [x in fair and abs(x.mean - best.mean) <= best.sd for x in row]


def cell(level: Level, splits: int, digits: int, *, strong: bool, scale: float = 1.0) -> str:
    """Mean ± sd; fewer splits than asked for, and runs that diverged, are said."""
    runs = len(level.values) + level.diverged
    notes = [f"{level.diverged} diverged"] * bool(level.diverged) + [f"{runs} of {splits}"] * (0 < runs < splits)
    text = spread([scale * v for v in level.values], digits) if level.values else "–"
    return (f"**{text}**" if strong else text) + (f" ({', '.join(notes)})" if notes else "")


def table(
    grid: Grid, problem: str, kinds: Sequence[str], key: str, head: str, splits: int, digits: int, *, scale: float = 1.0
) -> Iterator[str]:
    """Corruptions down, methods across."""
    yield f"| {head} | {' | '.join(grid.titles)} |"
    yield "|---|" + "---:|" * len(grid.titles)
    for kind in kinds:
        for rate in grid.rates(problem, kind):
            row = [grid.level(problem, t, kind, rate, key) for t in grid.titles]
            strong = bold(row, least=key == "rmse")
            cells = [cell(x, splits, digits, strong=b, scale=scale) for x, b in zip(row, strong, strict=True)]
            yield f"| {_name(kind, rate)} | {' | '.join(cells)} |"


def _name(kind: str, rate: float) -> str:
    return f"{kind} {100 * rate:.0f} %" if rate else kind


def overview(grid: Grid, problems: Sequence[str], kinds: Sequence[str], against: str) -> Iterator[str]:
    """RMSE as a multiple of what the baseline has on clean targets: the geometric mean over problems."""
    yield f"| RMSE, 1 = {against} on clean targets | {' | '.join(grid.titles)} |"
    yield "|---|" + "---:|" * len(grid.titles)
    for kind in kinds:
        for rate in grid.rates(problems[0], kind):
            row: list[float | None] = []
            for title in grid.titles:
                pairs = [
                    (grid.level(p, title, kind, rate, "rmse"), grid.level(p, against, "clean", 0.0, "rmse"))
                    for p in problems
                ]
                whole = all(x.values and not x.diverged and clean.values for x, clean in pairs)
                row.append(statistics.geometric_mean([x.mean / c.mean for x, c in pairs]) if whole else None)
            least = min((v for v in row if v is not None), default=None)
            cells = [_strong(v, least) for v in row]
            yield f"| {_name(kind, rate)} | {' | '.join(cells)} |"


def _strong(value: float | None, least: float | None) -> str:
    if value is None or least is None:
        return "–"
    text = f"{value:.2f}"
    return f"**{text}**" if text == f"{least:.2f}" else text


def draw(grid: Grid, problems: Mapping[str, Any], kinds: Sequence[str], path: Path) -> None:
    """RMSE against the rate, a panel per problem and kind, with one standard deviation about each mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain = {"svg.hashsalt": "uci", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context({**plain, "axes.spines.top": False, "axes.spines.right": False}):
        shape = len(problems), len(kinds)
        size = 2.7 * shape[1], 2.2 * shape[0] + 0.7
        figure, axes = plt.subplots(*shape, figsize=size, sharex=True, sharey="row", squeeze=False)
        for i, name in enumerate(problems):
            for j, kind in enumerate(kinds):
                ax = axes[i, j]
                for title, colour, marker in zip(grid.titles, COLOURS, MARKERS, strict=False):
                    levels = [("clean", 0.0), *((kind, r) for r in grid.rates(name, kind))]
                    found = [(r, x) for k, r in levels if (x := grid.level(name, title, k, r, "rmse")).values]
                    at, mean, sd = [100 * r for r, _ in found], [x.mean for _, x in found], [x.sd for _, x in found]
                    dashed = "--" if title == "co-prl-l" else "-"  # it lies on co-teaching
                    ax.plot(at, mean, dashed, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=title)
                    low, high = ([m + s * d for m, d in zip(mean, sd, strict=True)] for s in (-1, 1))
                    ax.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
                if i == 0:
                    ax.set_title(kind)
                if j == 0:
                    ax.set_ylabel(f"{name}: RMSE")
                if i == shape[0] - 1:
                    ax.set_xlabel("wrong targets, %")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def body(
    found: Mapping[Any, dict[str, Any]],
    problems: Mapping[str, Any],
    rows: Mapping[str, Any],
    splits: int,
    figure: Path,
) -> Iterator[str]:
    """All that stands between the marks of the page; the figure is written beside it."""
    grid = Grid(found, list(rows))
    single = {n: p for n, p in problems.items() if not p.targets and any(job.problem == n for job in found)}
    if single:
        kinds = next(iter(single.values())).kinds
        draw(grid, single, kinds, figure)
        yield from overview(grid, list(single), ("clean", *kinds), next(iter(rows)))
        yield ""
        yield f"Geometric mean over {', '.join(single)}; the smallest of each line in bold."
        yield ""
        yield (
            f"![Test RMSE against the rate of wrong targets, a panel for each of {', '.join(single)} and each kind of "
            f"corruption, mean and one standard deviation over {splits} splits; the tables below have the numbers.]"
            f"({FIGURE})"
        )
    for name, problem in problems.items():
        if any(job.problem == name for job in found):
            yield ""
            listed = any(job.problem == name and "average_precision" in run for job, run in found.items())
            yield from _section(grid, name, problem, splits, listed)
    yield ""
    for title in grid.titles:
        if rows[title].note:
            yield f"- {title}: {rows[title].note}."
    yield ""
    yield from under(found, problems, splits)


def _section(grid: Grid, name: str, problem: Any, splits: int, listed: bool) -> Iterator[str]:
    kinds = ("clean", *problem.kinds)
    yield f"### {name} ({problem.unit})"
    yield ""
    yield from table(grid, name, kinds, "rmse", "test RMSE", splits, problem.digits)
    yield ""
    yield f"<details><summary>Test R²{', and how well the wrong targets are listed' * listed}</summary>"
    yield ""
    yield from table(grid, name, kinds, "r2", "test R²", splits, 3)
    yield ""
    if listed:
        head = "list of wrong targets: average precision, per cent"
        yield from table(grid, name, problem.kinds, "average_precision", head, splits, 1, scale=100)
        yield ""
    yield "</details>"


def under(found: Mapping[Any, dict[str, Any]], problems: Mapping[str, Any], splits: int) -> Iterator[str]:
    """How the tables were made."""
    trained = "; ".join(
        f"{n} {p.settings['epochs']} epochs of batches of {p.settings['batch_size']}, learning rate {p.settings['lr']}"
        for n, p in problems.items()
    )
    seconds = statistics.mean(r["cpu_seconds"] for r in found.values())
    yield (
        f"Mean ± standard deviation over {splits} splits of 90 % training and 10 % test rows; the split's number also "
        "seeds corruption, weights and order. The kinds are those of [noise.md](noise.md); exactly that share of the "
        "training targets is changed, test targets are clean and looked at once, after the end. Bold: the best, and "
        "those within one standard deviation of it. An average precision by chance would be the rate itself. For R² "
        "of two targets the mean of both is taken."
    )
    yield ""
    yield (
        f"MLP (2 x 256), adam, cosine schedule, the same for all methods of a problem: {trained}. They were chosen for "
        "MSE on clean targets, on 15 % of the training rows of split 0; no method's hyper-parameters were tuned. "
        "Protein trains on 10,000 of its 41,157 training rows. Targets are standardised by median and MAD."
    )
    yield ""
    yield (
        "**In regression with squared loss PRL-L and small-loss selection order rows alike**: the norm of the "
        "gradient at the output, |f − y|, grows with the loss ½ (f − y)². So prl-l is self-paced learning here and "
        "co-prl-l is Co-teaching, to the digit wherever both reach the same rate by the same ramp. prl-g differs, as "
        "the gradient of all weights also grows with what the layers are given; trimmed differs, as it ranks the whole "
        "training set instead of each batch. In classification all of them differ."
    )
    yield ""
    machines, commits = (sorted({r[k] for r in found.values()}) for k in ("machine", "commit"))
    yield (
        f"Made by `python benchmarks/uci_table.py --jobs 2`: {len(found):,} runs of {seconds:.1f} CPU seconds; "
        f"{'; '.join(machines)}; commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )
