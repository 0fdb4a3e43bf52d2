"""What the engine costs over a hand-written loop, and each method over cross-entropy, as ratios taken in one run.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json
    python benchmarks/overhead.py --methods --out benchmarks/results/methods.json

The plain loop is what one would write for this very network, data and batch: uint8 images in memory, a gather, a
standardisation, forward, cross-entropy, backward, SGD with momentum. It keeps no record of anything. Each round times
one epoch of each contender, in rotating order, after a warm-up round; the ratio is taken within the round. Peak memory
is that of a process of its own per contender.

Bounds: engine with cross-entropy <= 1.05 x plain loop; a method of one network <= 1.10 x engine with cross-entropy,
times the number of its views. Forward and backward correction are timed with a given matrix: one training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from labelproof.data import catalog
from labelproof.engine.inputs import input_shape
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.methods import METHODS
from labelproof.networks import build

BATCH, LR, MOMENTUM, DECAY = 128, 0.02, 0.9, 5e-4


def plain(data: Any, seed: int) -> float:
    """One epoch of the hand-written loop; seconds."""
    torch.manual_seed(seed)
    net = build("cnn", input_shape(data), data.num_classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    mean, std = float(data.x.mean()), float(data.x.std())
    total = torch.zeros(())
    began = time.perf_counter()
    order = torch.randperm(len(x))
    for at in range(0, len(x), BATCH):
        rows = order[at : at + BATCH]
        loss = nn.functional.cross_entropy(net((x[rows].float() - mean) / std), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return time.perf_counter() - began


def engine(name: str) -> Callable[[Any, int], float]:
    """One epoch of the engine with a method; seconds, the end of the epoch included, setting up excluded."""

    def run(data: Any, seed: int) -> float:
        how = Settings(
            epochs=1, batch_size=BATCH, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, seed=seed, device="cpu"
        )
        given = {"transition": (np.eye(10) * 0.5 + 0.05).tolist()} if name in {"forward", "backward"} else {}
        network = partial(build, "cnn", input_shape(data), data.num_classes)
        fitted = fit(METHODS[name](**given), lambda k: network(), data, how)
        return float(fitted.history[0]["seconds"])

    return run


CONTENDERS: dict[str, Callable[[Any, int], float]] = {"plain": plain, "ce": engine("ce"), "elr": engine("elr")}
SINGLE = [n for n, m in METHODS.items() if "classification" in m.tasks and m.peers == 1 and m.streams == ("train",)]


def ratios(data: Any, rounds: int) -> dict[str, Any]:
    """Per-round ratios: quartiles of each."""
    seconds = measure(CONTENDERS, data, rounds)
    out: dict[str, Any] = {"seconds_per_epoch": {n: statistics.median(s) for n, s in seconds.items()}}
    for label, a, b in (("ce / plain", "ce", "plain"), ("elr / ce", "elr", "ce")):
        out[label] = spread([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
    return out


def methods(data: Any, rounds: int) -> dict[str, Any]:
    """Per-round ratios to cross-entropy of every method of one network, divided by the number of its views."""
    seconds = measure({name: engine(name) for name in SINGLE}, data, rounds)
    out: dict[str, Any] = {"seconds_per_epoch": {n: statistics.median(s) for n, s in seconds.items()}}
    for name in SINGLE:
        views = len(METHODS[name].views)
        each = [x / y / views for x, y in zip(seconds[name], seconds["ce"], strict=True)]
        out[f"{name} / {views} ce" if views > 1 else f"{name} / ce"] = spread(each)
    return out


def measure(contenders: dict[str, Callable[[Any, int], float]], data: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other in each round, the order turning; the first round is a warm-up."""
    names, seconds = list(contenders), {n: [] for n in contenders}
    for r in range(rounds + 1):
        at = r % len(names)
        for name in names[at:] + names[:at]:
            took = contenders[name](data, r)
            if r:
                seconds[name].append(took)
    return seconds


def spread(each: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, mid, high = statistics.quantiles(each, n=4)
    return {"median": mid, "quartiles": [low, high], "rounds": len(each)}


def peak_memory(name: str, samples: int) -> float:
    """Peak resident memory of one epoch in a process of its own, in MB."""
    command = [sys.executable, __file__, "--samples", str(samples), "--memory-of", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=12_800)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", action="store_true", help="time every method of one network")
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = catalog.load("mnist").take(np.arange(args.samples))
    if args.memory_of:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # Linux: forget the peak so far, which is that of reading the data
        CONTENDERS[args.memory_of](data, 0)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(peak.split()[1]) / 1024)
        return
    result = methods(data, args.rounds) if args.methods else ratios(data, args.rounds)
    if not args.methods:
        result["peak_memory_mb"] = {name: round(peak_memory(name, args.samples), 1) for name in CONTENDERS}
    result["settings"] = {
        "network": "cnn",
        "data": f"mnist[:{args.samples}]",
        "batch_size": BATCH,
        "threads": args.threads,
    }
    result["torch"] = torch.__version__
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
