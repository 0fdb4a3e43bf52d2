"""The table of all methods on 10,000 MNIST images with wrong labels, in docs/results.md.

    python benchmarks/mnist_table.py --jobs 2                # run what is not finished, then rewrite the tables
    python benchmarks/mnist_table.py --only 'elr*' --seeds 1 # some rows, the first seed
    python benchmarks/mnist_table.py --tables                # only rewrite the tables from the result files

Each finished run is one JSON file in benchmarks/results/mnist10k/. A file is reused if it was made with the settings,
the method's hyper-parameters and the noise of today, else the run is made again. Processes share the work: each run is
locked while it is made, and the system lets go of the lock of a process that dies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from passes import Passes, words
from tables import REPO, agrees, commit, processes, share, spread, write_block
from torch import nn

import labelproof
from labelproof import runs
from labelproof.core.method import Method
from labelproof.data import catalog, noise
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS
from labelproof.networks import build

RESULTS = REPO / "benchmarks" / "results" / "mnist10k"
LOCKS = REPO / "runs" / "mnist10k-locks"
PAGE = REPO / "docs" / "results.md"
START, END = "<!-- mnist10k: made by benchmarks/mnist_table.py -->", "<!-- end mnist10k -->"
SAMPLES, SEEDS = 10_000, 3

#: One setting for every method: chosen so that plain cross-entropy memorises (see `under`), not for any method's sake.
SETTINGS: dict[str, Any] = {
    "epochs": 16,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 0.003,
    "schedule": "cosine",
    "device": "cpu",
}


#: Labels that people gave: nothing is injected.
HUMAN = "human"


class Noise(NamedTuple):
    """A kind of wrong labels, its rate, and the matrix it is drawn from; of people's labels the rate that is told."""

    kind: str
    rate: float
    matrix: list[list[float]] | None = None

    def __str__(self) -> str:
        return f"{self.kind} {100 * self.rate:.0f} %"


@dataclass(frozen=True, eq=False)
class Bench:
    """What runs of a table share.

    Attributes:
        load: training data and test data.
        results: folder of the result files.
        settings: the same for every row but for what a row says.
        data: name of the data; nothing for this table, whose first results have none.
        watched: so many of the test images are looked at after each epoch, for a curve.
    """

    load: Callable[[], tuple[Data, Data]]
    results: Path
    settings: Mapping[str, Any]
    data: str = ""
    watched: int = 0


