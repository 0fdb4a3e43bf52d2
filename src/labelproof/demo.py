"""`labelproof demo`: the main job on data that needs no download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from labelproof.core.method import in_range
from labelproof.data import catalog, noise
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS
from labelproof.report import write_report
from labelproof.runs import Run, train

NOISE, RATE = "symmetric", 0.4


def run_demo(out: Path, *, seeds: int = 3) -> None:
    """Cross-entropy, ELR and Co-teaching on `digits` with 40 % symmetric noise; prints a table, writes a report.

    Co-teaching is told the noise rate that was estimated from the cross-entropy run, not the true one.

    Args:
        out: folder of the report and of the first seed's runs; an earlier demo in it is replaced.
        seeds: repetitions, each with its own noise and initial weights; at least 1.

    Raises:
        ValueError: no seed.
    """
    in_range("seeds", seeds, 1, float("inf"), closed="left")
    console = Console()
    clean, test = catalog.load("digits"), catalog.load("digits", split="test")
    console.print(
        f"{len(clean):,} handwritten digits; {RATE:.0%} of their labels are replaced by another digit ({seeds} seeds)\n"
    )
    runs: dict[str, list[Run]] = {}
    for seed in range(seeds):
        made = noise.inject(clean.y, NOISE, RATE, seed=seed, num_classes=clean.num_classes)
        data = clean.relabelled(made.labels, **made.record())
        estimate = 0.0
        for name in ("ce", "elr", "co-teaching"):
            options: dict[str, Any] = {"noise_rate": round(estimate, 3)} if name == "co-teaching" else {}
            folder = out / name if seed == 0 else None
            if folder is not None and _of_a_demo(folder):
                shutil.rmtree(folder)
            run = train(
                data,
                METHODS[name](**options),
                "mlp",
                Settings(epochs=100, seed=seed),
                test=test,
                folder=folder,
                verbose=1 if seed == 0 else 0,
                command=f"labelproof demo --out {out}",
            )
            if name == "ce":
                estimate = run.noise.rate
            runs.setdefault(name, []).append(run)
    page = write_report([out / name for name in runs], out / "report.html")
    console.print(_table(runs))
    low = runs["ce"][0].result
    console.print(
        f"labels really wrong (seed 0): {low['true_rate']:.1%}; estimated: {low['noise_rate']:.1%} by cross-entropy, "
        f"{runs['elr'][0].result['noise_rate']:.1%} by ELR",
        highlight=False,
    )
    console.print(f"\nlook at  [bold]{page}[/]\nthe list [bold]{out / 'elr' / 'issues.csv'}[/]", highlight=False)


def _of_a_demo(folder: Path) -> bool:
    try:
        return str(json.loads((folder / "run.json").read_text())["command"]).startswith("labelproof demo")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _table(runs: dict[str, list[Run]]) -> Table:
    table = Table(title="digits, 40 % symmetric noise: mean ± sd over seeds", title_justify="left", box=None)
    for column in ("method", "test, last epoch", "list: average precision", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for name, repeats in runs.items():
        row = [_spread([r.result[key] for r in repeats]) for key in ("test_accuracy", "average_precision")]
        seconds = np.mean([r.result["seconds"] for r in repeats])
        table.add_row(name, *row, f"{seconds:.1f}")
    return table


def _spread(values: list[float]) -> str:
    sd = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{sd} %"
