"""What benchmarks/contrast_table.py shows of its results: tables in Markdown and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tables import spread

from labelproof.report.figures import COLOURS, own_style, style

#: Rows of the figure, and the row that is trained on the meta set alone.
DRAWN = ("cross-entropy", "GCE", "MW-Net")
ALONE = "cross-entropy, meta set alone"
FEATURES = {"SimCLR": "SimCLR", "untrained": "the network before any training", "pixels": "pixels, no network"}


class Shown(NamedTuple):
    """The finished runs of a data set.

    Attributes:
        title: for people.
        meta: samples of the meta set.
        settings: of all runs.
        lr: by start.
        pretrain: settings of the encoders.
        rates: of noise.
        seeds: asked for.
        found: results by job.
    """

    title: str
    meta: int
    settings: Mapping[str, Any]
    lr: Mapping[str, float]
    pretrain: Mapping[str, Any]
    rates: Sequence[float]
    seeds: int
    found: Mapping[Any, dict[str, Any]]

    def of(self, title: str, start: str, rate: float | None = None) -> dict[int, dict[str, Any]]:
        """Results by seed, of one rate of noise; of all rates the last one's."""
        return {
            job.seed: r
            for job, r in self.found.items()
            if job.title == title and job.start == start and rate in (None, job.rate)
        }

    def titles(self) -> list[str]:
        """Of rows with noise, in the order of the runs."""
        return list(dict.fromkeys(job.title for job in self.found if job.title and job.rate))


def cell(found: Mapping[int, dict[str, Any]], seeds: int, key: str = "accuracy") -> str:
    """Per cent over seeds; fewer seeds than asked for, and runs that diverged, are said."""
    values = [100 * r["result"][key] for r in found.values() if key in r["result"]]
    lost = len(found) - len(values)
    notes = [f"{lost} diverged"] * bool(lost) + [f"{len(values)} of {seeds} seeds"] * (0 < len(found) < seeds)
    return (spread(values) if values else "–") + (f" ({', '.join(notes)})" if notes else "")


def gain(before: Mapping[int, dict[str, Any]], after: Mapping[int, dict[str, Any]]) -> str:
    """Points between two starts, seed by seed.

    >>> gain({0: {"result": {"accuracy": 0.5}}}, {0: {"result": {"accuracy": 0.75}}, 1: {"result": {"accuracy": 1}}})
    '+25.0'
    """
    both = [s for s in before if s in after and all("accuracy" in d[s]["result"] for d in (before, after))]
    found = [100 * (after[s]["result"]["accuracy"] - before[s]["result"]["accuracy"]) for s in both]
    if not found:
        return "–"
    told = spread(found)
    return told.removeprefix("-") if told.startswith("-0.0") else f"{'+' * bool(np.mean(found) > 0)}{told}"


def accuracies(part: Shown, starts: Sequence[str]) -> Iterator[str]:
    """Methods and starts down, rates of noise across, and below each method what the start changes."""
    heads = " | ".join(f"{100 * rate:g} %" for rate in part.rates)
    yield f"| {part.title}: test accuracy, last epoch | start | {heads} | CPU seconds per run |"
    yield "|---|---|" + "---:|" * (len(part.rates) + 1)
    for title in part.titles():
        there = [s for s in starts if part.of(title, s)]
        for start in there:
            cells = [cell(part.of(title, start, rate), part.seeds) for rate in part.rates]
            seconds = [r["cpu_seconds"] for job, r in part.found.items() if (job.title, job.start) == (title, start)]
            yield f"| {' | '.join([title, start, *cells, spread(seconds, 0)])} |"
        if len(there) > 1:
            changes = [gain(*(part.of(title, s, rate) for s in there)) for rate in part.rates]
            yield f"| {' | '.join(['', '*difference*', *(f'*{c}*' for c in changes), ''])} |"


def encoders(parts: Sequence[Shown], starts: Sequence[str]) -> Iterator[str]:
    """What features are worth with all labels right, and what the verified samples are worth by themselves."""
    yield (
        "| features of | linear probe, all labels right | 20 nearest neighbours, all labels right | "
        "cross-entropy on the meta set alone | CPU seconds of pre-training |"
    )
    yield "|---|---:|---:|---:|---:|"
    for part in parts:
        made = part.of("", starts[-1])
        for name, told in FEATURES.items():
            own = {seed: {"result": r["result"][name]} for seed, r in made.items()}
            start = {"SimCLR": starts[-1], "untrained": starts[0]}.get(name)
            alone = cell(part.of(ALONE, start), part.seeds) if start else ""
            seconds = spread([r["cpu_seconds"] for r in made.values()], 0) if made and name == "SimCLR" else ""
            cells = [cell(own, part.seeds, key) for key in ("linear", "neighbours")]
            yield f"| {' | '.join([f'{part.title}: {told}', *cells, alone, seconds])} |"


