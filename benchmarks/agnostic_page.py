"""What benchmarks/agnostic.py shows of its results: a figure and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tables import spread, write_block

FIGURE = "figures/agnostic.svg"
START, END = "<!-- agnostic: made by benchmarks/agnostic.py -->", "<!-- end agnostic -->"
ADVERSARIES = ("adversarial-loss", "adversarial-targeted")
CORRUPTIONS = {"lie": "lie, 3 times as long as w", "sign-flip": "sign-flip", "constant": "1,000, on the furthest rows"}
#: Colours of Okabe and Ito, which colour-blind people can tell apart, and a marker for each method.
STYLES = {
    "mse": ("#000000", "o"), "ce": ("#000000", "o"), "huber": ("#E69F00", "s"), "self-paced": ("#E69F00", "s"),
    "prl-l": ("#56B4E9", "^"), "prl-g": ("#0072B2", "v"), "prl-g at once": ("#009E73", "P"),
    "co-teaching": ("#CC79A7", "D"),
}  # fmt: skip
BOUND = "#D55E00"


class Runs:
    """Results by kind, size, rate and method."""

    def __init__(self, found: Sequence[dict[str, Any]]) -> None:
        self._found = found

    def at(self, kind: str, size: float, rate: float, method: str, key: str) -> list[float]:
        """One value per seed; what is called clean is at rate 0 of every kind."""
        if rate == 0:
            kind, size = "clean", min(size, 0)
        wanted = (kind, size, rate, method)
        values = [r[key] for r in self._found if (r["kind"], r["size"], r["rate"], r["method"]) == wanted]
        return values or [float("nan")]

    def values(self, of: str, **fixed: Any) -> list[float]:
        return sorted({r[of] for r in self._found if all(r[k] == v for k, v in fixed.items())})

    def methods(self, key: str) -> list[str]:
        return [m for m in STYLES if any(r["method"] == m and key in r for r in self._found)]


def write(found: Sequence[dict[str, Any]], page: Path, *, machine: str, complete: bool) -> None:
    """Draw the figure and write the tables between the marks of the page."""
    shares = [r["to_right"] / r["bound"] for r in found if "bound" in r and r["rate"] > 0]
    worst = max(shares)
    runs, figure = Runs(found), page.parent / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, figure)
    commits, seeds = sorted({r["commit"] for r in found}), len({r["seed"] for r in found})
    seconds = sum(r["cpu_seconds"] for r in found)
    lines = [
        f"![Error of a linear regression against rate and size of the corruption, the bound dashed above, and accuracy "
        f"on digits under both adversaries: mean and range of {seeds} seeds; numbers in the tables below]({FIGURE})",
        "",
        *_regression(runs, seeds),
        "",
        *_sizes(runs, seeds),
        "",
        *_digits(runs, seeds),
        "",
        f"In none of the {len(shares)} regressions with wrong targets, by any method, was the distance to the solution "
        f"on right rows larger than the bound there; the largest was {worst:.2f} of it." if worst <= 1 else
        f"**The bound was exceeded, by a factor of up to {worst:.2f}.**",
        "",
        f"Made by `python benchmarks/agnostic.py`: {len(found):,} runs{'' if complete else ', not all there are'}, "
        f"seeds 0 to {seeds - 1}, {seconds:.0f} CPU seconds; {machine}; commit{'s' * (len(commits) > 1)} "
        f"{', '.join(commits)} (+: with changes not yet committed).",
    ]  # fmt: skip
    write_block(page, START, END, "The experiment", lines)


def _regression(runs: Runs, seeds: int) -> Iterator[str]:
    names = runs.methods("error")
    yield f"| error of ŵ, mean ± sd of {seeds} | ε | {' | '.join(names)} | bound at prl-g |"
    yield "|---|---:|" + "---:|" * (len(names) + 1)
    yield _row("none", 0, [runs.at("clean", 0, 0, m, "error") for m in names], [0.0])
    for kind, title in CORRUPTIONS.items():
        size = 3.0 if kind == "lie" else 0.0
        for rate in runs.values("rate", kind=kind, size=size):
            errors = [runs.at(kind, size, rate, m, "error") for m in names]
            yield _row(title, rate, errors, runs.at(kind, size, rate, "prl-g", "bound"))


def _row(title: str, rate: float, cells: Sequence[list[float]], bound: list[float]) -> str:
    least = min(statistics.mean(c) for c in cells)
    texts = [_number(c) for c in cells]
    strong = [f"**{t}**" if statistics.mean(c) <= 1.005 * least else t for t, c in zip(texts, cells, strict=True)]
    return f"| {title} | {rate:g} | {' | '.join(strong)} | {_plain(statistics.mean(bound))} |"


def _number(values: list[float]) -> str:
    return spread(values, 3 if statistics.mean(values) < 10 else 0)


def _plain(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _sizes(runs: Runs, seeds: int) -> Iterator[str]:
    names = runs.methods("error")
    yield f"| length of the lie, ε = 0.2: error of ŵ, mean ± sd of {seeds} | {' | '.join(names)} | bound at prl-g |"
    yield "|---:|" + "---:|" * (len(names) + 1)
    for size in runs.values("size", kind="lie"):
        cells = [runs.at("lie", size, 0.2, m, "error") for m in names]
        yield _row(f"{size:,g}", 0, cells, runs.at("lie", size, 0.2, "prl-g", "bound")).replace(" | 0 | ", " | ", 1)


def _digits(runs: Runs, seeds: int) -> Iterator[str]:
    names = runs.methods("accuracy")
    yield f"| digits: test accuracy in per cent, mean ± sd of {seeds} | ε | {' | '.join(names)} |"
    yield "|---|---:|" + "---:|" * len(names)
    for kind in ("clean", *ADVERSARIES):
        for rate in runs.values("rate", kind=kind, size=-1):
            cells = [[100 * v for v in runs.at(kind, -1, rate, m, "accuracy")] for m in names]
            best = max(cells, key=statistics.mean)
            near = [statistics.mean(best) - statistics.mean(c) <= statistics.stdev(best) for c in cells]
            texts = [f"**{spread(c)}**" if n else spread(c) for n, c in zip(near, cells, strict=True)]
            yield f"| {'none' if kind == 'clean' else kind} | {rate:g} | {' | '.join(texts)} |"


def draw(runs: Runs, path: Path) -> None:
    """Three rows of panels: regression against the rate, and the size, of the corruption; digits."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.hashsalt": "agnostic", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(3, 2, figsize=(8.2, 9.6))
        _linear_panel(axes[0, 0], runs, "lie", 3.0, "Targets of another w', 3 |w| away")
        _linear_panel(axes[0, 1], runs, "constant", 0.0, "Targets of 1,000 on the furthest rows")
        _size_panel(axes[1, 0], runs)
        axes[1, 1].axis("off")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[1, 1].legend(
            handles, labels, loc="center", frameon=False, title="Linear regression", alignment="left", borderpad=0
        )
        for ax, kind in zip(axes[2], ADVERSARIES, strict=True):
            _digits_panel(ax, runs, kind)
        low = min(ax.get_ylim()[0] for ax in axes[2])
        for ax in axes[2]:
            ax.set_ylim(low, 100)
        axes[2, 0].legend(frameon=False, loc="lower left", title="Digits, MLP", alignment="left")
        figure.tight_layout(h_pad=2)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _band(ax: Any, at: Sequence[float], values: Sequence[list[float]], method: str, label: str) -> None:
    colour, marker = STYLES[method]
    mean = [statistics.mean(v) for v in values]
    ax.plot(at, mean, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    ax.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, linewidth=0)


