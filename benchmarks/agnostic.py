"""What agnostic corruption does to estimates, against the bound: the figure and tables of docs/agnostic-corruption.md.

    python benchmarks/agnostic.py --jobs 2           # run what is not finished, then draw and rewrite the tables
    python benchmarks/agnostic.py --only 'lie*'      # some runs, by name
    python benchmarks/agnostic.py --page             # only draw and rewrite, from the results

Linear regression: 2,000 rows of 20 features, y = <w, x> + noise, |w| = 1, trained by the library with `nn.Linear` on
batches of all rows, so that the share of wrong targets in a batch is the rate told. Classification: scikit-learn's
digits and the adversaries of `lp.noise`. Results: benchmarks/results/agnostic.json, a line for each run, reused if made
with today's settings. What the page shows is made by agnostic_page.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import agnostic_page
import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tables import REPO, commit, processes, share
from torch import nn

import labelproof
from labelproof.data import noise, transforms
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.engine import inputs
from labelproof.engine.fitted import Fitted
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.functional.select import num_kept
from labelproof.methods import get_method
from labelproof.networks.factory import as_factory

Floats = NDArray[np.float64]

RESULTS = REPO / "benchmarks" / "results" / "agnostic.json"
LOCKS = REPO / "runs" / "agnostic-locks"
PAGE = REPO / "docs" / "agnostic-corruption.md"
SEEDS = 5

ROWS, FEATURES, NOISE = 2000, 20, 0.5
LINEAR_RATES = (0.1, 0.2, 0.3, 0.4, 0.45)
LINEAR = ("mse", "huber", "prl-l", "prl-g", "prl-g at once")
#: Methods under other hyper-parameters than their own: without the ramp, epsilon is dropped from the first epoch on.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"prl-g at once": ("prl-g", {"num_gradual": 1})}
#: Length of the lie, w' - w, in lengths of w, at a rate of SIZE_RATE.
SIZES, USUAL, SIZE_RATE = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 10_000.0), 3.0, 0.2
CONSTANT = 1000.0
LINEAR_SETTINGS: dict[str, Any] = {
    "epochs": 60, "batch_size": ROWS, "lr": 0.2, "momentum": 0.5, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip

DIGITS_RATES = (0.05, 0.1, 0.2, 0.3, 0.4)
DIGITS = ("ce", "self-paced", "prl-l", "prl-g", "co-teaching")
DIGITS_SETTINGS: dict[str, Any] = {"epochs": 20, "batch_size": 64, "lr": 0.001, "optimizer": "adam"}


class Job(NamedTuple):
    """One run. Rate 0 has kind "clean"; size is that of kind "lie", else 0."""

    kind: str
    size: float
    rate: float
    method: str
    seed: int

    @property
    def linear(self) -> bool:
        return self.method in LINEAR and self.kind in ("clean", "lie", "sign-flip", "constant") and self.size >= 0

    @property
    def name(self) -> str:
        size = f"{self.size:g}-" if self.kind == "lie" else "digits-" if not self.linear else ""
        return f"{self.kind}-{size}{self.rate:g}-{self.method.replace(' ', '-')}-{self.seed}"


def jobs(only: str) -> list[Job]:
    """All runs, seed by seed. Digits without noise have size -1, which tells them from the regression."""
    found: list[Job] = []
    for seed in range(SEEDS):
        for m in LINEAR:
            found.append(Job("clean", 0, 0, m, seed))
            found += [Job(k, s, r, m, seed) for r in LINEAR_RATES
                      for k, s in (("lie", USUAL), ("sign-flip", 0.0), ("constant", 0.0))]  # fmt: skip
            found += [Job("lie", s, SIZE_RATE, m, seed) for s in SIZES if s != USUAL]
        for m in DIGITS:
            found.append(Job("clean", -1, 0, m, seed))
            found += [Job(k, -1, r, m, seed) for r in DIGITS_RATES for k in agnostic_page.ADVERSARIES]
    if not (chosen := [job for job in found if fnmatch(job.name, only)]):
        raise SystemExit(f"--only {only}: no run of that name; they are like {found[1].name} and {found[-1].name}")
    return chosen


# ---- regression ------------------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """A problem and what became of it: features `(n, d)`, weights `(d,)`, targets `(n,)`, wrong rows `(n,)` bool."""

    x: Floats
    w: Floats
    y: Floats
    wrong: NDArray[np.bool_]


def corrupted(kind: str, size: float, rate: float, seed: int) -> Linear:
    """Data of the seed, and what an adversary who sees all of it makes of at most a share `rate` of the targets.

    lie: rows at random follow w' = w + size v, v a random direction of length 1, with noise as the others have.
    sign-flip: `lp.noise`, mirrored about the median, rows at random.
    constant: the rows that lie furthest along v all have the target CONSTANT.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, FEATURES))
    x = (x - x.mean(axis=0)) / x.std(axis=0)  # as the library would: its units and ours are the same
    w, v = (z / np.linalg.norm(z) for z in rng.standard_normal((2, FEATURES)))
    clean = x @ w + NOISE * rng.standard_normal(ROWS)
    y, budget = clean.copy(), int(rate * ROWS + 1e-9)
    if kind == "lie":
        rows = rng.permutation(ROWS)[:budget]
        y[rows] += size * x[rows] @ v
    elif kind == "sign-flip":
        y = noise.inject(clean, "sign-flip", rate, seed=seed).labels
    elif kind == "constant":
        y[np.argsort(-(x @ v))[:budget]] = CONSTANT
    return Linear(x, w, y, y != clean)