def lines(parts: Sequence[Shown], starts: Sequence[str], figure: str, chosen: Sequence[str]) -> Iterator[str]:
    """All that stands between the marks of the page."""
    for part in parts:
        yield from accuracies(part, starts)
        yield ""
    yield from encoders(parts, starts)
    yield ""
    yield (
        f"![Test accuracy against the noise rate, a panel for each of {'; '.join(p.title for p in parts)}; a colour "
        f"for each of {', '.join(DRAWN)}; dashed lines {starts[0]}, full lines {starts[-1]}; bars are standard "
        f"deviations. The tables above have the numbers.](figures/{figure})"
    )
    yield ""
    yield under(parts, starts, chosen)


def under(parts: Sequence[Shown], starts: Sequence[str], chosen: Sequence[str]) -> str:
    """How the tables were made."""
    s = parts[0].settings
    results = [r for part in parts for r in part.found.values()]
    commits, machines = (sorted({r[key] for r in results}) for key in ("commit", "machine"))
    each = "; ".join(
        f"{p.title}: {p.settings['epochs']} epochs, learning rate "
        f"{' and '.join(f'{p.lr[k]:g} {k}' for k in starts)}, encoder {p.pretrain['epochs']} epochs at "
        f"{p.pretrain['lr']:g}, meta set {p.meta:,} images"
        for p in parts
    )
    return (
        f"Per cent, mean ± standard deviation over {parts[0].seeds} seeds, each of split, noise, weights and order; a "
        "difference is that of the same seeds. Noise is Ghosh & Lan's `unif` (`ghosh-unif`): a new label among all ten "
        "classes, the true one included, so that 90 % of this noise makes 81 % of the labels wrong and 95 % makes "
        "85.5 %. Small CNN, the same network, epochs, optimiser "
        f"({s['optimizer']}, momentum {s['momentum']}, weight decay {s['weight_decay']:g}, batches of "
        f"{s['batch_size']}, {s['schedule']} schedule) for all rows. {each}. The encoder is trained on the same images "
        f"without labels (SimCLR, {parts[0].pretrain['optimizer']}, batches of {parts[0].pretrain['batch_size']}), one "
        "for each seed; its last layer starts at zero and everything is trained on, unless the row says frozen. The "
        "meta set is class-balanced, has right labels and is in nobody's training set; MW-Net alone learns its weights "
        "from it. *Unverified*: it takes its meta set out of the training set instead, labels as they are. GCE: q = "
        "0.66, no truncation. MW-Net: `lr_weights` is 0.01, because the papers' 0.001 is meant for some 50 times as "
        "many steps (chosen on the seed that the learning rates were chosen on); a row of the first table shows 0.001. "
        "Test labels decided nothing.\n\n"
        "The learning rate was chosen for each start on a seed outside these three, with 80 % noise, by the mean "
        "accuracy of cross-entropy and GCE on further images with right labels, which are in none of the sets above "
        f"(`python benchmarks/contrast_table.py --choose`): {'; '.join(chosen)}.\n\n"
        f"Made by `python benchmarks/contrast_table.py --jobs 2`; {'; '.join(machines)}; "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )


def draw(parts: Sequence[Shown], starts: Sequence[str], path: Path) -> None:
    """Accuracy against the noise rate, a panel for each data set: a colour for each loss, dashed from scratch.

    Args:
        parts: at least one.
        starts: from scratch first.
        path: an SVG.
    """
    from matplotlib.figure import Figure

    with own_style({"font.size": 11, "axes.titlesize": 11, "lines.linewidth": 2, "lines.markersize": 5}):
        figure = Figure(figsize=(max(6.9, 4.6 * len(parts)), 3.9), dpi=144, layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(parts), sharey=True))
        for ax, part in zip(axes, parts, strict=True):
            for k, title in enumerate(DRAWN):
                for start in starts:
                    made = {rate: part.of(title, start, rate) for rate in part.rates}
                    found = {
                        100 * rate: [100 * r["result"]["accuracy"] for r in of.values() if "accuracy" in r["result"]]
                        for rate, of in made.items()
                    }
                    at = [rate for rate, values in found.items() if values]
                    ax.errorbar(
                        at,
                        [np.mean(found[rate]) for rate in at],
                        yerr=[np.std(found[rate], ddof=1) if len(found[rate]) > 1 else 0 for rate in at],
                        color=COLOURS[style(k).colour],
                        linestyle=(0, (4, 2)) if start == starts[0] else "-",
                        marker="os^"[k],
                        capsize=2,
                        label=f"{title}, {start}",
                    )
            ax.set(title=part.title, xlabel="noise, %", xticks=[100 * rate for rate in part.rates])
        axes[0].set_ylabel("test accuracy, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, handlelength=3)
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Title": "Test accuracy against the noise rate"})
