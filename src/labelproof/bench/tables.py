"""Tables of a suite, from its result files alone: as text of Markdown, and as a page of HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labelproof.bench.figures import gains_figure
from labelproof.bench.results import Found
from labelproof.bench.verdict import Gain, compare, gain, ranking, score
from labelproof.data.noise import of_targets, parse
from labelproof.recipes import METRICS, Recipe
from labelproof.recipes.suites import HUMAN, Suite, packaged
from labelproof.report.figures import data_uri

#: Rows that others are compared with: of classification, of regression.
BASELINES = ("ce", "mse")
_MARKS = {"gain": " ▲", "loss": " ▼", "no gain": " =", "one seed": ""}
_LEGEND = (
    "▲ better than {0}, ▼ worse, = no gain over {0}: whether the 95 % interval of the difference, paired by seed, lies "
    "above 0, below it, or holds it."
)


@dataclass
class Section:
    """A heading, what is said under it, a figure and a table.

    Attributes:
        title: the heading.
        text: paragraphs.
        header: of the columns.
        rows: text of each cell.
        code: the columns that hold commands.
        marked: whether scores have marks.
        figure: an SVG file, or nothing.
        alt: what the figure shows, for who cannot see it.
    """

    title: str
    text: list[str] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    code: tuple[int, ...] = ()
    marked: bool = False
    figure: str = ""
    alt: str = ""


def sections(suite: Suite, found: Found) -> list[Section]:
    """Everything that a suite's results say."""
    made = [Section(suite.title, [suite.about] * bool(suite.about) + [_state(suite, found)])]
    published = [r for r in suite.recipes if r.name not in suite.cells]
    if published:
        made.append(_published(published, found))
    grids = dict.fromkeys(cell.grid for cell in suite.cells.values())
    if grids:
        made += _overall(suite, found)
    for grid in grids:
        made += _grid(suite, found, grid)
    if grids:
        made.append(_notes(suite))
    if found.refused:
        told = [f"`{name}`: {why}" for name, why in sorted(found.refused.items())]
        made.append(
            Section("Refused", ["These files are in no table; `labelproof bench run` makes them again.", *told])
        )
    return made


def _state(suite: Suite, found: Found) -> str:
    wanted, there = suite.seeds * len(suite.recipes), len(found.runs)
    hardware = sorted({_machine(run) for run in found.runs.values()})
    hours = sum(run.get("cpu_seconds") or run["seconds"] for run in found.runs.values()) / 3600
    said = f"{there:,} of {wanted:,} runs, {hours:.1f} hours of computing"
    said += f", on {'; '.join(hardware)}." if hardware else "."
    return said + f" {len(found.refused)} files are refused, see the end." * bool(found.refused)


def _machine(run: Mapping[str, Any]) -> str:
    h, v = run["hardware"], run["versions"]
    device = f"{h['cores']} cores of a CPU ({h['machine']})" if h["device"] == "cpu" else h["device"]
    return f"{device}, torch {v['torch']}"


def _published(recipes: Sequence[Recipe], found: Found) -> Section:
    section = Section("Beside published numbers", header=["recipe", "published", "ours", "what it comes to", "command"])
    section.code = (0, 4)
    metrics = {r.expected.metric for r in recipes if r.expected}
    section.text = [f"Of each number: {METRICS[metric]}." for metric in metrics] if len(metrics) == 1 else []
    for recipe in recipes:
        runs, metric = found.of(recipe), recipe.expected.metric if recipe.expected else "test_accuracy"
        values = [v for run in runs if (v := score(run, metric)) is not None]
        which = f" ({METRICS[metric]})" if len(metrics) > 1 else ""
        theirs = f"{recipe.expected}{which}" if recipe.expected else "–"
        command = f"labelproof bench run {recipe.name}"
        section.rows.append([recipe.name, theirs, spread(values), str(compare(recipe, runs)), command])
    return section


