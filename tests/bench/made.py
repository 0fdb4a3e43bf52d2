"""A small suite, and result files as `labelproof bench run` leaves them, to be changed before they are written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import labelproof
from labelproof.bench.results import path_of
from labelproof.recipes import Recipe
from labelproof.recipes.suites import Suite, load_suite

#: Two data sets, a published number, and rows that are compared with cross-entropy.
SUITE = """
title = "Small things"
about = "For tests."
seeds = 3
recipes = ["elr-cifar10-sym40"]

[[grid]]
name = "digits"
data = "digits"
noises = ["symmetric:0.4", "pairflip:0.35"]
rows = ["ce", "stopped", "elr"]
train = { network = "mlp", epochs = 2, batch_size = 128, device = "cpu" }

[[grid]]
name = "energy"
data = "uci/energy"
noises = ["uniform:0.3"]
rows = ["mse", "huber"]
train = { network = "mlp", epochs = 2, device = "cpu" }

[rows.ce]
title = "cross-entropy"

[rows.stopped]
title = "stopped early"
note = "by noisy labels"
train = { method = "ce", early_stopping = true }
"""


def small(tmp_path: Path, text: str = SUITE, name: str = "small") -> Suite:
    """The suite in a file of its own."""
    path = tmp_path / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return load_suite(str(path))


def recipe(suite: Suite, name: str) -> Recipe:
    return next(r for r in suite.recipes if r.name == name)


def result(made: Recipe, seed: int, metrics: dict[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """What a run leaves."""
    stopped = bool(made.train.get("early_stopping"))
    task = "regression" if str(made.train["data"]).startswith("uci") else "classification"
    return {
        "format": 1,
        "recipe": made.name,
        "seed": seed,
        "train": dict(made.train),
        "labelproof": labelproof.__version__,
        "command": f"labelproof train ... --seed={seed}",
        "created": "2026-11-21T16:33:13+00:00",
        "method": {"name": made.train["method"], "title": "Some", "paper": "some", "params": {}},
        "network": {"name": "mlp", "parameters": 85002},
        "settings": {"epochs": 2, "early_stopping": stopped, "device": "cpu", "seed": seed},
        "data": {"name": made.train["data"], "n": 1438, "n_test": 359, "task": task},
        "noise": {"kind": "symmetric", "nominal_rate": 0.4, "rate": 0.39, "hash": "6b0a"},
        "split": "ebd908cab0531bd5",
        "metrics": {"test_accuracy": 0.5} if metrics is None else metrics,
        "list": {"average_precision": 0.5, "precision_at_wrong": 0.25, "flagged": 3, "wrong": 4, "noise_rate": 0.3},
        "seconds": 1.5,
        "cpu_seconds": 2.0,
        "peak_memory_mb": 500.0,
        "resumed": False,
        "hardware": {"device": "cpu", "cores": 2, "threads": 1, "machine": "x86_64"},
        "versions": {"python": "3.11.0", "torch": "2.9.0", "numpy": "2.0.0"},
        **changes,
    }


def leave(
    folder: Path, suite: Suite, name: str, seed: int, metrics: dict[str, float] | None = None, **changes: Any
) -> Path:
    """Write the result of a run into a folder."""
    made = recipe(suite, name)
    path = path_of(folder, made, seed)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(copy.deepcopy(result(made, seed, metrics, **changes))), encoding="utf-8")
    return path


def accuracies(folder: Path, suite: Suite, scores: dict[str, list[float | None]], key: str = "test_accuracy") -> None:
    """Result files with these scores, by recipe and seed; none where there is `None`."""
    for name, values in scores.items():
        for seed, value in enumerate(values):
            if value is not None:
                leave(folder, suite, name, seed, {key: value})