def linear(job: Job) -> dict[str, Any]:
    """Errors of the weights found, and what the bound allows."""
    data = corrupted(job.kind, job.size, job.rate, job.seed)
    done = train(job, Data(data.x.astype(np.float32), data.y[:, None].astype(np.float32), name="linear"))
    at = np.vstack([np.zeros(FEATURES), np.eye(FEATURES)]).astype(np.float32)
    out = done.predict(at).astype(np.float64)[:, 0]
    theta = np.concatenate([out[:1], out[1:] - out[0]])
    return {"error": float(np.linalg.norm(theta[1:] - data.w)), **certificate(data, theta, job.rate)}


def certificate(data: Linear, theta: Floats, rate: float) -> dict[str, float]:
    """The bound of docs/agnostic-corruption.md at `theta` (the intercept first): (2 eps M / (1 - eps) + |rest|) / mu.

    M is the largest gradient of a right row at theta, rest the mean of the gradients kept (0 where training has come to
    an end), mu the least eigenvalue of the right rows' second moments. It bounds the distance to `right`, the least
    squares solution of the right rows, which is itself `sampling` away from w.
    """
    x = np.column_stack([np.ones(len(data.y)), data.x])
    gradient = (x @ theta - data.y)[:, None] * x
    norm = np.linalg.norm(gradient, axis=1)
    kept = np.argsort(norm, kind="stable")[: num_kept(1 - rate, len(norm))]
    ok = ~data.wrong
    right = np.linalg.lstsq(x[ok], data.y[ok], rcond=None)[0]
    mu = float(np.linalg.eigvalsh(x[ok].T @ x[ok] / ok.sum())[0])
    largest, rest = float(norm[ok].max()), float(np.linalg.norm(gradient[kept].mean(axis=0)))
    return {
        "to_right": float(np.linalg.norm(theta - right)),
        "bound": (2 * rate * largest / (1 - rate) + rest) / mu,
        "sampling": float(np.linalg.norm(right[1:] - data.w)),
        "M": largest,
        "rest": rest,
        "mu": mu,
        "wrong_kept": float(data.wrong[kept].mean()),
    }


# ---- classification --------------------------------------------------------------------------------------------------


@cache
def digits(seed: int) -> list[NDArray[Any]]:
    """Training and test images, training and test labels: three quarters, one quarter."""
    x, y = load_digits(return_X_y=True)
    parts: list[NDArray[Any]] = train_test_split(x.astype(np.float32), y, test_size=0.25, random_state=seed, stratify=y)
    return parts


def classify(job: Job) -> dict[str, Any]:
    """Accuracy on clean test labels, after the last epoch."""
    x, x_test, y, y_test = digits(job.seed)
    data, told = Data(x, y, classes=np.arange(10), name="digits"), {}
    if job.rate:
        made = noise.inject(y, job.kind, job.rate, seed=job.seed, x=x)
        data = data.relabelled(made.labels, **made.record())
        told = {
            "wrong": int(made.changed.sum()),
            **{k: v for k, v in made.options.items() if k in ("source", "target")},
        }
    done = train(job, data)
    return {"accuracy": float((done.predict(x_test).argmax(axis=1) == y_test).mean()), **told}


# ---- runs ------------------------------------------------------------------------------------------------------------


