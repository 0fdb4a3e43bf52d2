"""What each drop-in loss costs over `F.cross_entropy`, forward and backward, as ratios taken in one run.

    python benchmarks/losses.py --out benchmarks/results/losses.json

Contenders take turns within each round, in rotating order; the ratio is taken within the round, and its median and
quartiles over rounds are reported. Losses that remember each sample have a table of 1,280,000 rows, all of which have
been written to, and get the random ids of an epoch; one table lives at a time (5.1 GB of fp32 for 1,000 classes).
`elr, as published` is the loss that the paper's repository shows in its README, written anew from its description: a
plain tensor, indexed thrice. Bound: ELR and SOP <= 2.5 at (256, 1000).
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labelproof import losses

SIZES = ((128, 10), (256, 1000))
Step = Callable[[], None]


class Batches:
    """The batches of an epoch in random order: logits that require gradients, labels that belong to their ids."""

    def __init__(self, samples: int, size: int, classes: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.logits = torch.randn(size, classes, generator=g).requires_grad_()
        ids = torch.randperm(samples, generator=g)[: 512 * size].split(size)
        labels = torch.randint(0, classes, (samples,), generator=g)
        self.pairs: Iterator[tuple[Tensor, Tensor]] = cycle([(labels[i], i) for i in ids if len(i) == size])

    def step(self, criterion: Callable[..., Tensor], after: Callable[[], None] | None = None) -> Step:
        """One forward and backward pass, and what comes after it."""

        def run() -> None:
            self.logits.grad = None
            criterion(self.logits, *next(self.pairs)).backward()
            if after:
                after()

        return run


class Published:
    """ELR as its README has it."""

    def __init__(self, samples: int, classes: int) -> None:
        self.target = torch.full((samples, classes), 1 / classes)

    def __call__(self, logits: Tensor, label: Tensor, index: Tensor) -> Tensor:
        p = torch.clamp(F.softmax(logits, dim=1), 1e-4, 1 - 1e-4)
        detached = p.detach()
        self.target[index] = 0.7 * self.target[index] + 0.3 * (detached / detached.sum(dim=1, keepdim=True))
        agreement = (self.target[index] * p).sum(dim=1)
        return F.cross_entropy(logits, label) + 3.0 * (1 - agreement).log().mean()


def stateless(classes: int) -> dict[str, Any]:
    """Losses without memory."""
    noise = torch.full((classes, classes), 0.2 / (classes - 1)).fill_diagonal_(0.8)
    return {
        "gce": losses.GCELoss(),
        "gce truncated": losses.GCELoss(k=0.001),
        "mae": losses.MAELoss(),
        "sce": losses.SCELoss(),
        "bootstrap hard": losses.BootstrapLoss(kind="hard"),
        "bootstrap soft": losses.BootstrapLoss(kind="soft"),
        "forward": losses.ForwardLoss(noise),
        "backward": losses.BackwardLoss(noise),
        "small loss": losses.SmallLoss(),
    }


def groups(samples: int, batches: Batches, classes: int) -> Iterator[dict[str, Step]]:
    """Contenders that are timed together, cross-entropy first; what they remember is freed in between."""

    def ce(z: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return F.cross_entropy(z, y)

    first = {"cross-entropy": batches.step(ce)}
    yield first | {name: batches.step(criterion) for name, criterion in stateless(classes).items()}
    for memory in ("dense", "bf16", "topk") if classes > 100 else ("dense",):
        elr = losses.ELRLoss(samples, classes, memory=memory)
        fill(elr, classes)
        name = "elr" if memory == "dense" else f"elr {memory}"
        yield first | {name: batches.step(elr)}
        del elr
    yield first | {"elr, as published": batches.step(Published(samples, classes))}
    sop = losses.SOPLoss(samples, classes)
    errors = sop.optimizer()

    def clear() -> None:
        sop.u.weight.grad = sop.v.weight.grad = None

    def step() -> None:
        errors.step()
        clear()

    yield first | {
        "sop": batches.step(sop, clear),
        "sop with its step": batches.step(sop, step),
    }


def fill(elr: losses.ELRLoss, classes: int) -> None:
    """Touch every row: the first write to fresh memory is the operating system's time, not the loss's."""
    for buffer in elr.t.buffers():
        if buffer.is_floating_point():
            buffer.fill_(1 / classes)
        elif buffer.ndim == 2:
            buffer.copy_(torch.arange(buffer.shape[1]).expand_as(buffer))


def measure(steps: dict[str, Step], rounds: int) -> dict[str, Any]:
    """Medians and quartiles of the ratio to the first contender.

    One step each per round: where other processes want the processor too, a step that is interrupted is an outlier.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(-20, rounds):
        at = r % len(names)
        for name in names[at:] + names[:at]:
            began = time.perf_counter()
            steps[name]()
            if r >= 0:
                seconds[name].append(time.perf_counter() - began)
    out = {}
    for name in names:
        each = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        low, mid, high = statistics.quantiles(each, n=4)
        out[name] = {
            "ratio": round(mid, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "microseconds": round(1e6 * statistics.median(seconds[name]), 1),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=501)
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Once a process has freed a large tensor, as any training has, the allocator keeps memory for the next ones.
    torch.empty(7_900_000)
    result: dict[str, Any] = {}
    for size, classes in SIZES:
        batches, found = Batches(args.samples, size, classes), {}
        for contenders in groups(args.samples, batches, classes):
            for name, figures in measure(contenders, args.rounds).items():
                found.setdefault(name, figures)
            print(size, classes, {n: found[n]["ratio"] for n in contenders}, flush=True)
            del contenders
            gc.collect()
        result[f"B={size}, K={classes}"] = found
    result["settings"] = {
        "samples": args.samples,
        "rounds": args.rounds,
        "threads": args.threads,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