NOISES = (Noise("symmetric", 0.2), Noise("symmetric", 0.5), Noise("symmetric", 0.8), Noise("pairflip", 0.45))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: registered name.
        options: hyper-parameters, from the noise: only what the note says may depend on it.
        settings: beside SETTINGS.
        clean: so many of the images have verified labels, for methods that need some; they are right in training too.
        network: built-in name; not the table's own where a method cannot have BatchNorm.
        note: what is told about the row; hyper-parameters of the method's defaults are not repeated.
    """

    method: str
    options: Callable[[Noise], dict[str, Any]] = lambda noise: {}
    settings: Mapping[str, Any] = field(default_factory=dict)
    clean: int = 0
    network: str = "cnn"
    note: str = ""

    def make(self, noise: Noise) -> Method:
        return METHODS[self.method](**self.options(noise))


def _rate(noise: Noise) -> dict[str, Any]:
    return {"noise_rate": noise.rate}


def _matrix(noise: Noise) -> dict[str, Any]:
    return {"transition": noise.matrix}


ROWS: dict[str, Row] = {
    "cross-entropy": Row("ce"),
    "cross-entropy, label smoothing": Row("ce", lambda n: {"label_smoothing": 0.1}, note="0.1"),
    "cross-entropy, mixup": Row("ce", lambda n: {"mixup": 1.0}, note="α = 1"),
    "cross-entropy, early stopping": Row(
        "ce",
        settings={"early_stopping": True, "validation_fraction": 0.1},
        note="weights of the best epoch on 1,000 held-out noisy labels; trained on the other 9,000",
    ),
    "cross-entropy, end of early learning": Row(
        "ce", lambda n: {"early_learning": 0.9}, note="weights of the epoch where learning slowed down, r = 0.9 (ADELE)"
    ),
    "MAE": Row("mae"),
    "GCE": Row("gce", note="q = 0.7"),
    "GCE, truncated": Row(
        "gce",
        lambda n: {"k": 0.5, "prune_from": SETTINGS["epochs"] // 3, "prune_every": max(1, SETTINGS["epochs"] // 12)},
        note="q = 0.7, k = 0.5; pruned from a third of the epochs on, every twelfth (the paper's 40 and 10 of 120)",
    ),
    "symmetric cross-entropy": Row("sce", note="α = 0.1, β = 1"),
    "bootstrapping, hard": Row("bootstrap", lambda n: {"kind": "hard"}, note="β = 0.8"),
    "bootstrapping, soft": Row("bootstrap", lambda n: {"kind": "soft"}, note="β = 0.95"),
    "forward, true matrix": Row("forward", _matrix, note="**told the matrix the noise was drawn from**"),
    "forward, estimated": Row("forward", note="matrix from anchor points of a first training with early stopping"),
    "backward, true matrix": Row("backward", _matrix, note="**told the matrix the noise was drawn from**"),
    "backward, estimated": Row("backward", note="matrix from anchor points of a first training with early stopping"),
    "D2L": Row("d2l", note="initial phase and window of 5 epochs, as the paper for MNIST"),
    "self-paced": Row("self-paced", _rate, note="**told the true noise rate**; T_k = 10 epochs"),
    "ELR": Row(
        "elr",
        lambda n: {"lam": 3.0, "beta": 0.7} if n.kind == "symmetric" else {"lam": 1.0, "beta": 0.9},
        note="the paper's values for CIFAR-10: λ = 3, β = 0.7; for pairflip those for asymmetric noise, λ = 1, β = 0.9",
    ),
    "SOP": Row(
        "sop",
        lambda n: {"lr_u": 10.0, "lr_v": 10.0 if n.kind == "symmetric" else 100.0},
        note="the paper's values for CIFAR-10: α_u = 10, α_v = 10; for pairflip those for asymmetric noise, α_v = 100",
    ),
    "SOP+": Row(
        "sop+",
        lambda n: {"lr_u": 10.0, "lr_v": 10.0 if n.kind == "symmetric" else 100.0},
        note="as SOP, λ_C = 0.9, λ_B = 0.1; the strong view is an automatic augmentation policy",
    ),
    "Co-teaching": Row("co-teaching", _rate, note="**two networks; told the true noise rate**; T_k = 10"),
    "Co-teaching, noise rate estimated": Row(
        "co-teaching",
        lambda n: {"noise_rate": "auto"},
        note="two networks; the noise rate from a cross-validation before; T_k = 10",
    ),
    "Co-teaching+": Row(
        "co-teaching+",
        lambda n: {**_rate(n), "warmup": 0},
        note="**two networks; told the true noise rate**; E_k = 10, disagreement from the first epoch on, as released "
        "for MNIST",
    ),
    "Decoupling": Row("decoupling", note="two networks; 5 epochs of warm-up"),
    "MentorNet, predefined": Row(
        "mentornet",
        _rate,
        note="**told the true noise rate**",
    ),
    "MentorNet, data-driven": Row(
        "mentornet-dd",
        clean=500,
        note="**told the true labels of 500 of the 10,000 images**, which it trains on with these",
    ),
    "ELR+": Row(
        "elr+",
        lambda n: {"lam": 3.0, "beta": 0.7} if n.kind == "symmetric" else {"lam": 1.0, "beta": 0.9},
        note="two networks; λ and β as ELR, γ = 0.997, α = 1, no ramps",
    ),
    "DivideMix": Row(
        "dividemix",
        lambda n: {"confidence_penalty": 0.0 if n.kind == "symmetric" else 1.0},
        note="two networks; λ_u = 25, α = 4, warm-up of a tenth of the epochs; for pairflip with the confidence "
        "penalty that the paper has for asymmetric noise",
    ),
    "INCV": Row("incv", note="two networks after eight trainings on about a half each; told nothing, all estimated"),
    "trimmed loss": Row("trimmed", _rate, note="**told the true noise rate**"),
    "PRL-L": Row("prl-l", _rate, note="**told the true noise rate**"),
    "co-PRL-L": Row("co-prl-l", _rate, note="**two networks; told the true noise rate**"),
    "cross-entropy, GroupNorm": Row("ce", network="cnn-gn", note="to compare with PRL-G"),
    "Co-teaching, GroupNorm": Row(
        "co-teaching", _rate, network="cnn-gn", note="as Co-teaching, to compare with co-PRL-G"
    ),
    "PRL-G": Row("prl-g", _rate, network="cnn-gn", note="**told the true noise rate**"),
    "co-PRL-G": Row("co-prl-g", _rate, network="cnn-gn", note="**two networks; told the true noise rate**"),
}


class Job(NamedTuple):
    """One run: a row under a noise and a seed, of this table if no other is named."""

    title: str
    noise: Noise
    seed: int
    of: Bench | None = None

    @property
    def bench(self) -> Bench:
        return self.of or Bench(load, RESULTS, SETTINGS)

    @property
    def path(self) -> Path:
        name = re.sub(r"[^a-z0-9+]+", "-", f"{self.title}-{self.noise.kind}{self.noise.rate:g}".lower())
        return self.bench.results / f"{name}-seed{self.seed}.json"

    @property
    def settings(self) -> Settings:
        return Settings(**self.bench.settings, **ROWS[self.title].settings, seed=self.seed)


def jobs(only: str, seeds: int, *, noises: Sequence[Noise] = (), of: Bench | None = None) -> list[Job]:
    """All runs whose row matches, seed by seed: a table of the first seed is there early.

    Args:
        only: title or method; * and ? stand for anything.
        seeds: the first so many.
        noises: this table's if there are none.
        of: another table's data and settings.
    """
    titles = [t for t, row in ROWS.items() if fnmatch(t, only) or fnmatch(row.method, only)]
    if not titles:
        raise SystemExit(f"--only {only}: no row or method of that name; there are {', '.join(ROWS)}")
    return [Job(t, n, s, of) for s in range(seeds) for n in noises or NOISES for t in titles]


def load() -> tuple[Data, Data]:
    """The 10,000 training images of `--subset 10000`, and the clean test images."""
    return subset("mnist"), catalog.load("mnist", split="test")


def subset(name: str) -> Data:
    """What `--subset 10000` takes of a named data set."""
    data = catalog.load(name)
    return data.take(np.sort(np.random.default_rng(0).permutation(len(data))[:SAMPLES]))


def verify(data: Data, clean: Data, count: int, seed: int) -> tuple[Data, Data]:
    """The data with the true labels of `count` samples, and these samples."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:count])
    y = data.y.copy()
    y[rows] = clean.y[rows]
    return data.relabelled(y, **data.noise), clean.take(rows)


