"""What `labelproof bench list | run | table` do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelproof.bench import results, run, tables
from labelproof.bench.verdict import compare, score
from labelproof.core.registry import did_you_mean
from labelproof.data.atomic import atomically
from labelproof.engine.launchers import Launcher
from labelproof.recipes import Recipe, available_recipes, load_recipe, read_toml
from labelproof.recipes.suites import Suite, available_suites, load_suite

#: Runs of a recipe that stands in no suite.
SEEDS = 3


def chosen(pattern: str) -> tuple[list[Recipe], int]:
    """The recipes that a word means, and how many seeds they are meant to have.

    Args:
        pattern: a suite, a recipe, or a pattern of the names of recipes, published ones and those of suites.

    Raises:
        ValueError: there is none.
    """
    if _is_suite(pattern):
        suite = load_suite(pattern)
        return list(suite.recipes), suite.seeds
    if pattern.endswith(".toml"):
        return [load_recipe(pattern)], SEEDS
    suites = [load_suite(name) for name in available_suites()]
    grids = {r.name: (r, suite.seeds) for suite in suites for r in suite.recipes if r.name in suite.cells}
    found = [load_recipe(name) for name in available_recipes() if fnmatch(name, pattern)]
    inside = [each for name, each in grids.items() if fnmatch(name, pattern)]
    if not found and not inside:
        names = [*available_suites(), *available_recipes(), *grids]
        hint = did_you_mean(pattern, names) if not set(pattern) & set("*?[") else "."
        raise ValueError(f"no recipe or suite is called {pattern!r}{hint} labelproof bench list shows what there is")
    return [*found, *(r for r, _ in inside)], max([s for _, s in inside], default=SEEDS)


def _is_suite(name: str) -> bool:
    return name in available_suites() or (name.endswith(".toml") and "seeds" in read_toml(Path(name), "suite"))


def show_list(pattern: str | None, folder: Path) -> None:
    """Suites with how far they are, or recipes with what was published and what ours came to."""
    console = Console(soft_wrap=True)
    if pattern is None:
        table = Table("suite", "recipes", "runs there", "title", box=None, padding=(0, 2))
        for suite in map(load_suite, available_suites()):
            found, wanted = results.read(folder, suite.recipes), suite.seeds * len(suite.recipes)
            there = f"{len(found.runs):,} of {wanted:,}"
            table.add_row(suite.name, f"{len(suite.recipes):,}", there, escape(suite.title))
        console.print(table)
        console.print(
            f"results are read from {escape(str(folder))}{'' if folder.is_dir() else ', which is not there yet'}\n\n"
            "labelproof bench list 'elr-*'      recipes, what was published, what ours came to\n"
            "labelproof bench run cpu --jobs 2  make the results that are missing\n"
            "labelproof bench table cpu         the table of a suite",
            highlight=False,
        )
        return
    recipes, _ = chosen(pattern)
    found = results.read(folder, recipes)
    table = Table("recipe", "published", "ours", "what it comes to", box=None, padding=(0, 2))
    for recipe in recipes:
        metric = recipe.expected.metric if recipe.expected else ""
        values = [v for each in found.of(recipe) if (v := score(each, metric)) is not None]
        ours = f"{statistics.mean(values):.2f} ({len(values)})" if values else "–"
        table.add_row(recipe.name, str(recipe.expected or "–"), ours, escape(str(compare(recipe, found.of(recipe)))))
    console.print(table, highlight=False)
    _tell_refused(console, found)


def run_all(
    pattern: str,
    seeds: int | None,
    folder: Path,
    *,
    words: run.Words,
    check: Callable[[Recipe], None],
    same: Sequence[str] = (),
    encoder: str = "",
    launcher: Launcher | None = None,
    dry: bool = False,
    quiet: bool = False,
) -> int:
    """Make the results that are missing; returns how many runs failed.

    Args:
        pattern: see `chosen`.
        seeds: so many runs of each recipe, with the seeds from 0.
        folder: of the results.
        words: from flags to words of the command line.
        check: refuses a recipe whose flags are none; asked of those that are not packaged.
        same: further words, for every run, that change nothing that is learned.
        encoder: for recipes that need one of the user's.
        launcher: where runs go on side by side.
        dry: only print the commands.
        quiet: print nothing but what went wrong.

    Raises:
        ValueError: unknown names, `seeds` below 1, or a flag that does not exist.
        OSError: nothing can be written.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds={seeds} must be a whole number above 0")
    console = Console(soft_wrap=True)
    recipes, meant = chosen(pattern)
    if pattern.endswith(".toml"):
        for recipe in recipes:
            check(recipe)
    found, count = results.read(folder, recipes), meant if seeds is None else seeds
    jobs = run.todo(recipes, count, folder, same, encoder)
    if not quiet:
        _tell_refused(console, found)
        what = f"{len(jobs):,} of {count * len(recipes):,} runs to make; results go to {escape(str(folder))}"
        console.print(what, highlight=False)
    if dry:
        for line in dict.fromkeys(line for job in jobs for line in run.commands(job, words)):
            console.print(escape(line), highlight=False)
        return 0
    began, ended = time.monotonic(), iter(range(1, len(jobs) + 1))

    def told(name: str, there: bool) -> None:
        number = next(ended)
        left = (time.monotonic() - began) / number * (len(jobs) - number) / 60
        said = name if there else f"{name}: no result, see {work / name}.log"
        console.print(f"[{number}/{len(jobs)}] {said}, {left:.0f} minutes left", highlight=False, markup=False)

    work = Path("runs", "bench")
    if jobs and not quiet:
        console.print(f"what each run says while it lasts: {work / jobs[0].name}.log and so on", highlight=False)
    failed = run.perform(jobs, folder, work, words=words, launcher=launcher, told=None if quiet else told)
    for name, failure in failed.items():
        console.print(f"[red]{escape(name)}:[/] {escape(failure.why)}", highlight=False)
    wrong = sum(not failure.busy for failure in failed.values())
    if wrong:
        console.print(f"{wrong} of {len(jobs)} runs failed: logs are in {work}, and they are made again next time")
    return wrong


