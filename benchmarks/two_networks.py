"""What a step of each method of two networks costs, as a ratio to a step of cross-entropy with one, in one run.

    python benchmarks/two_networks.py --out benchmarks/results/two_networks.json
    python benchmarks/two_networks.py --case cuda --out ...         # on a GPU: what streams gain there

A step is the engine's own (`Training.run_batch`), on batches its feed made: schedule, forward and backward passes,
optimiser, twins. Every contender has been through an epoch, what it does at the end of one included, so that warm-ups
are over and DivideMix has divided. Each round times one step of each, in rotating order; the ratio is taken within the
round. Passes are counted by hooks (`passes.py`): rows that entered a network per row of the batch.

Bounds: Co-teaching <= 2.05, ELR+ <= 2.8. Co-teaching with `score_first="auto"` is counted, not timed: it does what one
of its other two settings does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from passes import Passes, words
from tables import save

from labelproof.core import nets
from labelproof.core.method import Method
from labelproof.data import catalog, noise
from labelproof.data.dataset import Data
from labelproof.data.feed import endless
from labelproof.engine.inputs import input_shape, prepare
from labelproof.engine.launch import launch
from labelproof.engine.loop import _Loop
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS
from labelproof.networks import build
from labelproof.networks.base import Backbone

#: Shares of the batch that Co-teaching keeps.
KEEP = (0.8, 0.5, 0.2)
#: Contender -> (registered name, hyper-parameters). Warm-ups last one epoch.
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("ce", {}),
    "Co-teaching": ("co-teaching", {"score_first": "never", "noise_rate": 0.5, "num_gradual": 1}),
    **{
        f"Co-teaching, {keep} kept, scored first": (
            "co-teaching",
            {"score_first": "always", "noise_rate": 1 - keep, "num_gradual": 1},
        )
        for keep in KEEP
    },
    "Co-teaching+": ("co-teaching+", {"noise_rate": 0.5, "num_gradual": 1, "warmup": 1}),
    "Decoupling": ("decoupling", {"warmup": 1}),
    "ELR+": ("elr+", {}),
    "DivideMix": ("dividemix", {"warmup": 1}),
    "MentorNet, predefined": ("mentornet", {}),
    "MentorNet, data-driven": ("mentornet-dd", {}),
}
BOUNDS = {"Co-teaching": 2.05, "ELR+": 2.8}
#: Methods whose gain by streams is measured on a GPU.
OVERLAPPING = ("Co-teaching", "ELR+", "DivideMix")


class Case(NamedTuple):
    """A network and its data."""

    network: str
    data: str
    shape: tuple[int, ...]
    batch: int = 128
    rounds: int = 60
    batches: int = 8
    device: str = "cpu"


CASES = {
    "cnn": Case("cnn", "mnist", (1, 28, 28)),
    # a step takes seconds
    "preact-resnet18": Case("preact-resnet18", "cifar10", (3, 32, 32), rounds=5, batches=1),
}
CUDA = {name: case._replace(rounds=100, batches=8, device="cuda") for name, case in CASES.items()}


def network(name: str, in_shape: tuple[int, ...], num_outputs: int) -> Backbone:
    """A built-in network."""
    return build(name, in_shape, num_outputs)


def quick(case: Case) -> Case:
    """A case that takes a second: every line of this script, no figure worth reading."""
    return case._replace(data="random", shape=(case.shape[0], 8, 8), batch=16, rounds=2, batches=2)


def images(case: Case) -> Data:
    """Images of a case, half of their labels wrong."""
    n = case.batch * case.batches
    if case.data == "random":  # no figure depends on what is in the images
        rng = np.random.default_rng(0)
        data = Data(rng.integers(0, 256, (n, *case.shape), np.uint8), np.arange(n) % 10, classes=np.arange(10))
    else:
        data = catalog.load(case.data).take(np.arange(n))
    return data.relabelled(noise.inject(data.y, "symmetric", 0.5, num_classes=10, seed=0).labels)


class Contender:
    """A training that has been through one epoch, and takes steps of the second."""

    def __init__(self, case: Case, data: Data, method: Method) -> None:
        settings = Settings(epochs=2, batch_size=case.batch, device=case.device)
        fabric = launch(settings, method)
        verified = data.relabelled(data.truth)
        streams = {name: verified for name in method.streams if name != "train"}
        inputs = prepare(method, data, None, streams, settings, fabric.device)
        self.passes = Passes()
        make = partial(network, case.network, input_shape(data), data.num_classes)
        self.loop = loop = _Loop(fabric, method, lambda k: self.passes.watch(make()), inputs, settings, None)
        for _ in loop.steps():
            pass
        self.passes.take(1)
        loop.end_epoch()
        self.at_the_end = self.passes.take(len(data))
        side = {name: next(endless(feed, 0)) for name, feed in inputs.side.items()}
        self.batches = [batch._replace(side=side) for batch in inputs.train.epoch(1)]
        loop.training.module.train()
        self.taken = 0

    def step(self) -> float:
        """Seconds of one step: of this process on a CPU, which others may share; on the clock with a GPU."""
        step = self.taken % len(self.batches)
        self.taken += 1
        cuda = self.loop.fabric.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        began = clock()
        self.loop.training.run_batch(self.batches[step], 1, step)
        if cuda:
            torch.cuda.synchronize()
        return clock() - began


def rounds_of(steps: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other in each round, the order turning."""
    names, seconds = list(steps), {name: [] for name in steps}
    for r in range(rounds):
        at = r % len(names)
        for name in names[at:] + names[:at]:
            seconds[name].append(steps[name]())
    return seconds