def _scores(suite: Suite, found: Found, grid: str) -> dict[str, dict[str, dict[int, float]]]:
    """By row, noise and seed."""
    made: dict[str, dict[str, dict[int, float]]] = {}
    for (name, seed), run in sorted(found.runs.items()):
        cell = suite.cells.get(name)
        if cell is not None and cell.grid == grid and (value := score(run)) is not None:
            made.setdefault(cell.row, {}).setdefault(cell.noise, {})[seed] = value
    return made


def _order(suite: Suite, grid: str) -> tuple[list[str], list[str]]:
    cells = [cell for cell in suite.cells.values() if cell.grid == grid]
    return list(dict.fromkeys(c.row for c in cells)), list(dict.fromkeys(c.noise for c in cells))


def _grid(suite: Suite, found: Found, grid: str) -> list[Section]:
    rows, noises = _order(suite, grid)
    by_row, higher, base = _scores(suite, found, grid), _higher(suite, grid), _baseline(rows)
    names = [n if n != HUMAN else "human labels" for n in noises]
    what = "Test accuracy after the last epoch, %" if higher else "Test RMSE after the last epoch, lower is better"
    against = "" if base is None else f" {_LEGEND.format(_title(base, suite))}"
    main = Section(
        f"{grid}: {'accuracy' if higher else 'error'}", [f"{what}, mean ± sd.{against}"], ["", *names], marked=True
    )
    lists = Section(
        f"{grid}: the list of wrong labels",
        ["Average precision / precision among as many as are wrong, means over seeds; and what makes a row again."],
        ["", *names, "CPU seconds", "command"],
        code=(len(names) + 2,),
    )
    told = Section(
        f"{grid}: how noisy it is said to be",
        [
            "The estimated share of wrong labels, % (mean ± sd), then precision / recall of what is flagged. What is "
            "wrong in truth stands above."
        ],
        [
            "",
            *(
                _with_share(n, list(_runs(suite, found, rows[0], grid, key)))
                for n, key in zip(names, noises, strict=True)
            ),
        ],
    )
    for row in rows:
        values, compared = by_row.get(row, {}), by_row.get(base or "", {})
        line = [_cell(values.get(n, {}), compared.get(n), row == base, higher) for n in noises]
        main.rows.append([_title(row, suite), *line])
        runs = [list(_runs(suite, found, row, grid, n)) for n in noises]
        whole = [r for each in runs for r in each if not r.get("resumed")]  # the system knows the last process alone
        seconds = [r.get("cpu_seconds") or r["seconds"] for r in whole]
        taken = f"{statistics.mean(seconds):.0f}" if seconds else "–"
        lists.rows.append([_title(row, suite), *(_listed(each) for each in runs), taken, _command(suite, row, grid)])
        told.rows.append([_title(row, suite), *map(_said, runs)])
    return [main, lists, told]


def _command(suite: Suite, row: str, grid: str) -> str:
    """What makes a row of a grid again."""
    path = next(r.path for r in suite.recipes if r.name in suite.cells and suite.cells[r.name].row == row)
    if not packaged(path):
        return f"labelproof bench run {path}"
    return f"labelproof bench run '{row}-{grid.partition(' ')[0]}-*-{path.stem}'"


def _higher(suite: Suite, grid: str) -> bool:
    """Whether scores are accuracies, going by the noise: classes and numbers go wrong in different ways."""
    noises = [cell.noise for cell in suite.cells.values() if cell.grid == grid and cell.noise != HUMAN]
    return not any(of_targets(parse(noise).kind) for noise in noises)


def _baseline(rows: Sequence[str]) -> str | None:
    return next((r for r in rows if r in BASELINES), None)


def _runs(suite: Suite, found: Found, row: str, grid: str, noise: str) -> Iterable[Mapping[str, Any]]:
    for (name, _), run in found.runs.items():
        cell = suite.cells.get(name)
        if cell is not None and (cell.row, cell.grid, cell.noise) == (row, grid, noise):
            yield run


