"""Lists of wrong labels: ours beside cleanlab's, from the same probabilities. A section of docs/results.md.

    python benchmarks/detection.py            # measure what is not finished (a quarter of an hour), rewrite the section
    python benchmarks/detection.py --table    # only rewrite the section from benchmarks/results/detection.json

Speed and memory: simulated probabilities of 1,000,000 samples of 10 classes and of 100,000 of 100. The tools take turns
in one process, three rounds; the peak of memory is that of a process for each tool, above what it held before the call.
Quality: probabilities from `lp.cross_val_probs` with 3 folds and cross-entropy, the same for all rankings.
Needs cleanlab (`pip install labelproof[bench]`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tables import REPO, commit, write_block

import labelproof as lp
from labelproof.data import catalog
from labelproof.data.atomic import atomically
from labelproof.issues import average_precision, summarise

RESULTS, PAGE = REPO / "benchmarks" / "results" / "detection.json", REPO / "docs" / "results.md"
START, END = "<!-- detection: made by benchmarks/detection.py -->", "<!-- end detection -->"
HEADING = "Finding wrong labels, beside cleanlab"

SIZES = ((1_000_000, 10), (100_000, 100))
TYPES = ("float32", "float64")
ROUNDS = 3
TOOLS = {
    "ours": "`lp.find_issues`, a table",
    "cleanlab": "cleanlab `find_label_issues`, ranked, as it comes",
    "cleanlab one": "the same, `n_jobs=1`",
    "cleanlab table": "cleanlab `CleanLearning().find_label_issues`, a table",
}
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
SIMULATED = ("symmetric 0.2", "pairflip 0.2", "mixed 0.2")
WHERE = {  # data -> network, epochs, seeds, noises
    "digits": (
        "mlp",
        30,
        (0, 1, 2),
        ("symmetric 0.1", "symmetric 0.2", "symmetric 0.4", "pairflip 0.2", "pairflip 0.4"),
    ),
    "mnist": ("mlp", 10, (0,), ("symmetric 0.2", "symmetric 0.4", "pairflip 0.2", "pairflip 0.4")),
    "cifar10": ("cnn", 4, (0,), ("human worse", "symmetric 0.2", "symmetric 0.4", "pairflip 0.2")),
}
TITLES = {"digits": "digits, 1,797", "mnist": "MNIST, 10,000", "cifar10": "CIFAR-10, 10,000"}


def simulate(n: int, num_classes: int, noise: str, seed: int = 0) -> tuple[Any, Any, Any]:
    """Given labels, probabilities of a model that has learnt their noise and errs by itself, and true labels."""
    rng = np.random.default_rng(seed)
    kind, words = noise.split()
    rate = float(words)
    truth = rng.integers(0, num_classes, n)
    if kind == "symmetric":
        flips = np.full((num_classes, num_classes), rate / (num_classes - 1))
    elif kind == "pairflip":
        flips = rate * np.roll(np.eye(num_classes), 1, axis=1)
    else:
        flips = rng.dirichlet(np.full(num_classes, 0.3), num_classes) * rate
    np.fill_diagonal(flips, 0)
    np.fill_diagonal(flips, 1 - flips.sum(axis=1))
    given = np.empty(n, dtype=np.int64)
    for k in range(num_classes):
        rows = np.flatnonzero(truth == k)
        given[rows] = rng.choice(num_classes, len(rows), p=flips[k])
    p = rng.standard_normal((n, num_classes), dtype=np.float32) * 1.5
    p[np.arange(n), truth] += (5 if num_classes < 50 else 7) + 2 * rng.standard_normal(n, dtype=np.float32)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    p = p @ flips.astype(np.float32)
    return given, p / p.sum(axis=1, keepdims=True), truth


def call(tool: str, given: Any, p: Any) -> Any:
    """What the tool returns: a table, or row numbers ranked worst first."""
    if tool == "ours":
        return lp.find_issues(given, p)
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues

    if tool == "cleanlab table":
        return CleanLearning().find_label_issues(labels=given, pred_probs=p)
    jobs = {"n_jobs": 1} if tool == "cleanlab one" else {}
    return find_label_issues(given, p, return_indices_ranked_by="self_confidence", **jobs)


def rankings(given: Any, p: Any) -> dict[str, Any]:
    """Suspicion of each label, higher = worse, by each ranking."""
    from cleanlab.rank import get_label_quality_scores

    found = {"ours": -lp.find_issues(given, p).sort_index()["rank"].to_numpy(dtype=np.float64)}
    for score in SCORES:
        adjusted = {"adjust_pred_probs": False}
        found[score] = -get_label_quality_scores(given, p, method=score, **adjusted)
    return found


def quality(given: Any, p: Any, wrong: Any) -> dict[str, dict[str, float]]:
    """Average precision, and precision among as many as are wrong, of each ranking."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rankings(given, p)
    count = int(wrong.sum())
    return {
        name: {
            "average_precision": average_precision(wrong, suspicion),
            "precision_at_wrong": float(wrong[np.argsort(-suspicion, kind="stable")[:count]].mean()),
        }
        for name, suspicion in found.items()
    }


