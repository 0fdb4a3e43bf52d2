"""Training on wrong labels from scratch and from an encoder learned without labels, in docs/results.md.

    python benchmarks/contrast_table.py --jobs 2                # run what is not finished, then rewrite the block
    python benchmarks/contrast_table.py --data digits --seeds 1 # one data set, the first seed
    python benchmarks/contrast_table.py --choose                # the learning rates, on a seed outside the tables
    python benchmarks/contrast_table.py --tables                # only rewrite the block from the result files

Each finished run is one JSON file in benchmarks/results/contrast_table/. A file is reused if it was made with the
settings, the hyper-parameters and the noise of today, else the run is made again. Processes share the work: each run
is locked while it is made. Encoders are kept in runs/contrast-encoders/ and made again where they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import contrast_page as page
import numpy as np
import torch
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tables import REPO, agrees, commit, processes, share, write_block

import labelproof
from labelproof import runs, studies
from labelproof.core.encoder import Encoder
from labelproof.core.method import Method
from labelproof.core.nets import features
from labelproof.data import catalog, noise
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.data.transforms import Standardise
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS
from labelproof.networks import build
from labelproof.networks.encoders import load_encoder, save_encoder
from labelproof.procedures.contrast import Contrast

RESULTS = REPO / "benchmarks" / "results" / "contrast_table"
CHOICE = RESULTS / "choice"
LOCKS = REPO / "runs" / "contrast-locks"
ENCODERS = REPO / "runs" / "contrast-encoders"
PAGE = REPO / "docs" / "results.md"
FIGURE = "contrast-noise.svg"
START, END = "<!-- contrast: made by benchmarks/contrast_table.py -->", "<!-- end contrast -->"
NETWORK, KIND = "cnn", "ghosh-unif"
RATES = (0.2, 0.5, 0.8, 0.9, 0.95)
SEEDS, OUTSIDE = 3, 100
#: Where networks start from.
SCRATCH, ENCODER = "from scratch", "from SimCLR"
STARTS = (SCRATCH, ENCODER)
#: Learning rates that `--choose` compares, and the noise it does so under.
GRID, CHOOSING = (0.0003, 0.001, 0.003, 0.01, 0.03), 0.8
NEIGHBOURS = 20


class Split(NamedTuple):
    """What a seed makes of a data set; labels are right.

    Attributes:
        train: what is trained on, and what the encoder is trained on.
        meta: verified samples, in no training but that of Meta-Weight-Net's weights.
        watched: further samples that learning rates are chosen by; none in the tables.
        test: looked at once, after the end.
    """

    train: Data
    meta: Data
    watched: Data
    test: Data


@dataclass(frozen=True)
class Part:
    """A data set of the tables.

    Attributes:
        title: for people.
        train, meta, watched: samples; of the last, only `--choose` takes some.
        settings: the same for all methods.
        lr: for each start, as `--choose` found.
        pretrain: settings of the encoder's training.
    """

    title: str
    train: int
    meta: int
    watched: int
    settings: Mapping[str, Any]
    lr: Mapping[str, float]
    pretrain: Mapping[str, Any]


COMMON: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "device": "cpu",
}
PRETRAIN: dict[str, Any] = {"batch_size": 256, "optimizer": "adamw", "schedule": "cosine", "device": "cpu"}
PARTS = {
    "digits": Part(
        "digits",
        1338,
        100,
        300,
        {**COMMON, "epochs": 60},
        {SCRATCH: 0.001, ENCODER: 0.003},
        {**PRETRAIN, "epochs": 100, "lr": 3e-3},
    ),
    "mnist": Part(
        "MNIST",
        5000,
        1000,
        2000,
        {**COMMON, "epochs": 15},
        {SCRATCH: 0.003, ENCODER: 0.003},
        {**PRETRAIN, "epochs": 20, "lr": 3e-3},
    ),
}


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        method: registered name.
        options: its hyper-parameters.
        starts: what it is run from.
        meta: "verified": Meta-Weight-Net is given the meta set; "alone": trained on nothing but that.
        frozen: whether the encoder stays as it is.
        rates: of noise.
        data: names of data sets.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    starts: Sequence[str] = STARTS
    meta: str = ""
    frozen: bool = False
    rates: Sequence[float] = RATES
    data: Sequence[str] = tuple(PARTS)


FEWER: dict[str, Any] = {"rates": (0.5, 0.9), "data": ("mnist",)}
ROWS: dict[str, Row] = {
    "cross-entropy": Row("ce"),
    "GCE": Row("gce", {"q": 0.66}),
    "MW-Net": Row("mw-net", {"lr_weights": 0.01}, meta="verified"),
    "MW-Net, lr_weights 0.001": Row("mw-net", meta="verified", data=("digits",), rates=(0.8,)),
    "cross-entropy, encoder frozen": Row("ce", starts=(ENCODER,), frozen=True, **FEWER),
    "ELR": Row("elr", {"lam": 3.0, "beta": 0.7}, **FEWER),
    "MW-Net, unverified meta set": Row("mw-net", {"lr_weights": 0.01}, starts=(ENCODER,), **FEWER),
    "cross-entropy, meta set alone": Row("ce", meta="alone", rates=(0.0,)),
}


class Job(NamedTuple):
    """One run; an encoder's if it has no title. `lr` is that of the data set if `None`."""

    data: str
    seed: int
    title: str = ""
    start: str = ENCODER
    rate: float = 0.0
    lr: float | None = None

    @property
    def part(self) -> Part:
        return PARTS[self.data]

    @property
    def path(self) -> Path:
        """Of the result."""
        words = [self.title or "encoder", *[self.start.split()[-1], f"{self.rate:g}"][: 2 * bool(self.title)]]
        words += ([] if self.lr is None else [f"lr{self.lr:g}"]) + [f"seed{self.seed}"]
        name = "-".join(re.sub(r"[^a-z0-9.+]+", "-", w.lower()) for w in words)
        folder = CHOICE if self.seed == OUTSIDE else RESULTS
        return folder / self.data / f"{name.replace('.', '_')}.json"

    @property
    def settings(self) -> Settings:
        if not self.title:
            return Settings(**self.part.pretrain, seed=self.seed)
        lr = self.part.lr[self.start] if self.lr is None else self.lr
        return Settings(**self.part.settings, lr=lr, seed=self.seed)

    @property
    def encoder(self) -> Job | None:
        """The run that makes what this one starts from."""
        return Job(self.data, self.seed) if self.title and self.start == ENCODER else None


