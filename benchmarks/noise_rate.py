"""`noise_rate="auto"`: how near the estimate comes, and what a wrong rate costs. The tables of docs/noise-rate.md.

    python benchmarks/noise_rate.py            # measure (a quarter of an hour on one core), then rewrite the tables
    python benchmarks/noise_rate.py --tables   # only rewrite the tables from benchmarks/results/noise_rate.json

scikit-learn's handwritten digits (a third held out, with clean labels), the default network and settings of the
estimator, five seeds of split, noise and weights.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import labelproof as lp
from labelproof.data.atomic import atomically

REPO = Path(__file__).resolve().parents[1]
RESULTS, PAGE = REPO / "benchmarks" / "results" / "noise_rate.json", REPO / "docs" / "noise-rate.md"
SEEDS = range(5)
NOISES = (
    ("symmetric", 0.1),
    ("symmetric", 0.2),
    ("symmetric", 0.4),
    ("symmetric", 0.6),
    ("pairflip", 0.2),
    ("pairflip", 0.4),
)
METHODS = ("self-paced", "co-teaching", "co-teaching+")
FACTORS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)


def score(method: str, kind: str, rate: float, told: Any, seed: int) -> tuple[float, float]:
    """Test accuracy, and the rate that was trained with."""
    X, y = load_digits(return_X_y=True)
    x, x_test, labels, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=seed)
    noisy = lp.noise.inject(labels, kind, rate, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = lp.NoisyLabelClassifier(method=method, noise_rate=told, random_state=seed).fit(x, noisy.labels)
    return float(clf.score(x_test, y_test)), float(clf.run_.fitted.method.noise_rate)


def measure() -> dict[str, Any]:
    """All figures: method -> noise -> factor on the true rate, or "auto" -> one pair per seed."""
    return {
        m: {
            f"{kind} {rate:g}": {
                str(f): [score(m, kind, rate, f if f == "auto" else f * rate, s) for s in SEEDS]
                for f in (*FACTORS, "auto")
                if f == "auto" or f * rate < 1
            }
            for kind, rate in NOISES
        }
        for m in METHODS
    }


def _spread(values: list[float], factor: float = 100.0) -> str:
    return f"{factor * statistics.mean(values):.1f} ± {factor * statistics.stdev(values):.1f}"


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    first = found[METHODS[0]]
    lines = ["| noise | estimate in per cent, mean ± sd | furthest off |", "|---|---:|---:|"]
    for noise, by_factor in first.items():
        rates, true = [rate for _, rate in by_factor["auto"]], float(noise.split()[1])
        lines.append(f"| {noise} | {_spread(rates)} | {100 * max(abs(r - true) for r in rates):.1f} points |")
    heads = " | ".join([*(f"{f:g} x" for f in FACTORS), "auto"])
    lines += [
        "",
        f"| test accuracy, told so many times the true rate | {heads} |",
        "|---|" + "---:|" * (len(FACTORS) + 1),
    ]
    for method, by_noise in found.items():
        for noise, by_factor in by_noise.items():
            cells = [
                _spread([a for a, _ in by_factor[str(f)]]) if str(f) in by_factor else "–" for f in (*FACTORS, "auto")
            ]
            lines.append(f"| {method}, {noise} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    if not parser.parse_args().tables:
        torch.set_num_threads(1)
        text = json.dumps(measure(), indent=1) + "\n"
        atomically(RESULTS, lambda partial: partial.write_text(text))
    body = tables(json.loads(RESULTS.read_text()))
    start, end = "<!-- noise_rate: made by benchmarks/noise_rate.py -->", "<!-- end noise_rate -->"
    page = re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{body}\n{end}", PAGE.read_text(), flags=re.DOTALL)
    atomically(PAGE, lambda partial: partial.write_text(page))


if __name__ == "__main__":
    main()
