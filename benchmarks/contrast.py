"""What a step of SimCLR costs, ours against lightly's, on the same images and network in one run.

lightly needs torchvision, which must be of the same build as torch, so it has an environment of its own:

    python -m venv /tmp/venv-lightly
    /tmp/venv-lightly/bin/pip install lightly torch torchvision kornia lightning-fabric loky cloudpickle filelock \\
        pandas pyarrow scikit-learn pillow pooch rich 'jsonargparse[signatures]'
    PYTHONPATH=src OMP_NUM_THREADS=1 /tmp/venv-lightly/bin/python benchmarks/contrast.py \\
        --out benchmarks/results/contrast.json

Where lightly cannot be imported, the script says so and times the others.

A step takes uint8 images to updated weights: two views, network, projection head, NT-Xent, backward pass, SGD. Ours
comes from the feed, in one forward pass over both views. lightly's comes from its `SimCLRTransform` (no blur, as for
small images; strength 0.5) through a `DataLoader` in the same process, in a forward pass for each view, as its examples
have it. Our networks have channels last on a CPU, as the engine lays them out; lightly's are timed in that layout,
which the bound is about, and in the ordinary one. kornia's transforms replace ours in a further contender. Each round
times one step of each in rotating order, in seconds of this process; ratios are taken within the round. Freed memory
stays with the process, as the engine has it, for every contender.

The second part times two views of a batch alone. Bound: at most 0.7 times lightly's time for a step of the small CNN.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tables import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from two_networks import rounds_of, spread

from labelproof.data import catalog
from labelproof.data.feed import DeviceFeed, endless
from labelproof.data.transforms import Standardise
from labelproof.engine.launch import _keep_memory
from labelproof.functional.contrast import nt_xent
from labelproof.networks import build

BOUND = 0.7
TEMPERATURE = 0.5
OURS, KORNIA, LIGHTLY, PLAIN = "labelproof", "labelproof, kornia's views", "lightly", "lightly, ordinary layout"
PACKAGES = ("torch", "torchvision", "lightly", "kornia", "pillow", "numpy")


class Case(NamedTuple):
    """A network, and how many images it takes at a time."""

    network: str
    batch: int = 256
    rounds: int = 30
    batches: int = 8


CASES = {"cnn": Case("cnn"), "resnet18": Case("resnet18", batch=64, rounds=4, batches=2)}  # its step takes seconds


def lightly_or_why() -> str:
    """Empty where lightly can be imported, else the reason."""
    try:
        import lightly.loss
        import lightly.transforms  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another build raises any of them
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def images(case: Case, *, random: bool) -> np.ndarray[Any, Any]:
    """`(N, 3, 32, 32)` uint8."""
    n = case.batch * case.batches
    if random:
        return np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), np.uint8)
    return np.ascontiguousarray(catalog.load("cifar10").x[:n])


class Projected(nn.Module):
    """A built-in network's features and SimCLR's projection head, `(B, 3, 32, 32) -> (B, 128)`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = build(name, (3, 32, 32), 10)
        width = self.body.head.in_features
        self.project = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 128, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.body.features(x))
        return out


Views = Callable[[], tuple[Tensor, Tensor]]


class Stepper:
    """One contender: where its views come from, its network, and what makes a loss of both.

    Args:
        views: the next two views of a batch.
        net: to be trained, a copy of its own.
        loss: of the network and the two views.
        channels_last: the memory layout of the network's weights.
    """

    def __init__(
        self, views: Views, net: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], *, channels_last: bool
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.views, self.loss, self.net = views, loss, deepcopy(net).to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.06, momentum=0.9, weight_decay=5e-4)
        self.last = float("nan")

    def __call__(self) -> float:
        """Seconds of a step, of this process."""
        began = time.process_time()
        loss = self.loss(self.net, *self.views())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        seconds = time.process_time() - began
        self.last = loss.item()
        return seconds


def ours(x: np.ndarray[Any, Any], batch: int) -> Views:
    """Two contrastive views from the feed."""
    feed = DeviceFeed(
        x,
        np.zeros(len(x), np.int64),
        np.arange(len(x)),
        standardise=Standardise.fit(x),
        device=torch.device("cpu"),
        batch_size=batch,
        seed=0,
        views=("contrast", "contrast"),
        augment="crop-flip",
    )
    batches = endless(feed, 0)

    def views() -> tuple[Tensor, Tensor]:
        first, second = next(batches).views
        return first, second

    return views


def kornias(x: np.ndarray[Any, Any], batch: int) -> Views:
    """The same from kornia's batched transforms."""
    from kornia import augmentation as k

    standardise, raw = Standardise.fit(x), torch.from_numpy(x)
    change = nn.Sequential(
        k.RandomResizedCrop((32, 32), scale=(0.08, 1.0), resample="bicubic", cropping_mode="resample"),
        k.RandomHorizontalFlip(),
        k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        k.RandomGrayscale(p=0.2),
    )
    rng = torch.Generator().manual_seed(0)

    def view(unit: Tensor) -> Tensor:
        out: Tensor = standardise(change(unit).clamp_(0, 1).mul_(255))
        return out

    def views() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            unit = raw[torch.randint(len(raw), (batch,), generator=rng)].float().div_(255)
            return view(unit), view(unit)

    return views