def spread(above: list[float], below: list[float], digits: int = 3) -> dict[str, Any]:
    """Median and quartiles of the ratios of the rounds."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    low, mid, high = (round(q, digits) for q in statistics.quantiles(each, n=4, method="inclusive"))
    return {"median": mid, "quartiles": [low, high], "rounds": len(each)}


def ratios(case: Case) -> dict[str, Any]:
    """Every contender: seconds, ratio to cross-entropy, passes per step and at the end of an epoch."""
    data = images(case)
    made = {title: Contender(case, data, METHODS[name](**how)) for title, (name, how) in CONTENDERS.items()}
    seconds = rounds_of({title: c.step for title, c in made.items()}, case.rounds)
    found: dict[str, Any] = {
        title: {
            "ratio": spread(seconds[title], seconds["cross-entropy"]),
            "milliseconds": round(1000 * statistics.median(seconds[title]), 2),
            "passes_per_step": c.passes.take(c.taken * case.batch),
            "passes_at_end_of_epoch": c.at_the_end,
        }
        for title, c in made.items()
    }
    first = {
        str(keep): {
            "gain": spread(seconds["Co-teaching"], seconds[f"Co-teaching, {keep} kept, scored first"]),
            "auto_scores_first": scores_first(case, data, keep),
        }
        for keep in KEEP
    }
    within = {title: found[title]["ratio"]["median"] <= bound for title, bound in BOUNDS.items()}
    return {"case": case._asdict(), "contenders": found, "score_first": first, "within_bounds": within}


def scores_first(case: Case, data: Data, keep: float) -> bool:
    """Whether Co-teaching, left to decide, makes a pass without gradient."""
    contender = Contender(case, data, METHODS["co-teaching"](noise_rate=1 - keep, num_gradual=1))
    contender.step()
    return contender.passes.take(1)[1] > 0


@contextmanager
def one_stream() -> Iterator[None]:
    """Networks one after the other."""
    before = nets.side_by_side
    nets.side_by_side = lambda calls, like: [call() for call in calls]
    try:
        yield
    finally:
        nets.side_by_side = before


def overlap(case: Case) -> dict[str, Any]:
    """What running the networks on streams of their own gains: seconds of a step on one stream / on several."""
    data, found = images(case), {}
    for title in OVERLAPPING:
        name, how = CONTENDERS[title]
        contender = Contender(case, data, METHODS[name](**how))

        def alone(contender: Contender = contender) -> float:
            with one_stream():
                return contender.step()

        seconds = rounds_of({"streams": contender.step, "one stream": alone}, case.rounds)
        found[title] = {
            "gain": spread(seconds["one stream"], seconds["streams"]),
            "milliseconds": {k: round(1000 * statistics.median(s), 2) for k, s in seconds.items()},
        }
    return {"case": case._asdict(), "contenders": found}


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """What was found, for a terminal."""
    for title, part in found.get("ratios", {}).items():
        yield f"\n{title}: a step, as a multiple of one of cross-entropy; passes with gradient + without"
        for name, row in part["contenders"].items():
            r, end = row["ratio"], row["passes_at_end_of_epoch"]
            passes = words(row["passes_per_step"]) + (f", and {words(end)} per epoch" if any(end) else "")
            bound = f"  (bound {BOUNDS[name]})" if name in BOUNDS else ""
            yield f"  {name:36} {r['median']:.2f} [{r['quartiles'][0]:.2f}, {r['quartiles'][1]:.2f}]  {passes}{bound}"
        for keep, row in part["score_first"].items():
            g, took = row["gain"], "scores first" if row["auto_scores_first"] else "does not"
            yield (
                f"  scoring first, keep {keep}: {g['median']:.2f} [{g['quartiles'][0]:.2f}, {g['quartiles'][1]:.2f}] "
                f"times as fast; auto {took}"
            )
    for title, part in found.get("streams", {}).items():
        yield f"\n{title} on {part['device']}: what a stream for each network gains"
        for name, row in part["contenders"].items():
            g, ms = row["gain"], row["milliseconds"]
            yield (
                f"  {name:20} {g['median']:.2f} [{g['quartiles'][0]:.2f}, {g['quartiles'][1]:.2f}] times as fast "
                f"({ms['one stream']} -> {ms['streams']} ms)"
            )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES, "cuda"], action="append", help="some parts only; all by default")
    parser.add_argument("--rounds", type=int, help="steps of each contender, instead of each case's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random images: where the data sets are not at hand")
    parser.add_argument("--quick", action="store_true", help="try the script out in seconds")
    parser.add_argument("--out", type=Path, help="JSON; parts of it that are not run are kept")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    def fitted(case: Case) -> Case:
        case = quick(case) if args.quick else case
        case = case._replace(data="random") if args.random else case
        return case._replace(rounds=args.rounds) if args.rounds else case

    wanted = args.case or [*CASES, "cuda"]
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "threads": args.threads}
    for name, case in CASES.items():
        if name in wanted:
            result = {**ratios(fitted(case)), **machine, "torch": torch.__version__}
            found.setdefault("ratios", {})[name] = result
    if "cuda" in wanted and torch.cuda.is_available():
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        for name, case in CUDA.items():
            found.setdefault("streams", {})[name] = {**overlap(fitted(case)), **device}
    elif "cuda" in wanted:
        print("no CUDA device: what streams gain is not measured")
    print("\n".join(report(found)))
    save(found, args.out)
    return found


if __name__ == "__main__":
    main()