def jobs(data: Sequence[str], only: str, seeds: int) -> list[Job]:
    """All runs that are asked for, seed by seed, encoders first, rows of few rates last.

    Raises:
        SystemExit: no row is called so.
    """
    titles = [t for t, row in ROWS.items() if fnmatch(t, only) or fnmatch(row.method, only)]
    if not titles:
        raise SystemExit(f"--only {only}: no row or method of that name; there are {', '.join(ROWS)}")
    found = [Job(name, seed) for seed in range(seeds) for name in data]
    for title in titles:
        row = ROWS[title]
        there = [(name, seed) for seed in range(seeds) for name in data if name in row.data]
        found += [Job(*at, title, start, rate) for at in there for rate in row.rates for start in row.starts]
    late = {title for title in titles if ROWS[title].rates == FEWER["rates"]}
    return sorted(found, key=lambda job: (job.title in late, job.seed, list(data).index(job.data)))


def choosing(data: Sequence[str]) -> list[Job]:
    """The runs that learning rates are chosen by: two losses, one rate of noise, one seed outside the tables."""
    titles = ("cross-entropy", "GCE")
    return [
        Job(name, OUTSIDE, t, start, CHOOSING, lr) for name in data for lr in GRID for t in titles for start in STARTS
    ]


@cache
def split(name: str, seed: int) -> Split:
    """Training, meta and watched samples, drawn with the seed; the meta set has as many of each class."""
    part, data, test = PARTS[name], catalog.load(name), catalog.load(name, split="test")
    order = np.random.default_rng(seed).permutation(len(data))
    each = part.meta // data.num_classes
    meta = np.concatenate([order[data.y[order] == c][:each] for c in range(data.num_classes)])
    left = order[~np.isin(order, meta)]
    watched, left = np.split(left, [part.watched if seed == OUTSIDE else 0])
    return Split(*(data.take(np.sort(rows)) for rows in (left[: part.train], meta, watched)), test)