class Pictures(Dataset[list[Tensor]]):
    """PIL images, decoded beforehand, through lightly's transform."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        from lightly.transforms import SimCLRTransform
        from PIL import Image

        self.pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in x]
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        both: list[Tensor] = self.transform(self.pictures[index])
        return both


def lightlys(x: np.ndarray[Any, Any], batch: int) -> Views:
    """Two views from lightly, by the ordinary loader and its own way to put batches together."""
    loader: DataLoader[list[Tensor]] = DataLoader(
        Pictures(x), batch_size=batch, shuffle=True, drop_last=True, num_workers=0
    )

    def forever() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    batches = forever()

    def views() -> tuple[Tensor, Tensor]:
        first, second = next(batches)
        return first, second

    return views


def joint_loss(net: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Ours: one forward pass over both views."""
    z1, z2 = net(torch.cat([first, second])).chunk(2)
    return nt_xent(z1, z2, TEMPERATURE)


def lightly_loss() -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """lightly's: a forward pass for each view."""
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(temperature=TEMPERATURE)

    def loss(net: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = criterion(net(first), net(second))
        return out

    return loss


def losses_agree() -> float:
    """Largest difference between lightly's loss and ours on the same projections."""
    from lightly.loss import NTXentLoss

    z = torch.randn(4, 2, 64, 128, generator=torch.Generator().manual_seed(0))
    return max(float((nt_xent(*both, TEMPERATURE) - NTXentLoss(TEMPERATURE)(*both)).abs()) for both in z)


def steps(case: Case, *, random: bool, with_lightly: bool) -> dict[str, Any]:
    """Milliseconds of a step of each contender, and what each takes as a multiple of ours."""
    x = images(case, random=random)
    torch.manual_seed(0)
    net = Projected(case.network)
    contenders = {
        OURS: Stepper(ours(x, case.batch), net, joint_loss, channels_last=True),
        KORNIA: Stepper(kornias(x, case.batch), net, joint_loss, channels_last=True),
    }
    if with_lightly:
        loss = lightly_loss()
        contenders[LIGHTLY] = Stepper(lightlys(x, case.batch), net, loss, channels_last=True)
        contenders[PLAIN] = Stepper(lightlys(x, case.batch), net, loss, channels_last=False)
    for contender in contenders.values():
        contender()
    seconds = rounds_of(contenders, case.rounds)
    return {
        "case": case._asdict(),
        "milliseconds": {name: round(1000 * statistics.median(s), 1) for name, s in seconds.items()},
        "ours_over": {name: spread(seconds[OURS], s) for name, s in seconds.items() if name != OURS},
        "loss": {name: round(c.last, 3) for name, c in contenders.items()},
    }


def augmentation(case: Case, *, random: bool, with_lightly: bool) -> dict[str, Any]:
    """Milliseconds of two views of a batch."""
    x = images(case, random=random)
    makers = {"labelproof": ours, "kornia": kornias} | ({"lightly": lightlys} if with_lightly else {})
    made = {name: maker(x, case.batch) for name, maker in makers.items()}

    def timed(views: Views) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            views()
            return time.process_time() - began

        return run

    runs = {name: timed(views) for name, views in made.items()}
    for run in runs.values():
        run()
    seconds = rounds_of(runs, case.rounds)
    return {
        "case": case._asdict(),
        "milliseconds": {name: round(1000 * statistics.median(s), 1) for name, s in seconds.items()},
        "ours_over": {name: spread(seconds["labelproof"], s) for name, s in seconds.items() if name != "labelproof"},
    }


def about() -> dict[str, Any]:
    """Where and with what."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with its build
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version(), **versions},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """What was found, for a terminal."""
    if found["no_lightly"]:
        yield f"lightly is left out, {found['no_lightly']}: this script's docstring says how to install it"
    parts = {**{f"a step, {name}": part for name, part in found["steps"].items()}, "two views": found["augmentation"]}
    for title, part in parts.items():
        yield f"\n{title}, {part['case']['batch']} images: milliseconds, and ours as a multiple"
        for name, ms in part["milliseconds"].items():
            r = part["ours_over"].get(name)
            yield f"  {name:28} {ms:8.1f}" + (f"  {r['median']:.2f} {r['quartiles']}" if r else "")
    if "within_bound" in found:
        yield f"\nat most {BOUND} times lightly's step, small CNN: {'yes' if found['within_bound'] else 'NO'}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=[*CASES], action="append", help="some networks only; all by default")
    parser.add_argument("--rounds", type=int, help="steps of each contender, instead of each case's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random images: where CIFAR-10 is not at hand")
    parser.add_argument("--quick", action="store_true", help="try the script out in seconds")
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    _keep_memory()
    why = lightly_or_why()
    common = {"random": args.random or args.quick, "with_lightly": not why}

    def fitted(case: Case) -> Case:
        case = case._replace(batch=16, rounds=2, batches=2) if args.quick else case
        return case._replace(rounds=args.rounds) if args.rounds else case

    found: dict[str, Any] = {**about(), "no_lightly": why}
    found["steps"] = {name: steps(fitted(CASES[name]), **common) for name in args.case or CASES}
    found["augmentation"] = augmentation(fitted(CASES["cnn"]), **common)
    if not why:
        found["losses_differ_by"] = losses_agree()
        if "cnn" in found["steps"]:
            found["within_bound"] = found["steps"]["cnn"]["ours_over"][LIGHTLY]["median"] <= BOUND
    print("\n".join(report(found)))
    save(found, args.out)
    return found


if __name__ == "__main__":
    main()