def identity(job: Job) -> dict[str, Any]:
    """Everything that decides a run's outcome, but for the code; what a result must share to be reused."""
    row, told = ROWS[job.title], job.noise
    if told.kind != HUMAN:
        made = noise.inject(np.arange(10), told.kind, told.rate, num_classes=10)
        told = told._replace(matrix=np.asarray(made.nominal).tolist())
    method = row.make(told)
    return {
        "method": row.method,
        "params": method.get_params(),
        "settings": job.settings.asdict(),
        "noise": {"kind": job.noise.kind, "rate": job.noise.rate, "seed": job.seed},
        "samples": SAMPLES,
        "network": row.network,
        "labelproof": labelproof.__version__,
        **({"clean": row.clean} if row.clean else {}),
        **({"data": job.bench.data} if job.bench.data else {}),
        **({"watched": job.bench.watched} if job.bench.watched else {}),
    }


def corrupt(clean: Data, job: Job) -> tuple[Data, dict[str, Any]]:
    """The data with wrong labels, their realised rate and their hash; labels that people gave stay as they are."""
    if job.noise.kind == HUMAN:
        wrong = float((clean.y != clean.truth).mean())
        return clean, {"rate": wrong, "hash": noise.digest(clean.y)}
    made = noise.inject(clean.y, job.noise.kind, job.noise.rate, seed=job.seed, num_classes=clean.num_classes)
    return clean.relabelled(made.labels, **made.record()), {"rate": made.rate, "hash": made.hash}