def how(job: Job) -> dict[str, Any]:
    """Everything that decides a run's outcome beside the job itself, but for the code."""
    method, options = VARIANTS.get(job.method, (job.method, {}))
    options = {**options, **({"noise_rate": job.rate} if "noise_rate" in get_method(method)().get_params() else {})}
    problem = {"rows": ROWS, "features": FEATURES, "noise": NOISE} if job.linear else {"data": "digits"}
    return {
        **problem,
        **({"constant": CONSTANT} if job.kind == "constant" else {}),
        "network": "nn.Linear" if job.linear else "mlp",
        "method": method,
        "params": get_method(method)(**options).get_params(),
        "settings": LINEAR_SETTINGS if job.linear else DIGITS_SETTINGS,
        "labelproof": labelproof.__version__,
    }


def affine() -> nn.Module:
    """Called by the library under the run's seed."""
    return nn.Linear(FEATURES, 1)


def train(job: Job, data: Data) -> Fitted:
    """By the library, with the true rate told."""
    made = how(job)
    factory = as_factory(affine if job.linear else "mlp", data.x.shape[1:], data.num_classes or 1)
    settings = Settings(**made["settings"], device="cpu", seed=job.seed)
    with uncut():
        return fit(get_method(made["method"])(**made["params"]), factory, data, settings)


@contextmanager
def uncut() -> Iterator[None]:
    """The engine cuts targets at ten spreads before training; here the methods must bear them as they are."""
    before = transforms.FAR
    transforms.FAR = inputs.FAR = 1e6
    try:
        yield
    finally:
        transforms.FAR = inputs.FAR = before


def run(job: Job) -> dict[str, Any]:
    began = time.process_time()
    found = linear(job) if job.linear else classify(job)
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in found.items()}
    return {**rounded, "cpu_seconds": round(time.process_time() - began, 2), "commit": commit()}


def short(job: Job) -> str:
    return hashlib.sha256(json.dumps(how(job), sort_keys=True).encode()).hexdigest()[:10]


def read() -> dict[str, Any]:
    """What there is.

    Raises:
        SystemExit: the file is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {"machine": "", "made": {}, "runs": {}}
    except ValueError as error:
        raise SystemExit(f"{RESULTS} is damaged ({error}): restore it, or delete it to run all anew") from None
    return found


def finished(job: Job) -> bool:
    return read()["runs"].get(job.name, {}).get("made") == short(job)


def keep(job: Job, result: dict[str, Any]) -> None:
    """Add a run to the file: whole or not at all, one process at a time."""
    with FileLock(LOCKS / "write.lock"):
        store = read()
        versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
        store["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run; {versions}"
        store["made"][short(job)] = how(job)
        store["runs"][job.name] = {**job._asdict(), "made": short(job), **result}
        used = {r["made"] for r in store["runs"].values()}
        parts = (
            {k: v for k, v in sorted(store["made"].items()) if k in used},
            dict(sorted(store["runs"].items())),
        )
        lines = [",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in part.items()) for part in parts]
        text = (
            f'{{"machine": {json.dumps(store["machine"])},\n"made": {{\n{lines[0]}\n}},\n"runs": {{\n{lines[1]}\n}}}}\n'
        )
        atomically(RESULTS, lambda partial: partial.write_text(text))


def collect(todo: list[Job]) -> list[str]:
    """Make what is missing and nobody else is making; returns what failed."""

    def make(job: Job) -> str:
        result = run(job)
        keep(job, result)
        first = "error" if job.linear else "accuracy"
        return f"{first} {result[first]:.4f} in {result['cpu_seconds']:.1f} CPU seconds"

    runs = read()["runs"]
    missing = [job for job in todo if runs.get(job.name, {}).get("made") != short(job)]
    return share(missing, LOCKS, name=lambda job: job.name, finished=finished, make=make)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="runs to make, by name; * and ? stand for anything")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--page", action="store_true", help="only draw the figure and rewrite the tables")
    parser.add_argument("--no-page", action="store_true", help="only run")
    args = parser.parse_args(argv)
    todo, failed = jobs(args.only), 0
    if args.jobs > 1 and not args.page:
        failed = processes(__file__, ["--only", args.only, "--no-page"], args.jobs)
    elif not args.page:
        failed = len(collect(todo))
    if not args.no_page:
        store = read()
        found = [r for job in jobs("*") if (r := store["runs"].get(job.name)) and r["made"] == short(job)]
        if not found:
            raise SystemExit(f"no results of these settings in {RESULTS}: run python {Path(__file__).name} first")
        agnostic_page.write(found, PAGE, machine=store["machine"], complete=len(found) == len(jobs("*")))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
