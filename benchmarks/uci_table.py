"""The tables of regression with wrong targets, on four UCI sets, in docs/results.md.

    python benchmarks/uci_table.py --jobs 2                      # run what is not finished, then rewrite the tables
    python benchmarks/uci_table.py --only 'prl*' --problem concrete --splits 1
    python benchmarks/uci_table.py --only prl-l --again          # forget these results, make them anew
    python benchmarks/uci_table.py --tables                      # only rewrite the tables from the result files

Each problem has one JSON file in benchmarks/results/uci/, with one line per run, rewritten as a whole after each run. A
line is reused if it was made with the method's hyper-parameters, the settings and the data of today, else the run is
made again. Processes share the work: each run is locked while it is made, and the system lets go of the lock of a
process that dies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from tables import REPO, agrees, commit, processes, share, write_block
from uci_page import FIGURE, body

import labelproof
from labelproof import runs
from labelproof.data import catalog, noise
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.engine.settings import Settings
from labelproof.methods import get_method

RESULTS = REPO / "benchmarks" / "results" / "uci"
LOCKS = REPO / "runs" / "uci-locks"
PAGE = REPO / "docs" / "results.md"
START, END = "<!-- uci: made by benchmarks/uci_table.py -->", "<!-- end uci -->"
SPLITS, TEST_SHARE, MOST_ROWS = 5, 0.1, 10_000

KINDS = ("linear-adversarial", "sign-flip", "uniform", "mixture")
RATES = (0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Problem:
    """Something to predict.

    Attributes:
        data: name in the catalog.
        settings: how every method is trained; chosen for MSE on clean targets, see docs/results.md.
        unit: of the targets, for people.
        digits: decimals of the RMSE.
        targets: columns to predict, where they are not the set's own target, which is then a feature.
        kinds: of corruption.
    """

    data: str
    settings: Mapping[str, Any]
    unit: str
    digits: int
    targets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS


_SMALL = {"epochs": 60, "batch_size": 64, "lr": 0.01}
PROBLEMS: dict[str, Problem] = {
    "concrete": Problem("uci/concrete", _SMALL, "strength, MPa", 2),
    "energy": Problem("uci/energy", _SMALL, "heating load, kWh/m²", 2),
    "kin8nm": Problem("uci/kin8nm", {"epochs": 20, "batch_size": 256, "lr": 0.01}, "distance of an arm's end", 4),
    "protein": Problem("uci/protein", {"epochs": 20, "batch_size": 256, "lr": 0.003}, "RMSD, Å", 2),
    # the only columns of these sets that make two targets of one kind: amounts a clerk may enter in each other's place
    "aggregates": Problem(
        "uci/concrete",
        {**_SMALL, "epochs": 100},
        "coarse and fine aggregate, kg/m³",
        1,
        ("coarse_aggregate", "fine_aggregate"),
        ("coordinate-swap",),
    ),
}


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: registered name.
        options: hyper-parameters, from the rate of corruption.
        note: what is told about it.
        extra: only run where asked for with --estimated.
    """

    method: str
    options: Callable[[float], dict[str, Any]] = lambda rate: {}
    note: str = ""
    extra: bool = False


def _told(rate: float) -> dict[str, Any]:
    return {"noise_rate": rate}


ROWS: dict[str, Row] = {
    "mse": Row("mse"),
    "huber": Row("huber"),
    "cauchy": Row("cauchy"),
    "trimmed": Row("trimmed", _told, "**told the true rate**"),
    "co-teaching": Row("co-teaching", _told, "**told the true rate**; two networks"),
    "prl-l": Row("prl-l", _told, "**told the true rate**"),
    "co-prl-l": Row("co-prl-l", _told, "**told the true rate**; two networks"),
    "prl-g": Row("prl-g", _told, "**told the true rate**"),
    "prl-l, estimated": Row("prl-l", lambda rate: {"noise_rate": "auto"}, "estimates the rate before", extra=True),
}


class Job(NamedTuple):
    """One run. Rate 0 has kind "clean"."""

    title: str
    problem: str
    kind: str
    rate: float
    split: int

    @property
    def name(self) -> str:
        return "-".join(
            [self.problem, f"{self.kind}{self.rate:g}", self.title.replace(", ", "-"), f"split{self.split}"]
        )

    @property
    def settings(self) -> Settings:
        return Settings(**PROBLEMS[self.problem].settings, optimizer="adam", device="cpu", seed=self.split)