def finished(job: Job) -> dict[str, Any] | None:
    """The run's result, if there is one from today's settings."""
    try:
        found = json.loads(job.path.read_text())
    except (OSError, ValueError):
        return None
    return found if agrees(found, identity(job)) else None


def run(job: Job, clean: Data, test: Data) -> dict[str, Any]:
    """Train, and measure on the clean test images at the end; on some of them after each epoch if the table says so."""
    row, who = ROWS[job.title], identity(job)
    (data, realised), method = corrupt(clean, job), METHODS[row.method](**who["params"])
    streams = {}
    if row.clean:
        data, streams["clean"] = verify(data, clean, row.clean, job.seed)
    passes, wall, cpu = Passes(), time.perf_counter(), time.process_time()

    def network(in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        return passes.watch(build(row.network, in_shape, num_outputs))  # the engine chooses the memory layout

    result: dict[str, Any] = {}
    try:
        done = runs.train(data, method, network, job.settings, streams=streams, test=_few(test, job.bench.watched))
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        result = {"diverged": str(error)}
    else:
        counted, last = passes.take(len(data) * job.settings.epochs), done.fitted.history[-1]
        result = {
            "test_accuracy": float((done.fitted.predict(test.x).argmax(1) == test.y).mean()),
            "average_precision": done.result["average_precision"],
            "noise_rate_estimate": done.result["noise_rate"],
            "wrong_memorised": last.get("wrong_memorised"),
            **({} if job.bench.watched else {"passes": counted}),  # those of the curve would be among them
            **{k: done.result[k] for k in ("incv", "incv_noise") if k in done.result},
        }
        if job.bench.watched:
            result["test_curve"] = [round(epoch["test_accuracy"], 4) for epoch in done.fitted.history]
    return {
        **who,
        "title": job.title,
        "result": result,
        "noise_realised": realised,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peers": method.peers,
        "views": len(method.views),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
    }


def _few(test: Data, count: int) -> Data | None:
    return test.take(np.arange(min(count, len(test)))) if count else None


def collect(todo: list[Job]) -> list[str]:
    """Make what is missing and nobody else is making; returns what failed."""
    loaded: dict[Path, tuple[Data, Data]] = {}

    def make(job: Job) -> str:
        bench = job.bench
        if bench.results not in loaded:
            bench.results.mkdir(parents=True, exist_ok=True)
            loaded[bench.results] = bench.load()
        found = run(job, *loaded[bench.results])
        text = json.dumps(found, indent=1) + "\n"
        atomically(job.path, lambda partial: partial.write_text(text))
        return f"{found['result'].get('test_accuracy', float('nan')):.4f} in {found['seconds']:.0f} s"

    def name(job: Job) -> str:
        return f"{job.bench.data} {job.path.stem}".strip()

    return share(todo, LOCKS, name=name, finished=lambda job: finished(job) is not None, make=make)


def cell(found: list[dict[str, Any]], key: str, seeds: int = 0) -> str:
    """Per cent over seeds; fewer seeds than asked for, and runs that diverged, are said."""
    values = [100 * r["result"][key] for r in found if key in r["result"]]
    lost, seeds = len(found) - len(values), seeds or SEEDS
    notes = [f"{lost} diverged"] * bool(lost) + [f"{len(values)} of {seeds} seeds"] * (0 < len(found) < seeds)
    return (spread(values) if values else "–") + (f" ({', '.join(notes)})" if notes else "")


def passes(found: list[dict[str, Any]]) -> str:
    """Forward passes per sample and epoch, the mean over the runs in which they were counted (the first were not)."""
    counted = [r["result"]["passes"] for r in found if "passes" in r["result"]]
    return words(map(statistics.mean, zip(*counted, strict=True))) if counted else "–"


def lines(results: Mapping[Job, dict[str, Any]]) -> Iterator[str]:
    """The two tables."""
    heads = " | ".join(str(n) for n in NOISES)
    titles = [t for t in ROWS if any(job.title == t for job in results)]

    def of(title: str, *noises: Noise) -> list[dict[str, Any]]:
        return [r for job, r in results.items() if job.title == title and job.noise in (noises or NOISES)]

    yield f"| test accuracy, last epoch | {heads} | seconds per run (CPU) | networks | forward passes |"
    yield "|---|" + "---:|" * (len(NOISES) + 3)
    for title in titles:
        found = of(title)
        seconds = spread([r["seconds"] for r in found], 0), spread([r["cpu_seconds"] for r in found], 0)
        cells = [cell(of(title, n), "test_accuracy") for n in NOISES]
        cells += [f"{seconds[0]} ({seconds[1]})", str(found[0]["peers"]), passes(found)]
        yield f"| {' | '.join([title, *cells])} |"
    yield ""
    yield f"| list of wrong labels: average precision | {heads} |"
    yield "|---|" + "---:|" * len(NOISES)
    for title in titles:
        yield f"| {' | '.join([title, *(cell(of(title, n), 'average_precision') for n in NOISES)])} |"
    yield ""
    for title in titles:
        if ROWS[title].note:
            yield f"- {title}: {ROWS[title].note}."


def under(results: Mapping[Job, dict[str, Any]]) -> str:
    """How the table was made."""
    s = SETTINGS
    commits = sorted({r["commit"] for r in results.values()})
    machines = sorted({r["machine"] for r in results.values()})
    group = ", ".join(t for t in ROWS if ROWS[t].network == "cnn-gn" and any(job.title == t for job in results))
    return (
        f"Per cent, mean ± standard deviation over {SEEDS} seeds (of noise, weights and order). Training: the "
        f"{SAMPLES:,} images of `--subset {SAMPLES}`; test: 10,000 images with clean labels, looked at once, after the "
        f"end. Small CNN (34,000 weights), {s['epochs']} epochs, batches of {s['batch_size']}, {s['optimizer']}, "
        f"learning rate {s['lr']}, {s['schedule']} schedule, the same for all methods"
        + f" (with GroupNorm in place of BatchNorm, which PRL-G cannot have: {group})"
        * bool(group)
        + "; hyper-parameters are those "
        "of the papers, listed above or the defaults, none was tuned. Symmetric noise never draws the true class. "
        "Seconds are wall time on a shared machine, in brackets CPU time, of all trainings of a run together. Forward "
        "passes were counted as rows that entered a network, with gradient + without, in all trainings of a run and "
        "its passes at the ends of epochs, divided by samples and epochs.\n\n"
        f"Made by `python benchmarks/mnist_table.py --jobs 2`; {'; '.join(machines)}; "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )


def write_tables(page: Path) -> None:
    """From the result files alone."""
    results = {job: found for job in jobs("*", SEEDS) if (found := finished(job))}
    if not results:
        raise SystemExit(f"no results of these settings in {RESULTS}: run python {Path(__file__).name} first")
    heading = "All methods, on 10,000 MNIST images"
    write_block(page, START, END, heading, [*lines(results), "", under(results)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows to run, by title or method; * and ? stand for anything")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1), help="the first so many")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    parser.add_argument("--no-tables", action="store_true", help="only run")
    args = parser.parse_args(argv)
    todo, failed = jobs(args.only, args.seeds), 0
    if args.jobs > 1 and not args.tables:
        failed = processes(__file__, ["--only", args.only, "--seeds", str(args.seeds), "--no-tables"], args.jobs)
    elif not args.tables:
        failed = len(collect(todo))
    if not args.no_tables:
        write_tables(PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