def seconds(task: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds, those of child processes included."""
    began, before = time.perf_counter(), _used()
    task()
    return time.perf_counter() - began, _used() - before


def _used() -> float:
    """Processor seconds of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def speed_of(files: Path) -> dict[str, Any]:
    """Times of all tools in turn, in this process, on the arrays in a folder."""
    given, p = np.load(files / "given.npy"), np.load(files / "p.npy")
    for tool in TOOLS:
        call(tool, given[:5000], p[:5000])  # imports
    taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for tool in TOOLS:
            taken[tool].append(seconds(lambda tool=tool: call(tool, given, p)))
    return {tool: {"wall": [w for w, _ in pairs], "cpu": [c for _, c in pairs]} for tool, pairs in taken.items()}


def memory_of(files: Path, tool: str) -> float:
    """Peak of this process above what it held before the call, MB."""
    given, p = np.load(files / "given.npy"), np.load(files / "p.npy")
    call(tool, given[:5000], p[:5000])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the imports, is forgotten
    before = _kilobytes("VmRSS")
    call(tool, given, p)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    """A line of Linux' record of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def child(*words: str) -> Any:
    """What this script says when it is run with these words."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_speed(n: int, num_classes: int, dtype: str) -> dict[str, Any]:
    """Times and memory of all tools, on one set of arrays."""
    given, p, _ = simulate(n, num_classes, SIMULATED[0])
    p = p.astype(dtype)
    p /= p.sum(axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "given.npy", given)
        np.save(Path(folder) / "p.npy", p)
        times = child("--times", folder)
        return {tool: {**times[tool], "memory_mb": child("--memory", folder, tool)} for tool in TOOLS}


def load(data: str, noise: str, seed: int) -> tuple[Any, Any, Any]:
    """Rows, given labels, and which of them are wrong."""
    if data == "digits":
        parts = [catalog.load("digits", split=part) for part in ("train", "test")]
        x, truth = (np.concatenate([np.asarray(getattr(part, name)) for part in parts]) for name in ("x", "y"))
        x = x.reshape(len(x), -1)
    else:
        made = catalog.load("cifar10n:worse" if noise.startswith("human") else data)
        rows = np.sort(np.random.default_rng(0).permutation(len(made))[:10_000])
        x = np.asarray(made.x)[rows]
        x = x.reshape(len(x), -1) if data == "mnist" else x
        truth = made.y[rows]
        if made.truth is not None:
            return x, truth, truth != made.truth[rows]
    kind, rate = noise.split()
    noisy = lp.noise.inject(truth, kind, float(rate), seed=seed)
    return x, noisy.labels, noisy.changed


def measure_quality(data: str, noise: str, seed: int) -> dict[str, Any]:
    """All rankings on real data, from one set of cross-validated probabilities."""
    network, epochs, _, _ = WHERE[data]
    x, given, wrong = load(data, noise, seed)
    model = lp.NoisyLabelClassifier(method="ce", network=network, epochs=epochs, random_state=seed, device="cpu")
    p = lp.cross_val_probs(model, (x, given), 3, seed=seed)
    said = summarise(lp.find_issues(given, p), wrong)
    return {"wrong": float(wrong.mean()), "flagged": said["flagged"] / len(given), **quality(given, p, wrong)}


def quartiles(values: list[float], digits: int = 2) -> str:
    """Median and quartiles.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0], 1)
    '3.0 (2.0–4.0)'
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def speed_table(found: dict[str, Any]) -> list[str]:
    """Markdown: times, ratios to each of cleanlab's ways, memory."""
    lines = [
        "| samples, classes, type | tool | seconds | processor seconds | ours / it | ours / it, processor | peak, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, tools in found.items():
        for tool, words in TOOLS.items():
            at = tools[tool]
            ratios = [
                quartiles([a / b for a, b in zip(tools["ours"][clock], at[clock], strict=True)])
                for clock in ("wall", "cpu")
            ]
            cells = (size, words, quartiles(at["wall"]), quartiles(at["cpu"]), *ratios, f"{at['memory_mb']:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def quality_table(found: dict[str, dict[str, Any]], title: str) -> list[str]:
    """Markdown: average precision / precision at the true count, mean over seeds; the best in bold."""
    heads = " | ".join(["ours", *(f"cleanlab {s.replace('_', ' ')}" for s in SCORES)])
    lines = [f"| {title} | {heads} |", "|---" * (2 + len(SCORES)) + "|"]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, each in found.items():
        groups[name.rpartition(", seed ")[0] or name].append(each)
    for name, runs in groups.items():
        means = {
            ranking: [statistics.mean(r[ranking][m] for r in runs) for m in ("average_precision", "precision_at_wrong")]
            for ranking in ("ours", *SCORES)
        }
        best = max(round(ap, 3) for ap, _ in means.values())
        cells = [f"{_bold(f'{ap:.3f}', round(ap, 3) == best)} / {at:.3f}" for ap, at in means.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def section(found: dict[str, Any]) -> list[str]:
    """The section's lines."""
    made = found["made"]
    return [
        f"Commit {made['commit']}, cleanlab {made['cleanlab']}, NumPy {made['numpy']}, {made['machine']}, load "
        f"{made['load']}. `python benchmarks/detection.py`; median (quartiles) of {ROUNDS} rounds, tools in turn.",
        "",
        *speed_table(found["speed"]),
        "",
        "Quality: average precision of the whole ranking / precision among as many as are wrong. First on simulated "
        "probabilities, then on real data (3 folds of cross-entropy, the same probabilities for all columns).",
        "",
        *quality_table(found["simulated"], "simulated"),
        "",
        *quality_table(found["real"], "real data"),
    ]


def measure(found: dict[str, Any]) -> None:
    """All that is not finished; what is finished is written after each step."""

    def keep(part: str, name: str, task: Callable[[], Any]) -> None:
        if name in found[part]:
            return
        found[part][name] = task()
        print(part, name, flush=True)
        found["made"] = {
            "commit": commit(),
            "cleanlab": version("cleanlab"),
            "numpy": np.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load": round(os.getloadavg()[0], 1),
        }
        text = json.dumps(found, indent=1) + "\n"
        atomically(RESULTS, lambda partial: partial.write_text(text))

    for n, num_classes in SIZES:
        for dtype in TYPES:
            keep("speed", f"{n:,}, {num_classes}, {dtype}", lambda n=n, k=num_classes, d=dtype: measure_speed(n, k, d))
        for noise in SIMULATED:

            def simulated(n: int = n, k: int = num_classes, noise: str = noise) -> Any:
                given, p, truth = simulate(n, k, noise)
                return quality(given, p, given != truth)

            keep("simulated", f"{n:,} of {num_classes} classes, {noise}", simulated)
    for data, (_, _, seeds, noises) in WHERE.items():
        for noise in noises:
            for seed in seeds:
                name = f"{TITLES[data]}, {noise}, seed {seed}"
                keep("real", name, lambda d=data, n=noise, s=seed: measure_quality(d, n, s))


def write_tables(page: Path) -> None:
    """From the result files alone."""
    write_block(page, START, END, HEADING, section(json.loads(RESULTS.read_text())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only rewrite the section")
    parser.add_argument("--times", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.times:
        print(json.dumps(speed_of(asked.times)))
        return
    if asked.memory:
        print(json.dumps(memory_of(Path(asked.memory[0]), asked.memory[1])))
        return
    found: dict[str, Any] = {"made": {}, "speed": {}, "simulated": {}, "real": {}}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())
    if not asked.table:
        measure(found)
    write_tables(PAGE)


if __name__ == "__main__":
    main()