def identity(job: Job) -> dict[str, Any]:
    """Everything that decides a run's outcome, but for the code; what a result must share to be reused."""
    part, row = job.part, ROWS.get(job.title)
    method: Method = Contrast() if row is None else METHODS[row.method](**row.options)
    return {
        "data": job.data,
        "samples": [part.train, part.meta, part.watched if job.seed == OUTSIDE else 0],
        "title": job.title,
        "start": job.start,
        "method": "simclr" if row is None else row.method,
        "params": method.get_params(),
        "settings": job.settings.asdict(),
        "network": NETWORK,
        "labelproof": labelproof.__version__,
        **({} if row is None else {"noise": {"kind": KIND, "rate": job.rate, "seed": job.seed}}),
        **({} if row is None else {"meta": row.meta, "frozen": row.frozen}),
        **({} if job.encoder is None else {"encoder": job.encoder.settings.asdict()}),
    }


def finished(job: Job) -> dict[str, Any] | None:
    """The run's result, if there is one from today's settings."""
    try:
        found = json.loads(job.path.read_text())
    except (OSError, ValueError):
        return None
    return found if agrees(found, identity(job)) else None


def encoder_of(job: Job) -> Encoder:
    """What an encoder's run left, which is made again where the file is missing or of other settings."""
    said = json.dumps(identity(job), sort_keys=True)
    path = ENCODERS / job.data / f"seed{job.seed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            found = load_encoder(path)
            if found.about.get("identity") == said:
                return found
        made = studies.pretrain(split(job.data, job.seed).train, Contrast(), NETWORK, job.settings).encoder
        encoder = replace(made, about={**made.about, "identity": said})
        save_encoder(encoder, path)
        return encoder


def run_encoder(job: Job) -> dict[str, Any]:
    """Make an encoder; what can be told of digits by its features, by those of an untrained network, by pixels."""
    of, began = split(job.data, job.seed), time.process_time()
    encoder = encoder_of(job)
    cpu = time.process_time() - began
    torch.manual_seed(job.seed)  # of the untrained network alone
    untrained = build(NETWORK, of.train.x.shape[1:], of.train.num_classes)
    trained = build(NETWORK, of.train.x.shape[1:], of.train.num_classes)
    encoder.into(trained)
    scaling = Standardise.scaled(encoder.mean, encoder.scale, of.train.x.ndim - 1)
    seen = {
        "SimCLR": [embed(trained, scaling, d.x) for d in (of.train, of.test)],
        "untrained": [embed(untrained, scaling, d.x) for d in (of.train, of.test)],
        "pixels": [d.x.reshape(len(d), -1).astype(np.float32) for d in (of.train, of.test)],
    }
    return {"result": {name: probe(*rows, of.train.y, of.test.y) for name, rows in seen.items()}, "cpu_seconds": cpu}