def show_table(name: str, folder: Path, out: Path | None) -> None:
    """The table of a suite, or of the recipes that a pattern means, on the screen or in a file."""
    suite = load_suite(name) if _is_suite(name) else _of_pattern(name)
    made = tables.sections(suite, results.read(folder, suite.recipes))
    console = Console(soft_wrap=True)
    if out is None:
        console.print(tables.markdown(made), highlight=False, markup=False)
        return
    write_page(made, out)
    console.print(f"written to {escape(str(out))}", highlight=False)


def write_page(made: Sequence[tables.Section], out: Path) -> None:
    """A page of HTML that needs nothing else, or one of Markdown with its figures beside it: `NAME-1.svg` and so on."""
    if out.suffix == ".html":
        text = tables.html(made)
    else:
        text = tables.markdown(made, 1, [path.name for path in write_figures(made, out.parent, out.stem)])
    _write(out, text)


def write_figures(made: Sequence[tables.Section], folder: Path, stem: str) -> list[Path]:
    """The sections' figures as files of a folder that is there, `STEM-1.svg` and so on, in their order."""
    drawn = [section.figure for section in made if section.figure]
    paths = [folder / f"{stem}-{k}.svg" for k in range(1, len(drawn) + 1)]
    for path, svg in zip(paths, drawn, strict=True):
        _write(path, svg)
    return paths


def _write(path: Path, text: str) -> None:
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _of_pattern(pattern: str) -> Suite:
    """The recipes of a pattern as a suite, with the rows that those of a grid are compared with."""
    recipes, seeds = chosen(pattern)
    names = {r.name for r in recipes}
    suites = [s for s in map(load_suite, available_suites()) if names & s.cells.keys()]
    for suite in suites:
        where = {(c.grid, c.noise) for n, c in suite.cells.items() if n in names}
        base = {n for n, c in suite.cells.items() if c.row in tables.BASELINES and (c.grid, c.noise) in where}
        recipes = [r for r in suite.recipes if r.name in base - names] + recipes
    cells = {}
    for suite in suites:
        for recipe in recipes:
            if cell := suite.cells.get(recipe.name):
                name = cell.grid if len(suites) == 1 else f"{cell.grid} ({suite.name})"
                cells[recipe.name] = replace(cell, grid=name)
    return Suite(
        name=pattern,
        title=pattern,
        about="",
        seeds=seeds,
        recipes=tuple(recipes),
        cells=cells,
        titles={row: title for s in suites for row, title in s.titles.items()},
        notes={row: note for s in suites for row, note in s.notes.items()},
        path=suites[0].path if suites else Path(pattern),
    )


def _tell_refused(console: Console, found: results.Found) -> None:
    for name, why in sorted(found.refused.items()):
        console.print(f"[yellow]refused[/] {escape(name)}: {escape(why)}", highlight=False)
