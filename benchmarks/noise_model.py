"""How near three estimates of the noise rate come, by how much the networks have memorised: table in docs/cleaning.md.

    python benchmarks/noise_model.py            # make what is missing, then rewrite the table
    python benchmarks/noise_model.py --tables   # only rewrite the table

A network is trained on one half of 10,000 images and asked about the other: the inverse of INCV's theory for the kind
that was injected, the full matrix of `lp.estimate_noise`, and `labelproof.procedures.noise_model`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import REPO, agrees, commit, share, write_block

import labelproof as lp
from labelproof.data import catalog, noise
from labelproof.data.atomic import atomically
from labelproof.engine.inputs import input_shape
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.methods import CE
from labelproof.networks.factory import as_factory
from labelproof.procedures.ncv_theory import asymmetric_rate, symmetric_rate
from labelproof.procedures.noise_model import noise_model

RESULTS = REPO / "benchmarks" / "results" / "noise_model"
LOCKS = REPO / "runs" / "noise_model-locks"
PAGE = REPO / "docs" / "cleaning.md"
START, END = "<!-- noise_model: made by benchmarks/noise_model.py -->", "<!-- end noise_model -->"
SAMPLES = 10_000
NOISES = (("symmetric", 0.0), ("symmetric", 0.2), ("symmetric", 0.5), ("symmetric", 0.8), ("pairflip", 0.4))
#: From a network that memorises little to one that memorises all; the last is weak, too.
CASES: dict[str, dict[str, Any]] = {
    "mnist, 5 epochs": {"data": "mnist", "epochs": 5, "lr": 0.001, "schedule": "cosine"},
    "mnist, 30 epochs": {"data": "mnist", "epochs": 30, "lr": 0.001, "schedule": "cosine"},
    "mnist, 60 epochs at a high rate": {"data": "mnist", "epochs": 60, "lr": 0.003, "schedule": "constant"},
    "cifar10, 30 epochs": {"data": "cifar10", "epochs": 30, "lr": 0.001, "schedule": "cosine"},
}
Job = tuple[str, str, float]


def path(job: Job) -> Path:
    case, kind, rate = job
    return RESULTS / f"{case.replace(', ', '-').replace(' ', '-')}-{kind}{rate:g}.json"


def settings(case: str) -> Settings:
    how = {k: v for k, v in CASES[case].items() if k != "data"}
    return Settings(**how, batch_size=128, optimizer="adam", device="cpu")


def who(job: Job) -> dict[str, Any]:
    return {"case": job[0], "noise": [job[1], job[2]], "settings": settings(job[0]).asdict(), "network": "cnn"}


def finished(job: Job) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path(job).read_text())
    except (OSError, ValueError):
        return None
    return found if agrees(found, who(job)) else None


def make(job: Job) -> str:
    case, kind, rate = job
    began, whole = time.perf_counter(), catalog.load(CASES[case]["data"])
    data = whole.take(np.sort(np.random.default_rng(0).permutation(len(whole))[:SAMPLES]))
    made = noise.inject(data.y, kind, rate, seed=0, num_classes=10)
    data = data.relabelled(made.labels, **made.record())
    order = np.random.default_rng(1).permutation(SAMPLES)
    half, other = (data.take(np.sort(rows)) for rows in (order[: SAMPLES // 2], order[SAMPLES // 2 :]))
    fitted = fit(CE(), as_factory("cnn", input_shape(data), 10), half, settings(case))
    prob, truth = fitted.predict(other.x), np.asarray(other.truth)
    agrees_ = prob.argmax(1) == other.y
    found = noise_model(other.y, prob)
    inverse = symmetric_rate(agrees_.mean(), 10) if kind == "symmetric" else asymmetric_rate(agrees_.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = lp.estimate_noise(other.y, prob, classes=np.arange(10))
    result = {
        "true_rate": float((truth != other.y).mean()),
        "memorised": float((fitted.predict(half.x).argmax(1) == half.y).mean()),
        "right": float((prob.argmax(1) == truth).mean()),
        "agreement": float(agrees_.mean()),
        "inverse": float(inverse.rate),
        "full": float(full.rate),
        "chosen": found.rate,
        "kind": found.kind,
        "doubt": found.doubt,
        "precision": found.precision,
        "true_precision": float((truth == other.y)[agrees_].mean()),
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run"
    record = {**who(job), "result": result, "noise_hash": made.hash, "commit": commit(), "machine": machine}
    record["seconds"] = round(time.perf_counter() - began, 1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    atomically(path(job), lambda partial: partial.write_text(text))
    return f"{found.kind} {found.rate:.3f} of {result['true_rate']:.3f}"


def jobs() -> list[Job]:
    return [(case, kind, rate) for case in CASES for kind, rate in NOISES]


def write_table() -> None:
    found = {job: known for job in jobs() if (known := finished(job))}
    if not found:
        raise SystemExit(f"no results in {RESULTS}: run python {Path(__file__).name} first")
    lines = [
        "| network | noise | predicts right | fits its own labels | theory's inverse | full matrix | used | "
        "right among the agreeing: estimate (truth) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (case, kind, rate), record in found.items():
        r = record["result"]
        said = f"**{r['chosen']:.1%}** {r['kind']}" + (", with a warning" if r["doubt"] else "")
        lines.append(
            f"| {case} | {kind} {rate:.0%} (really {r['true_rate']:.1%}) | {r['right']:.0%} | {r['memorised']:.0%} | "
            f"{r['inverse']:.1%} | {r['full']:.1%} | {said} | {r['precision']:.1%} ({r['true_precision']:.1%}) |"
        )
    commits = ", ".join(sorted({record["commit"] for record in found.values()}))
    machines = "; ".join(sorted({record["machine"] for record in found.values()}))
    lines += [
        "",
        f"One seed; small CNN, Adam, batches of 128; 5,000 images to train on, 5,000 others asked about. Made by "
        f"`python benchmarks/noise_model.py`; {machines}; commit {commits}.",
    ]
    write_block(PAGE, START, END, "How near", lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", action="store_true", help="only rewrite the table")
    args = parser.parse_args()
    failed = []
    if not args.tables:
        torch.set_num_threads(1)
        named = {path(job).stem: job for job in jobs()}
        failed = share(
            named.values(), LOCKS, name=lambda j: path(j).stem, finished=lambda j: finished(j) is not None, make=make
        )
    write_table()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