@torch.no_grad()
def embed(network: torch.nn.Module, scaling: Standardise, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`(N, F)` features of plain inputs."""
    network.eval()
    parts = [features(network, scaling(torch.from_numpy(x[i : i + 1000]))) for i in range(0, len(x), 1000)]
    return torch.cat(parts).numpy()


def probe(
    train: np.ndarray[Any, Any], test: np.ndarray[Any, Any], y: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Test accuracy of a linear model and of nearest neighbours on features; both see all true labels."""
    scale = StandardScaler().fit(train)
    linear = LogisticRegression(C=0.01, max_iter=200).fit(scale.transform(train), y)
    near = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(train, y)
    return {"linear": linear.score(scale.transform(test), truth), "neighbours": near.score(test, truth)}


def run(job: Job) -> dict[str, Any]:
    """Train, and measure on clean images at the end: the watched ones where a learning rate is chosen, else tests."""
    row, of = ROWS[job.title], split(job.data, job.seed)
    network: str | Encoder = NETWORK if job.encoder is None else replace(encoder_of(job.encoder), frozen=row.frozen)
    method = METHODS[row.method](**row.options)
    made = noise.inject(of.train.y, KIND, job.rate, seed=job.seed, num_classes=of.train.num_classes)
    data = of.meta if row.meta == "alone" else of.train.relabelled(made.labels, **made.record())
    streams = {"clean": of.meta} if row.meta == "verified" else {}
    cpu = time.process_time()
    try:
        done = runs.train(data, method, network, job.settings, streams=streams)
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        result: dict[str, Any] = {"diverged": str(error)}
    else:
        judged = of.watched if job.seed == OUTSIDE else of.test
        result = {"accuracy": float((done.fitted.predict(judged.x).argmax(1) == judged.y).mean())}
        if data is not of.meta:
            result |= {k: done.result[k] for k in ("average_precision", "noise_rate")}
        result |= {"wrong_memorised": done.fitted.history[-1].get("wrong_memorised")}
    return {
        "result": result,
        "noise_realised": {"rate": made.rate, "hash": made.hash},
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def collect(todo: list[Job]) -> list[str]:
    """Make what is missing and nobody else is making; returns what failed."""

    def make(job: Job) -> str:
        found = run(job) if job.title else run_encoder(job)
        about = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run",
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "commit": commit(),
        }
        text = json.dumps({**identity(job), **found, **about}, indent=1) + "\n"
        job.path.parent.mkdir(parents=True, exist_ok=True)
        atomically(job.path, lambda partial: partial.write_text(text))
        return f"{json.dumps(found['result'])[:90]} in {found['cpu_seconds']:.0f} s"

    def name(job: Job) -> str:
        return f"{job.data}-{job.path.stem}"

    return share(todo, LOCKS, name=name, finished=lambda job: finished(job) is not None, make=make)


def choice(data: Sequence[str]) -> Iterator[str]:
    """For each data set and start the mean accuracy at each learning rate."""
    for name in data:
        for start in STARTS:
            told = []
            for lr in GRID:
                here = [j for j in choosing([name]) if j.start == start and j.lr == lr]
                found = [r["result"].get("accuracy", 0.0) for j in here if (r := finished(j))]
                few = f" ({len(found)} of {len(here)} runs)" * (len(found) < len(here))
                told.append(f"{100 * np.mean(found):.1f} at {lr:g}{few}" if found else f"– at {lr:g}")
            yield f"{PARTS[name].title} {start} {', '.join(told)}"


def shown() -> list[page.Shown]:
    """The finished runs of each data set that has some."""
    found = []
    for name, part in PARTS.items():
        results = {job: r for job in jobs([name], "*", SEEDS) if (r := finished(job))}
        if results:
            told = f"{part.title}, {part.train:,} images"
            found.append(page.Shown(told, part.meta, part.settings, part.lr, part.pretrain, RATES, SEEDS, results))
    return found


def write_tables(target: Path) -> None:
    """The block of the page and its figure, from the result files alone.

    Raises:
        SystemExit: there are none.
    """
    parts = shown()
    if not parts:
        raise SystemExit(f"no results of these settings in {RESULTS}: run python {Path(__file__).name} first")
    figure = target.parent / "figures" / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    page.draw(parts, STARTS, figure)
    lines = page.lines(parts, STARTS, FIGURE, chosen=list(choice(list(PARTS))))
    write_block(target, START, END, "Contrastive initialisation", lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows to run, by title or method; * and ? stand for anything")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1), help="the first so many")
    parser.add_argument("--data", nargs="+", default=list(PARTS), choices=list(PARTS), help="data sets to run on")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--choose", action="store_true", help="run what learning rates are chosen by, and show it")
    parser.add_argument("--tables", action="store_true", help="only rewrite the block")
    parser.add_argument("--no-tables", action="store_true", help="only run")
    args = parser.parse_args(argv)
    failed = 0
    if args.jobs > 1 and not args.tables:
        words = ["--only", args.only, "--seeds", str(args.seeds), "--data", *args.data, "--no-tables"]
        failed = processes(__file__, words + ["--choose"] * args.choose, args.jobs)
    elif not args.tables:
        failed = len(collect(choosing(args.data) if args.choose else jobs(args.data, args.only, args.seeds)))
    if args.choose:
        print("\n".join(choice(args.data)))
    elif not args.no_tables:
        write_tables(PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