def _cell(ours: Mapping[int, float], base: Mapping[int, float] | None, is_base: bool, higher: bool) -> str:
    if not ours:
        return "–"
    against = None if is_base or not base else gain(ours, base, higher=higher)
    return spread(list(ours.values()), 2 if not higher else 1) + ("" if against is None else _MARKS[against.word])


def _listed(runs: Sequence[Mapping[str, Any]]) -> str:
    pairs = [(r["list"].get("average_precision"), r["list"].get("precision_at_wrong")) for r in runs]
    kept = [(a, b) for a, b in pairs if a is not None and b is not None]
    return " / ".join(f"{statistics.mean(v):.3f}" for v in zip(*kept, strict=True)) if kept else "–"


def _gains(suite: Suite, found: Found, grid: str) -> dict[str, dict[str, Gain]]:
    """What each row gains on the baseline, by column and row; nothing where no seed has both."""
    rows, noises = _order(suite, grid)
    scores, higher, base = _scores(suite, found, grid), _higher(suite, grid), _baseline(rows)
    if base is None:
        return {}
    compared = scores.get(base, {})
    made = {
        noise: {
            row: got
            for row, by_noise in scores.items()
            if row != base and (got := gain(by_noise.get(noise, {}), compared.get(noise, {}), higher=higher))
        }
        for noise in noises
    }
    return {f"{grid} {'human labels' if noise == HUMAN else noise}": each for noise, each in made.items() if each}