def levels(problem: str) -> list[tuple[str, float]]:
    """Kinds and rates of corruption; clean first."""
    return [("clean", 0.0), *((kind, rate) for kind in PROBLEMS[problem].kinds for rate in RATES)]


def jobs(only: str, problem: str, splits: int, *, extra: bool) -> list[Job]:
    """All runs that match, split by split: a table of the first one is there early."""
    titles = [t for t, row in ROWS.items() if (fnmatch(t, only) or fnmatch(row.method, only)) and extra >= row.extra]
    problems = [p for p in PROBLEMS if fnmatch(p, problem)]
    for name, value, found, known in (("only", only, titles, ROWS), ("problem", problem, problems, PROBLEMS)):
        if not found:
            raise SystemExit(f"--{name} {value}: nothing of that name; there are {', '.join(known)}")
    return [Job(t, p, k, r, s) for s in range(splits) for p in problems for k, r in levels(p) for t in titles]


@cache
def load(problem: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All rows of a problem: `(N, D)` features and `(N, T)` targets, in the order of the file."""
    asked = PROBLEMS[problem]
    parts = [catalog.load(asked.data, split=split) for split in ("train", "test")]
    order = np.argsort(np.concatenate([p.ids for p in parts]))
    names = [*parts[0].columns, parts[0].target_name]
    table = np.concatenate([np.hstack([np.asarray(p.x), p.y]) for p in parts])[order]
    chosen = np.isin(names, asked.targets or [parts[0].target_name])
    return table[:, ~chosen], table[:, chosen]


def divide(n: int, split: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train and to test on: 90 % (at most MOST_ROWS) and 10 %."""
    order, held = np.random.default_rng(split).permutation(n), round(n * TEST_SHARE)
    return order[held:][:MOST_ROWS], order[:held]


def identity(job: Job) -> dict[str, Any]:
    """Everything that decides a run's outcome beside the job itself, but for the code."""
    row, problem = ROWS[job.title], PROBLEMS[job.problem]
    settings = job.settings.asdict()
    del settings["seed"]  # the split
    return {
        "method": row.method,
        "params": get_method(row.method)(**row.options(job.rate)).get_params(),
        "settings": settings,
        "data": {"name": problem.data, "targets": list(problem.targets), "most_rows": MOST_ROWS, "test": TEST_SHARE},
        "network": "mlp",
        "labelproof": labelproof.__version__,
    }


class Store(NamedTuple):
    """What the file of a problem holds: how runs were made, by a short name, and the runs by job."""

    made: dict[str, dict[str, Any]]
    runs: dict[Job, dict[str, Any]]

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The run's result, if there is one from today's settings."""
        found = self.runs.get(job)
        return found if found and agrees(self.made[found["made"]], identity(job)) else None


def path(problem: str) -> Path:
    return RESULTS / f"{problem}.json"


def read(problem: str) -> Store:
    """What there is.

    Raises:
        SystemExit: the file is damaged (a merge, say): hours of work, not to be written over.
    """
    try:
        found = json.loads(path(problem).read_text())
        runs = {Job(*(r[k] for k in Job._fields)): r for r in found["runs"]}
        return Store({k: found["made"][k] for k in {r["made"] for r in runs.values()}}, runs)
    except FileNotFoundError:
        return Store({}, {})
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path(problem)} is damaged ({error!r}): restore it, or delete it to run all anew") from None


def write(problem: str, change: Callable[[Store], None]) -> None:
    """Change the file of a problem: whole or not at all, one process at a time."""
    for folder in (LOCKS, RESULTS):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(LOCKS / f"{problem}.write.lock"):
        store = read(problem)
        change(store)
        used = {r["made"] for r in store.runs.values()}
        made = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(store.made.items()) if k in used)
        lines = ",\n".join(json.dumps(store.runs[job]) for job in sorted(store.runs))
        text = f'{{"made": {{\n{made}\n}},\n"runs": [\n{lines}\n]}}\n'
        atomically(path(problem), lambda partial: partial.write_text(text))


def keep(job: Job, result: dict[str, Any]) -> None:
    """Write the result of a run."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run"
    how = {**identity(job), "machine": machine, "versions": versions}
    short = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:10]

    def change(store: Store) -> None:
        store.made[short] = how
        store.runs[job] = {**job._asdict(), "made": short, **result, "commit": commit()}

    write(job.problem, change)