def _bound(ax: Any, at: Sequence[float], runs: Runs, kind: str, where: Sequence[tuple[float, float]]) -> None:
    pairs = [[runs.at(kind, s, r, "prl-g", key) for key in ("bound", "sampling")] for s, r in where]
    total = [statistics.mean(b + e for b, e in zip(*pair, strict=True)) for pair in pairs]
    ax.plot(at, total, color=BOUND, linestyle="--", linewidth=1.8, label="bound where prl-g ends")


def _linear_panel(ax: Any, runs: Runs, kind: str, size: float, title: str) -> None:
    rates = [0.0, *runs.values("rate", kind=kind, size=size)]
    for method in runs.methods("error"):
        _band(ax, rates, [runs.at(kind, size, r, method, "error") for r in rates], method, method)
    _bound(ax, rates, runs, kind, [(size, r) for r in rates])
    ax.set(yscale="log", xlabel="wrong targets, ε", ylabel="error of the weights, |ŵ − w|")
    ax.set_title(title, fontsize=10)


def _size_panel(ax: Any, runs: Runs) -> None:
    sizes = runs.values("size", kind="lie")
    for method in runs.methods("error"):
        _band(ax, sizes, [runs.at("lie", s, 0.2, method, "error") for s in sizes], method, method)
    _bound(ax, sizes, runs, "lie", [(s, 0.2) for s in sizes])
    ax.set(xscale="log", yscale="log", xlabel="|w' − w| / |w|", ylabel="error of the weights, |ŵ − w|")
    ax.set_title("The same lie, longer and longer; ε = 0.2", fontsize=10)


def _digits_panel(ax: Any, runs: Runs, kind: str) -> None:
    rates = [0.0, *runs.values("rate", kind=kind)]
    for method in runs.methods("accuracy"):
        values = [[100 * v for v in runs.at(kind, -1, r, method, "accuracy")] for r in rates]
        _band(ax, rates, values, method, method)
    ax.set(xlabel="wrong labels, ε", ylabel="test accuracy, %")
    ax.set_title(kind, fontsize=10)
