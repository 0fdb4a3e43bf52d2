"""What a step of Meta-Weight-Net costs, as a ratio to a step of cross-entropy on the same batches, in one run.

    OMP_NUM_THREADS=1 python benchmarks/meta.py --out benchmarks/results/meta.json

A step is the engine's own (`Training.run_batch`), on batches its feed made. Each round times one step of each, in
rotating order; the ratio is taken within the round. Batches of 128 images of 32x32. The meta batch has the rows that
the method asks for by default, unless it is said to be full.

Bounds: a whole-network step <= 3.2, a last-layer step <= 1.6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tables import save
from two_networks import Case, images, quick, rounds_of, spread

from labelproof.core.method import Method
from labelproof.data.dataset import Data
from labelproof.data.feed import endless
from labelproof.engine.inputs import input_shape, prepare
from labelproof.engine.launch import launch
from labelproof.engine.loop import _Loop
from labelproof.engine.settings import Settings
from labelproof.methods import CE, MWNet
from labelproof.networks import build


class FullMetaBatch(MWNet):
    """As many rows in the meta batch as in the batch."""

    def side_batch_size(self, stream: str, batch_size: int, rows: int, side_rows: int) -> int:
        return batch_size


CONTENDERS: dict[str, Method] = {
    "cross-entropy": CE(),
    "last layer": MWNet(),
    "whole network": MWNet(last_layer=False),
    "whole network, full meta batch": FullMetaBatch(last_layer=False),
}
BOUNDS = {"last layer": 1.6, "whole network": 3.2}
CASES = {
    "cnn": Case("cnn", "cifar10", (3, 32, 32), rounds=60, batches=8),
    "resnet32": Case("resnet32", "cifar10", (3, 32, 32), rounds=15, batches=4),
}


class Contender:
    """A training that has taken steps for an epoch, and takes some of the next."""

    def __init__(self, case: Case, data: Data, method: Method) -> None:
        settings = Settings(epochs=2, batch_size=case.batch, device=case.device)
        fabric = launch(settings, method)
        streams = {name: data.relabelled(data.truth) for name in method.optional}
        inputs = prepare(method, data, None, streams, settings, fabric.device)
        make = lambda k: build(case.network, input_shape(data), data.num_classes)  # noqa: E731
        self.loop = loop = _Loop(fabric, method, make, inputs, settings, None)
        for _ in loop.steps():
            pass
        side = {name: next(endless(feed, 0)) for name, feed in inputs.side.items()}
        self.meta_rows = {name: len(batch.x) for name, batch in side.items()}
        self.batches = [batch._replace(side=side) for batch in inputs.train.epoch(1)]
        self.taken = 0

    def step(self) -> float:
        """Seconds of one step, of this process."""
        step = self.taken % len(self.batches)
        self.taken += 1
        began = time.process_time()
        self.loop.training.run_batch(self.batches[step], 1, step)
        return time.process_time() - began


def ratios(case: Case) -> dict[str, Any]:
    """Every contender: seconds, ratio to cross-entropy, rows of the meta batch."""
    data = images(case)
    made = {title: Contender(case, data, method) for title, method in CONTENDERS.items()}
    seconds = rounds_of({title: c.step for title, c in made.items()}, case.rounds)
    found = {
        title: {
            "ratio": spread(seconds[title], seconds["cross-entropy"]),
            "milliseconds": round(1000 * statistics.median(seconds[title]), 2),
            "meta_rows": c.meta_rows.get("clean", 0),
        }
        for title, c in made.items()
    }
    within = {title: found[title]["ratio"]["median"] <= bound for title, bound in BOUNDS.items()}
    return {"case": case._asdict(), "contenders": found, "within_bounds": within}


def report(found: dict[str, Any]) -> Iterator[str]:
    """What was found, for a terminal."""
    for name, part in found.items():
        yield f"\n{name}: a step, as a multiple of one of cross-entropy"
        for title, row in part["contenders"].items():
            r, (low, high) = row["ratio"]["median"], row["ratio"]["quartiles"]
            rest = f"{row['milliseconds']} ms, {row['meta_rows']} rows"
            bound = f"  (bound {BOUNDS[title]})" if title in BOUNDS else ""
            yield f"  {title:32} {r:.2f} [{low:.2f}, {high:.2f}]  {rest}{bound}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES], action="append", help="some networks only; all by default")
    parser.add_argument("--rounds", type=int, help="steps of each contender, instead of each case's own number")
    parser.add_argument("--random", action="store_true", help="random images: where the data sets are not at hand")
    parser.add_argument("--quick", action="store_true", help="try the script out in seconds")
    parser.add_argument("--out", type=Path, help="JSON; parts of it that are not run are kept")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "threads": 1, "torch": torch.__version__}
    for name in args.case or CASES:
        case = quick(CASES[name]) if args.quick else CASES[name]
        case = case._replace(data="random") if args.random else case
        found[name] = {**ratios(case._replace(rounds=args.rounds or case.rounds)), **machine}
    print("\n".join(report(found)))
    save(found, args.out)
    return found


if __name__ == "__main__":
    main()
