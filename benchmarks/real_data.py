"""The runs behind docs/results.md: real data, the commands a user would type, three seeds each.

    python benchmarks/real_data.py            # run what is not finished, then rewrite the tables
    python benchmarks/real_data.py --tables   # only rewrite the tables from benchmarks/results/real_data.json

A method whose command and figures stand in benchmarks/results/real_data.json, with the commit they were made at, is not
run again; a run that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tables import REPO, commit, spread, write_block

from labelproof.data.atomic import atomically

RESULTS = REPO / "benchmarks" / "results" / "real_data.json"
PAGE = REPO / "docs" / "results.md"
START, END = "<!-- real data: made by benchmarks/real_data.py -->", "<!-- end -->"
SEEDS = (0, 1, 2)

#: Title -> the command's words; {method} and {seed} are filled in.
SUITES: dict[str, tuple[str, dict[str, str]]] = {
    "MNIST, 50 % symmetric noise (true class excluded), all 60,000 images, small CNN": (
        "labelproof train mnist --noise symmetric:0.5 --method {method} --epochs 10 --validation-fraction 0.1"
        " --seed {seed}",
        {"ce": "ce", "elr": "elr"},
    ),
    "CIFAR-10N worse (human labels, 40.2 % wrong), 10,000 images, small CNN": (
        "labelproof train cifar10n:worse --subset 10000 --method {method} --epochs 40 --validation-fraction 0.1"
        " --seed {seed}",
        {
            "ce": "ce",
            "elr": "elr",
            "co-teaching": "co-teaching --noise-rate 0.4",
            "elr+": "elr+",
            "dividemix": "dividemix",
        },
    ),
}


def run(template: str, method: str, seed: int, out: Path) -> dict[str, Any]:
    """One run, or its result if it is finished."""
    record = out / "run.json"
    if not record.exists() or json.loads(record.read_text())["status"] != "finished":
        words = shlex.split(template.format(method=method, seed=seed))[1:]
        resume = ["--resume"] if (out / "last.ckpt").exists() else []
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "labelproof", *words, "--quiet", "--out", str(out), *resume]
        subprocess.run(command, check=True, env=env)
    return dict(json.loads(record.read_text())["result"])


def collect(runs: Path) -> None:
    """All suites; what is finished so far is written after each run."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread per run"
    for number, (title, (template, methods)) in enumerate(SUITES.items()):
        suite = found["suites"].setdefault(title, {})
        for name, method in methods.items():
            entry = {"command": template.format(method=method, seed="SEED"), "commit": commit(), "results": []}
            known = suite.get(name, {})
            if known.get("command") == entry["command"] and len(known["results"]) == len(SEEDS):
                continue
            for seed in SEEDS:
                entry["results"].append(run(template, method, seed, runs / f"{number}-{name}-seed{seed}"))
                suite[name] = entry
                atomically(RESULTS, lambda partial: partial.write_text(json.dumps(found, indent=1) + "\n"))


HEAD = """\
| method | test, last epoch | test at best noisy validation | list: average precision | estimated noise | minutes |
|---|---|---|---|---|---|"""
UNDER = (
    "Per cent, mean ± standard deviation over {} seeds (of weights, order, split, and noise where injected). Commands:"
)


def row(name: str, results: list[dict[str, Any]]) -> str:
    """One method's line."""

    def told(key: str, digits: int = 2, scale: float = 100) -> str:
        return spread([scale * r[key] for r in results], digits)

    estimate = f"{told('noise_rate', 1)} (true {told('true_rate', 1)})"
    figures = map(told, ("test_accuracy", "test_accuracy_at_best_val", "average_precision"))
    cells = (name, *figures, estimate, told("seconds", 1, 1 / 60))
    return f"| {' | '.join(cells)} |"


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    for title, methods in found["suites"].items():
        lines += [f"### {title}", "", HEAD]
        lines += [row(name, entry["results"]) for name, entry in methods.items()]
        commands = [entry["command"].replace("SEED", "0") for entry in methods.values()]
        lines += ["", UNDER.format(len(SEEDS)), "", "```sh", *commands, "```", ""]
    commits = {entry["commit"]: None for methods in found["suites"].values() for entry in methods.values()}
    lines += [f"Commits {', '.join(commits)}; {found['machine']}."]
    return "\n".join(lines)


def write_tables(page: Path) -> None:
    """From the result file alone."""
    write_block(page, START, END, "Real data", tables(json.loads(RESULTS.read_text())).split("\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    parser.add_argument("--runs", type=Path, default=REPO / "runs" / "real-data")
    args = parser.parse_args()
    if not args.tables:
        collect(args.runs)
    write_tables(PAGE)


if __name__ == "__main__":
    main()