def _with_share(noise: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The noise, and how many labels are wrong by it."""
    shares = [100 * r["list"]["wrong"] / r["data"]["n"] for r in runs if r["list"].get("wrong") is not None]
    return f"{noise}, {statistics.mean(shares):.1f} %" if shares else noise


def _said(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the lists say of how noisy the data is; nothing flagged has no precision."""
    rates = [100 * r["list"]["noise_rate"] for r in runs if r["list"].get("noise_rate") is not None]
    if not rates:
        return "–"
    known = [[r["list"].get(f"flagged_{k}") for r in runs] for k in ("precision", "recall")]
    means = [[v for v in each if v is not None] for each in known]
    texts = [f"{statistics.mean(each):.2f}" if each else "–" for each in means]
    return f"{spread(rates)}, {' / '.join(texts)}"


def _overall(suite: Suite, found: Found) -> list[Section]:
    """Gains over the baseline in each column, and mean ranks, of classification and of regression."""
    grids = dict.fromkeys(c.grid for c in suite.cells.values())
    made = []
    for higher, title in ((True, "Which method helps"), (False, "Which method helps in regression")):
        chosen = [grid for grid in grids if _higher(suite, grid) == higher]
        columns = {column: each for grid in chosen for column, each in _gains(suite, found, grid).items()}
        if any(g.pairs > 1 for each in columns.values() for g in each.values()):
            made.append(_helps(suite, columns, title, higher=higher))
    return made


def _helps(suite: Suite, columns: Mapping[str, Mapping[str, Gain]], title: str, *, higher: bool) -> Section:
    """Rows that are the same method under another name (PRL-G on another network) are one here."""
    named = {c: {_title(row, suite): g for row, g in each.items()} for c, each in columns.items()}
    everywhere = set.intersection(*(set(each) for each in named.values()))
    scores = {name: {c: each[name].mean for c, each in named.items()} for name in everywhere}
    baseline = _title(BASELINES[0 if higher else 1], suite)
    ranks = {r.name: r for r in ranking({**scores, baseline: dict.fromkeys(named, 0.0)})}
    gains = {name: [each[name] for each in named.values() if name in each] for each in named.values() for name in each}
    order = sorted(gains, key=lambda name: (ranks[name].mean if name in ranks else math.inf, name))
    unit = "points" if higher else "RMSE saved"
    section = Section(
        title,
        [
            "Mean rank among the rows that have a result in every column (1 is best), with the 95 % interval of a "
            f"bootstrap over columns; in how many columns a method gains on {baseline}, loses, or does neither.",
        ],
        ["", "mean rank", "gain", "loss", "no gain", f"mean gain, {unit}", "in short"],
    )
    for name in sorted([*order, baseline], key=lambda name: ranks[name].mean if name in ranks else math.inf):
        r = ranks.get(name)
        rank = f"{r.mean:.1f} ({r.low:.1f} to {r.high:.1f})" if r else "incomplete"
        section.rows.append([name, rank, *(_counts(gains[name], baseline, higher) if name in gains else ["–"] * 5)])
    what = f"gain over {baseline}, {unit}"
    section.figure = gains_figure(named, order, xlabel=f"{what}, with its 95 % interval over seeds")
    section.alt = (
        f"{what}: a panel for each of {', '.join(named)}, a line for each method; the tables have the numbers."
    )
    return section


def _counts(gains: Sequence[Gain], baseline: str, higher: bool) -> list[str]:
    words = [g.word for g in gains]
    counts = [words.count(w) for w in ("gain", "loss", "no gain")]
    mean = statistics.mean(g.mean for g in gains)
    short = "helps here" if counts[0] > counts[1] + counts[2] else f"no gain over {baseline} in most columns"
    return [*map(str, counts), f"{mean:+.{1 if higher else 2}f}", short]


def _notes(suite: Suite) -> Section:
    section = Section("What the rows are", header=["", "note"])
    rows = dict.fromkeys(c.row for c in suite.cells.values())
    section.rows = [[_title(row, suite), suite.notes[row]] for row in rows if row in suite.notes]
    return section


def _title(row: str, suite: Suite) -> str:
    return suite.titles.get(row, row)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation; a dash for none.

    >>> spread([1.0, 2.0])
    '1.5 ± 0.7'
    """
    if not values:
        return "–"
    sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{sd}"


def markdown(made: Sequence[Section], level: int = 2, figures: Sequence[str] = ()) -> str:
    """The sections as Markdown, the first one's title as a heading of that level.

    Args:
        made: the sections.
        level: of the first heading.
        figures: addresses of the figures, in the order of the sections that have one; none are shown without.
    """
    links = iter(figures)
    lines: list[str] = []
    for k, section in enumerate(made):
        lines += [f"{'#' * (level + (k > 0))} {_plain(section.title)}", ""]
        for text in section.text:
            lines += [_plain(text), ""]
        if figures and section.figure:
            lines += [f"![{_plain(section.alt)}]({next(links)})", ""]
        if section.rows:
            lines += [_line(section.header), "|" + "---|" * len(section.header)]
            rows = [[f"`{v}`" if c in section.code and v else _plain(v) for c, v in enumerate(r)] for r in section.rows]
            lines += [*map(_line, rows), ""]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that stays what it is: no markup of HTML, on one line."""
    return " ".join(text.replace("<", "&lt;").split())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def html(made: Sequence[Section]) -> str:
    """The sections as one page that needs nothing else."""
    from importlib.resources import files

    from jinja2 import Environment

    template = files("labelproof.bench").joinpath("table.html").read_text(encoding="utf-8")
    pages = Environment(autoescape=True, trim_blocks=True)
    pages.filters |= {"marked": _marked, "as_image": lambda svg: data_uri("svg+xml", svg.encode())}
    return str(pages.from_string(template).render(sections=made))


def _marked(text: str, marks: bool) -> Any:
    """A score with its mark in a place of its own, so that figures stand below each other."""
    from markupsafe import Markup

    if not marks or not any(c.isdigit() for c in text):
        return text
    way = {"▲": "up", "▼": "down"}.get(text[-1], "")
    mark = text[-1] if text[-1] in "▲▼=" else ""
    return Markup('{}<i class="{}">{}</i>').format(text.removesuffix(mark).rstrip(), way, mark)
