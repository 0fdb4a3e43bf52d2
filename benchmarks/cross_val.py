"""Three prices of a list of wrong labels: neighbours, the record of a training, networks held out. See the table.

    python benchmarks/cross_val.py            # measure what is not finished (half an hour), then rewrite the table
    python benchmarks/cross_val.py --table    # only rewrite the table of docs/finding-wrong-labels.md

scikit-learn's handwritten digits (three seeds of noise, weights and folds) and 10,000 images of MNIST (two), 40 % of
the labels wrong; network and settings are the estimator's defaults. The record is that of one training,
`clf.find_issues()`; the others go through `lp.cross_val_probs` with 5 folds. Times are processor seconds on one thread,
the list included.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from tables import REPO, commit, spread, write_block

import labelproof as lp
from labelproof.data import catalog
from labelproof.data.atomic import atomically
from labelproof.issues import summarise

RESULTS, PAGE = REPO / "benchmarks" / "results" / "cross_val.json", REPO / "docs" / "finding-wrong-labels.md"
START, END = "<!-- cross_val: made by benchmarks/cross_val.py -->", "<!-- end cross_val -->"
FOLDS, NEIGHBOURS = 5, 50
SEEDS = {"digits": 3, "mnist": 2}
NOISES = (("symmetric", 0.4), ("pairflip", 0.4))
ROWS = {
    "neighbours": f"{NEIGHBOURS} nearest neighbours, {FOLDS} folds",
    "ce": "cross-entropy, its own record",
    "ce folds": f"cross-entropy, {FOLDS} folds",
    "elr": "ELR, its own record",
    "elr folds": f"ELR, {FOLDS} folds",
}


def load(name: str) -> tuple[Any, Any]:
    """Rows and true labels."""
    if name == "digits":
        return load_digits(return_X_y=True)
    data = catalog.load("mnist")
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:10_000])
    return np.asarray(data.x)[rows].reshape(len(rows), -1), data.y[rows]


def measure(data: str, row: str, kind: str, rate: float, seed: int) -> dict[str, float]:
    """One list: average precision, precision and recall of what is flagged, the estimated share, seconds."""
    x, truth = load(data)
    made = lp.noise.inject(truth, kind, rate, seed=seed)
    method, _, folds = row.partition(" ")
    if method == "neighbours":
        model: Any = KNeighborsClassifier(NEIGHBOURS, n_jobs=1)
    else:
        model = lp.NoisyLabelClassifier(method=method, random_state=seed, device="cpu")
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a record that is as sure as its labels: the table shows it
        if method == "neighbours" or folds:
            probs = lp.cross_val_probs(model, (x, made.labels), FOLDS, seed=seed)
            issues, noise = lp.find_issues(made.labels, probs), lp.estimate_noise(made.labels, probs)
        else:
            run = model.fit(x, made.labels).run_
            issues, noise = run.issues, run.noise
    seconds = time.process_time() - began
    found = summarise(issues, made.changed)
    return {
        **{name: float(found[name]) for name in ("average_precision", "precision", "recall")},
        "rate": float(noise.rate),
        "true_rate": float(made.changed.mean()),
        "seconds": round(seconds, 2),
    }


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Markdown: mean and standard deviation over seeds."""

    def column(data: str, row: str, noise: str, name: str) -> list[float]:
        return [found[f"{data}, {noise}, {row}, seed {s}"][name] for s in range(SEEDS[data])]

    lines = []
    for data, title in (("digits", "digits, 1,797 samples"), ("mnist", "MNIST, 10,000 images")):
        heads = " | ".join(
            f"{kind} {rate:.0%}: AP | flagged: precision, recall | estimate %" for kind, rate in NOISES
        ).replace("%:", " %:")
        lines += [f"| {title} | {heads} | seconds |", "|---" * (2 + 3 * len(NOISES)) + "|"]
        for row, words in ROWS.items():
            cells, seconds = [], []
            for kind, rate in NOISES:
                noise = f"{kind} {rate:g}"
                ap, precision, recall, said, took = (
                    column(data, row, noise, name)
                    for name in ("average_precision", "precision", "recall", "rate", "seconds")
                )
                cells += [
                    spread(ap, 3),
                    f"{statistics.mean(precision):.2f}, {statistics.mean(recall):.2f}",
                    spread([100 * v for v in said]),
                ]
                seconds += took
            lines.append(f"| {words} | {' | '.join(cells)} | {statistics.mean(seconds):.1f} |")
        lines.append("")
    return lines[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only rewrite the table")
    torch.set_num_threads(1)
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"made": {}, "lists": {}}
    found = stored["lists"]
    if not parser.parse_args().table:
        for data, seeds in SEEDS.items():
            for seed in range(seeds):
                for kind, rate in NOISES:
                    for row in ROWS:
                        name = f"{data}, {kind} {rate:g}, {row}, seed {seed}"
                        if name in found:
                            continue
                        found[name] = measure(data, row, kind, rate, seed)
                        print(name, found[name], flush=True)
                        stored["made"] = {"commit": commit(), "torch": torch.__version__, "machine": platform.machine()}
                        text = json.dumps(stored, indent=1) + "\n"
                        atomically(RESULTS, lambda partial, text=text: partial.write_text(text))
    write_block(PAGE, START, END, "What each price buys", table(found))


if __name__ == "__main__":
    main()
