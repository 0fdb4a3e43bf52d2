"""What norms of per-sample gradients cost, ours against opacus and torch.func; and what a step of PRL costs.

    pip install 'labelproof[bench]'
    python benchmarks/gradnorm.py --out benchmarks/results/gradnorm.json

Each round takes the norms of one batch by each contender, in rotating order; ratios are taken within the round, of the
seconds this process computed (others may share the machine). Memory is the peak of a process of its own, less what it
held before, network and batch included: in each the first batch, so that no contender finds memory laid out by another.
All contenders must agree on the norms before anything is timed. opacus takes networks in the ordinary memory layout
only; ours is measured in both. The second part times steps of the engine, as `two_networks.py` does.

Bounds: at most 0.8 times the fastest other in time, at most 1.3 times a plain backward pass in memory; a step of PRL-L
at most 1.15 times one of cross-entropy at any share kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from two_networks import Case, Contender, images, quick, rounds_of, spread

from labelproof.functional.gradnorm import gradient_norms
from labelproof.methods import METHODS
from labelproof.networks import build


class Problem(NamedTuple):
    """A network and a batch."""

    net: nn.Module
    x: Tensor
    y: Tensor

    def loss(self, out: Tensor) -> Tensor:
        return F.cross_entropy(out, self.y, reduction="none")


SHAPES = {"resnet32-gn": (3, 32, 32), "mlp": (784,)}
BATCH = 128


def problem(network: str, batch: int = BATCH) -> Problem:
    """The network, freshly initialised, and a batch of Gaussian inputs."""
    torch.manual_seed(0)
    shape = SHAPES[network]
    return Problem(build(network, shape, 10), torch.randn(batch, *shape), torch.randint(10, (batch,)))


def plain(p: Problem) -> Callable[[], Tensor]:
    """Forward and backward pass of training: no norms."""

    def run() -> Tensor:
        p.net.zero_grad()
        out = p.loss(p.net(p.x))
        out.mean().backward()
        return out.detach()

    return run


def ours(p: Problem) -> Callable[[], Tensor]:
    return lambda: gradient_norms(p.net, p.x, p.loss)[0]


def ours_channels_last(p: Problem) -> Callable[[], Tensor]:
    """In the layout the engine trains in."""
    net = p.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda: gradient_norms(net, p.x, p.loss)[0]


def opacus(p: Problem) -> Callable[[], Tensor]:
    """All per-sample gradients, then their norms."""
    from opacus import GradSampleModule

    net = GradSampleModule(p.net, loss_reduction="sum")

    def run() -> Tensor:
        net.zero_grad()
        p.loss(net(p.x)).sum().backward()
        return torch.stack([w.grad_sample.flatten(1).square().sum(1) for w in net.parameters()]).sum(0).sqrt()

    return run


def opacus_ghost(p: Problem) -> Callable[[], Tensor]:
    """Norms layer by layer."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    net = GradSampleModuleFastGradientClipping(p.net, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="sum")

    def run() -> Tensor:
        net.zero_grad()
        p.loss(net(p.x)).sum().backward()
        norms: Tensor = net.get_norm_sample()
        return norms

    return run


def by_vmap(p: Problem, chunk: int | None = None) -> Callable[[], Tensor]:
    """`torch.func.vmap(grad)`, as its documentation has it."""
    weights = {name: w.detach() for name, w in p.net.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(p.net, weights, (x[None],)), y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk)

    def run() -> Tensor:
        found = each(weights, p.x, p.y)
        return torch.stack([g.flatten(1).square().sum(1) for g in found.values()]).sum(0).sqrt()

    return run


OURS = {"ours": ours, "ours, channels last": ours_channels_last}
OTHERS: dict[str, Callable[[Problem], Callable[[], Tensor]]] = {
    "opacus": opacus,
    "opacus, ghost": opacus_ghost,
    "vmap(grad)": by_vmap,
    "vmap(grad), chunks of 16": partial(by_vmap, chunk=16),
}
CONTENDERS = {"plain backward": plain, **OURS, **OTHERS}


def timed(run: Callable[[], Tensor]) -> Callable[[], float]:
    def once() -> float:
        began = time.process_time()
        run()
        return time.process_time() - began

    return once


