"""`write_report`: run folders in, one self-contained HTML file out."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from labelproof.report import charts, simplex, summary, tables, text
from labelproof.report.figures import data_uri, standalone, with_prefix
from labelproof.report.record import RunRecord

_HERE = Path(__file__).parent


def write_report(run_dirs: Sequence[Path | str] | Path | str, out: Path | str | None = None) -> Path:
    """Write the report of one run, or of several runs of one experiment side by side.

    The file needs nothing beside it and fetches nothing: style, figures and pictures are inside, there is no
    script, and its content security policy forbids both. Everything that comes from data is escaped. The same run
    gives the same bytes.

    Where the truth is known and some labels are wrong, pictures to paste are written too: `report-memorisation.svg`
    (the name follows the page's) beside the page, `simplex.gif` and `simplex.png` in each run folder shown.

    Args:
        run_dirs: a run folder made by `labelproof train`, finished or not; or several.
        out: the .html file to write. Defaults to `report.html` in the run folder; for several runs, in the folder in
            which they all lie.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: a folder is not a run folder.
        ValueError: `run_dirs` is empty, names a folder twice or mixes tasks, a file of a run is damaged, or `out`
            cannot be a file or does not end in .html.
        OSError: a file cannot be written; what was there before is left as it was. A run folder that may not be
            written to goes without the pictures.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     run = '{"status": "finished", "method": {"name": "elr", "title": "ELR"}, "data": {"name": "<b>"}}'
        ...     _ = (Path(folder) / "run.json").write_text(run)
        ...     page = write_report(folder)
        ...     page.name, "<h1>ELR on <bdi>&lt;b&gt;</bdi></h1>" in page.read_text(encoding="utf-8")
        ('report.html', True)
    """
    folders = [Path(run_dirs)] if isinstance(run_dirs, str | Path) else [Path(folder) for folder in run_dirs]
    if not folders:
        raise ValueError("run_dirs is empty: give at least one run folder made by `labelproof train`")
    if twice := [str(folder) for folder, n in Counter(folder.resolve() for folder in folders).items() if n > 1]:
        raise ValueError(f"run_dirs names a folder more than once: {', '.join(twice)}. Give each run once")
    target = _target(folders, out)
    runs = [RunRecord.load(folder) for folder in folders]
    if len({run.regression for run in runs}) > 1:
        kinds = ", ".join(f"{run.path} ({'regression' if run.regression else 'classification'})" for run in runs)
        raise ValueError(f"run_dirs mixes tasks, which share no score: {kinds}. Write one report for each task")
    contents = _contents(runs)
    # A name that is not valid Unicode (a file name, say) must not cost the report.
    page = _render(contents).encode("utf-8", errors="replace")
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, page)
    if figure := contents["memorisation"]:
        sheet = standalone([(panel.title, panel.svg) for panel in figure.panels], figure.legend)
        _write(target.with_name(f"{target.stem}-memorisation.svg"), sheet.encode("utf-8"))
    for shown in contents["simplex"]:
        _write_beside(shown.run, "simplex.gif", shown.gif)
        _write_beside(shown.run, "simplex.png", shown.png)
    return target


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all: a reader, or a kill, never meets half of it."""
    draft = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _write_beside(run: RunRecord, name: str, content: bytes) -> None:
    try:
        _write(run.path / name, content)
    except OSError as error:
        # An archive, or another user's run, still gets its page: the picture is on it.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def _target(folders: Sequence[Path], out: Path | str | None) -> Path:
    if out is not None:
        target = Path(out)
        if target.is_dir():
            raise ValueError(f"out={str(out)!r} is a folder: give the file to write, e.g. {target / 'report.html'}")
        if target.suffix.lower() != ".html":
            raise ValueError(f"out={str(out)!r} must end in .html: the report is a page")
        return target
    if len(folders) == 1:
        return folders[0] / "report.html"
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise ValueError("out is needed, for these run folders do not lie in one folder: give the file to write")
    return parents.pop() / "report.html"


def _render(contents: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = count(1)
    environment.filters["data_uri"] = lambda content, kind: data_uri(kind, content)
    environment.filters["figure"] = lambda svg: Markup(with_prefix(svg, f"f{next(numbers)}-"))
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    return environment.get_template("template.html").render(style=style, **contents)


def _contents(runs: Sequence[RunRecord]) -> dict[str, Any]:
    labels = _labels(runs)
    main, why = _main(runs)
    shown = runs[main]
    wrong = shown.really_wrong()
    tiles = tables.tiles(shown)
    known = [tile.wrong for tile in tiles if tile.wrong is not None]
    several = len(runs) > 1
    paths, with_simplex = simplex.pictures(runs, labels)
    return {
        "what": _title(runs, labels),
        "data_name": text.listing(list(dict.fromkeys(map(text.data_name, runs)))),
        "sentences": text.headline(runs, labels, main),
        "caveats": summary.caveats(runs, labels),
        "cards": summary.run_cards(runs, labels) if several else summary.cards(shown),
        "comparison": summary.comparison(runs, labels) if several else None,
        "has_baseline": any(run.method in summary.BASELINES for run in runs),
        "baseline": "mse" if shown.regression else "ce",
        "baseline_name": summary.BASELINES["mse" if shown.regression else "ce"],
        "has_params": any(run.section("method").get("params") for run in runs),
        "curves": charts.learning_curves(runs, labels),
        "selection": charts.selection(shown),
        "memorisation": charts.memorisation(runs, labels),
        "simplex": paths,
        "with_simplex": with_simplex,
        "several": several,
        "regression": shown.regression,
        "words": text.words(shown),
        "target": text.target_name(shown),
        "held_out": any(run.held_out for run in runs),
        "has_ranges": shown.issues is not None and "suggested_low" in shown.issues,
        "main": labels[main],
        "why": why,
        "main_folder": shown.path.name,
        "matrices": tables.matrices(shown),
        "against_model": charts.against_model(shown) if shown.regression else None,
        "tiles": tiles,
        "tiles_wrong": (sum(known), len(known)) if known else None,
        "feature_rows": tables.feature_rows(shown),
        "swaps": tables.swaps(shown),
        "review": charts.review_curve(runs, labels, main),
        "suspicious": tables.suspicious(shown),
        "num_flagged": text.num_flagged(shown),
        "truth_known": wrong is not None,
        "commands": list(dict.fromkeys(str(run.info["command"]) for run in runs if run.info.get("command"))),
        "papers": _papers(runs),
        "making": summary.making(runs, labels),
    }


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """What to call each run: its method, with the folder where two runs share one."""
    times = Counter(run.short_label for run in runs)
    folders = [run.path.resolve() for run in runs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    return [
        run.short_label if times[run.short_label] == 1 else f"{run.short_label} [{folder.relative_to(shared)}]"
        for run, folder in zip(runs, folders, strict=True)
    ]


def _title(runs: Sequence[RunRecord], labels: Sequence[str]) -> str:
    if len(runs) == 1:
        return runs[0].label
    names = text.listing(list(labels))
    return names if len(names) <= 60 else f"{len(runs)} runs"


def _main(runs: Sequence[RunRecord]) -> tuple[int, str]:
    """Which run's list to show, and why. Test labels decide nothing."""
    listed = [i for i, run in enumerate(runs) if run.issues is not None] or list(range(len(runs)))
    scores = {i: runs[i].last("val_rmse" if runs[i].regression else "val_accuracy") for i in listed}
    known = {i: score for i, score in scores.items() if score is not None}
    if len(known) == len(scores):
        best = min(known, key=lambda i: known[i]) if runs[0].regression else max(known, key=lambda i: known[i])
        return best, f"the best of these runs at the last epoch on held-out given {text.words(runs[0]).many}"
    beyond = [i for i in listed if runs[i].method not in summary.BASELINES]
    return (beyond or listed)[0], "the first of these runs that is not the baseline"


def _papers(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    cited = [(run.label, str(run.section("method").get("paper") or "")) for run in runs]
    return list(dict.fromkeys((title, paper) for title, paper in cited if paper))