def forget(todo: Sequence[Job]) -> None:
    """Drop the results of these runs."""
    for problem in {job.problem for job in todo}:

        def change(store: Store) -> None:
            for job in todo:
                store.runs.pop(job, None)

        write(problem, change)


def run(job: Job) -> dict[str, Any]:
    """Train on corrupted targets, and measure on clean ones once, at the end."""
    x, y = load(job.problem)
    train, test = divide(len(y), job.split)
    data = Data(x[train], y[train], name=job.problem)
    hidden: dict[str, Any] = {}
    if job.rate:
        made = noise.inject(y[train], job.kind, job.rate, seed=job.split, x=x[train])
        data = data.relabelled(made.labels, **made.record())
        hidden = {"wrong": int(made.changed.sum()), "hash": made.hash[:16]}
    method = get_method(ROWS[job.title].method)(**ROWS[job.title].options(job.rate))
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        done = runs.train(data, method, "mlp", job.settings)
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        found: dict[str, Any] = {"diverged": str(error)}
    else:
        predicted = done.fitted.predict(x[test]).astype(np.float64)
        found = {
            "rmse": round(float(np.sqrt(np.mean((predicted - y[test]) ** 2))), 6),
            "r2": round(float(r2_score(y[test], predicted)), 6),
            **{k: round(done.result[k], 6) for k in ("average_precision",) if job.rate},
        }
    seconds = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    return {**found, **hidden, **seconds}


def collect(todo: list[Job]) -> list[str]:
    """Make what is missing and nobody else is making; returns what failed."""
    stores = {problem: read(problem) for problem in {job.problem for job in todo}}
    missing = [job for job in todo if stores[job.problem].finished(job) is None]

    def make(job: Job) -> str:
        found = run(job)
        keep(job, found)
        return f"RMSE {found.get('rmse', float('nan')):.4f} in {found['seconds']:.1f} s"

    def finished(job: Job) -> bool:  # by another process, meanwhile
        return read(job.problem).finished(job) is not None

    return share(missing, LOCKS, name=lambda job: job.name, finished=finished, make=make)


def write_tables(page: Path) -> None:
    """From the result files alone."""
    found: dict[Job, dict[str, Any]] = {}
    for problem in PROBLEMS:
        store = read(problem)
        for job in jobs("*", problem, SPLITS, extra=True):
            if (result := store.finished(job)) is not None:
                found[job] = {**result, "machine": store.made[result["made"]]["machine"]}
    if not found:
        raise SystemExit(f"no results of these settings in {RESULTS}: run python {Path(__file__).name} first")
    figure = page.parent / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    lines = body(found, PROBLEMS, ROWS, SPLITS, figure)
    write_block(page, START, END, "Regression with wrong targets, on UCI sets", lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows to run, by title or method; * and ? stand for anything")
    parser.add_argument("--problem", default="*", help="problems to run, likewise")
    parser.add_argument("--splits", type=int, default=SPLITS, choices=range(1, SPLITS + 1), help="the first so many")
    parser.add_argument("--estimated", action="store_true", help="also rows that estimate the rate")
    parser.add_argument("--again", action="store_true", help="forget the results of these rows first")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    parser.add_argument("--no-tables", action="store_true", help="only run")
    args = parser.parse_args(argv)
    todo, failed = jobs(args.only, args.problem, args.splits, extra=args.estimated), 0
    if args.again and not args.tables:
        forget(todo)
    if args.jobs > 1 and not args.tables:
        words = ["--only", args.only, "--problem", args.problem, "--splits", str(args.splits), "--no-tables"]
        failed = processes(__file__, [*words, *["--estimated"] * args.estimated], args.jobs)
    elif not args.tables:
        failed = len(collect(todo))
    if not args.no_tables:
        write_tables(PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