def norms(network: str, rounds: int, batch: int = BATCH) -> dict[str, Any]:
    """Time and memory of every contender on one network."""
    made = {name: make(problem(network, batch)) for name, make in CONTENDERS.items()}
    reference = made["vmap(grad)"]()
    for name, run in made.items():
        if name != "plain backward":
            torch.testing.assert_close(run(), reference, rtol=1e-2, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    seconds = rounds_of({name: timed(run) for name, run in made.items()}, rounds)
    memory = {name: peak_memory(network, name, batch) for name in CONTENDERS}
    fastest = min(OTHERS, key=lambda name: statistics.median(seconds[name]))
    ratio = spread(seconds["ours"], seconds[fastest])
    share = round(memory["ours"] / memory["plain backward"], 3)
    return {
        "milliseconds": {name: round(1000 * statistics.median(s), 2) for name, s in seconds.items()},
        "memory_mb": memory,
        "fastest_other": fastest,
        "time_to_fastest_other": ratio,
        "time_to_plain_backward": spread(seconds["ours"], seconds["plain backward"]),
        "memory_to_plain_backward": share,
        "within_bounds": {"time <= 0.8": ratio["median"] <= 0.8, "memory <= 1.3": share <= 1.3},
    }


def peak_memory(network: str, name: str, batch: int) -> float:
    """MB, in a process of its own."""
    words = [sys.executable, "-W", "ignore", __file__, "--memory-of", name, "--network", network, "--batch", str(batch)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def grown(network: str, name: str, batch: int) -> float:
    """By how many MB this process grows while it takes the norms of one batch."""
    run = CONTENDERS[name](problem(network, batch))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    run()
    return round((resident("VmHWM") - before) / 1024, 1)


def resident(field: str) -> int:
    """kB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("ce", {}),
    **{
        f"{name}, {keep} kept": (name, {"noise_rate": round(1 - keep, 2), "num_gradual": 1})
        for name in ("prl-l", "prl-g")
        for keep in (1.0, 0.8, 0.5, 0.2)
    },
    "prl-l with features, 0.5 kept": ("prl-l", {"noise_rate": 0.5, "num_gradual": 1, "features": True}),
    "co-prl-l, 0.5 kept": ("co-prl-l", {"noise_rate": 0.5, "num_gradual": 1}),
    "co-teaching, 0.5 kept": ("co-teaching", {"noise_rate": 0.5, "num_gradual": 1, "score_first": "never"}),
}
CASES = {
    "cnn-gn": Case("cnn-gn", "mnist", (1, 28, 28)),
    "mlp": Case("mlp", "mnist", (1, 28, 28)),
    "cnn": Case("cnn", "mnist", (1, 28, 28)),
    "resnet32-gn": Case("resnet32-gn", "cifar10", (3, 32, 32), rounds=9, batches=1),
}


def steps(case: Case) -> dict[str, Any]:
    """Steps of the engine, as ratios to cross-entropy's."""
    data = images(case)
    chosen = {t: how for t, how in STEPS.items() if case.network != "cnn" or "prl-g" not in t}  # it has BatchNorm
    made = {title: Contender(case, data, METHODS[name](**how)) for title, (name, how) in chosen.items()}
    seconds = rounds_of({title: c.step for title, c in made.items()}, case.rounds)
    found = {title: spread(s, seconds["cross-entropy"]) for title, s in seconds.items()}
    worst = max(found[t]["median"] for t in found if t.startswith("prl-l, "))
    return {
        "ratio_to_cross_entropy": found,
        "milliseconds": {title: round(1000 * statistics.median(s), 2) for title, s in seconds.items()},
        "within_bounds": {"prl-l <= 1.15": worst <= 1.15},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="every line of this script, no figure worth reading")
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--network", choices=list(SHAPES), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(grown(args.network, args.memory_of, args.batch))
        return 0
    rounds, batch = (2, 4) if args.quick else (args.rounds, BATCH)
    cases = {name: quick(case) for name, case in CASES.items()} if args.quick else CASES
    result = {
        "batch": batch,
        "norms": {network: norms(network, rounds, batch) for network in SHAPES},
        "steps": {name: steps(case) for name, case in cases.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no GPU",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
    }
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 0


def commit() -> str:
    """The present commit; with "+" where tracked files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
