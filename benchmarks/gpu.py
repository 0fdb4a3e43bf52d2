"""One part of the GPU suite; `benchmarks/gpu.sh PART` calls this with everything installed. docs/gpu.md says how.

A part stops itself before its time is up. What it was training goes on from its last checkpoint when the part, or the
one it names, is called again on the same machine. Each part leaves PART.json in the folder of results; recipes leave
the result of labelproof bench beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelproof.bench import results, run
from labelproof.bench.verdict import compare
from labelproof.data import noise
from labelproof.data.dataset import Data
from labelproof.engine.inputs import prepare
from labelproof.engine.launch import launch
from labelproof.engine.loop import _Loop
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.flags import words_of
from labelproof.methods import METHODS
from labelproof.networks import build
from labelproof.networks.base import Backbone
from labelproof.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/engine/test_cuda.py", "tests/engine/test_compile.py")
#: Part -> recipe, seconds of training it may take on an H100, and the part to call if it is out of time.
RECIPES = {
    "elr": ("elr-cifar10-sym40", 360, "elr"),
    **{f"elr-plus-{k}": ("elr-plus-cifar10-sym50", 1500, f"elr-plus-{min(k + 1, 4)}") for k in range(1, 5)},
}
PARTS = ("check", *RECIPES, "simclr", "speed")
#: Method -> network, for the times of a step.
STEPS = {"ce": "resnet34", "elr": "resnet34", "elr+": "preact-resnet18", "co-teaching": "preact-resnet18"}


class OutOfTimeError(Exception):
    """The part's seconds are over, or somebody asks it to stop."""


@dataclass
class Part:
    """What is asked for, and what is known so far; `found` is kept where the part is stopped."""

    name: str
    out: Path
    work: Path
    seconds: float
    device: str
    data_dir: Path | None = None
    recipe: str | None = None
    network: str = "resnet18"
    quick: bool = False
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def words(self) -> list[str]:
        """What is asked of every training beside its recipe."""
        fast = ["--precision=bf16-mixed"] if self.device == "cuda" else []
        return [f"--device={self.device}", *fast, *([f"--data-dir={self.data_dir}"] if self.data_dir else [])]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` after so many seconds, or on SIGTERM."""

    def stop(*_: Any) -> None:
        raise OutOfTimeError

    before = {s: signal.signal(s, stop) for s in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def call(*words: str) -> None:
    """Run Python with these words; it ends with this process."""
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    try:
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if status:
        raise RuntimeError(f"{' '.join(words)} ended with status {status}")


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The epochs of a run so far."""
    path = folder / "metrics.csv"
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def train_recipe(part: Part) -> str:
    """Run a recipe, or go on with it; returns how it ended."""
    name, target, following = RECIPES[part.name]
    recipe = load_recipe(part.recipe or name)
    kept, words = part.work / "results", part.words() + ["--compile"] * (part.device == "cuda")
    job = run.Job(recipe, 0, tuple(words))
    part.found |= {"recipe": recipe.name, "commands": run.commands(job, words_of), "target_seconds": target}
    try:
        for each in run.todo([recipe], 1, kept, words):
            if wrong := run.perform([each], kept, part.work, words=words_of):
                part.found["wrong"] = wrong[each.name].why
                return "failed"
    except OutOfTimeError:
        epochs = rows_of(part.work / job.name)
        part.found |= {"next": following, "epoch": len(epochs), "epochs": recipe.train.get("epochs")}
        part.found["training_seconds"] = float(epochs[-1]["seconds"]) if epochs else 0.0
        return "out of time"
    [made] = results.read(kept, [recipe]).of(recipe)
    shutil.copy(results.path_of(kept, recipe, 0), part.out)
    part.found |= {
        "training_seconds": made["seconds"],
        "within_target": made["seconds"] <= target,
        "metrics": made["metrics"],
        "verdict": str(compare(recipe, [made])),
    }
    return "finished"


def check(part: Part) -> str:
    """The tests that need a GPU, and what a kill changes."""
    report = part.work / "tests.xml"
    try:
        call("-m", "pytest", "-q", *TESTS, "-k", "cuda or gpu", f"--junitxml={report}")
    except RuntimeError as error:
        part.found["wrong"] = str(error)
    [suite] = ET.parse(report).getroot().iter("testsuite")
    part.found["tests"] = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    part.found["wrong_tests"] = [
        f"{c.get('classname')}::{c.get('name')}"
        for c in suite.iter("testcase")
        if c.find("failure") is not None or c.find("error") is not None
    ]
    part.found["resume"] = {how: resumed(part, how) for how in ("32-true", "bf16-mixed")}
    close = all(each["largest_difference"] <= 0.05 for each in part.found["resume"].values())
    there = all(each["state_on"] == part.device for each in part.found["resume"].values())
    ran = part.device == "cpu" or part.found["tests"]["skipped"] < part.found["tests"]["tests"]
    return "finished" if close and there and ran and "wrong" not in part.found else "failed"


def resumed(part: Part, precision: str) -> dict[str, Any]:
    """A run that is killed in its second epoch and goes on, beside one that is not."""
    data, how = images(256), Settings(epochs=3, batch_size=64, device=part.device, precision=precision, lr=0.01)
    folder, plain, left = part.work / f"killed-{precision}", Training.run_batch, 6

    def mortal(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return plain(*args)

    def train(**options: Any) -> Any:
        return fit(METHODS["elr"](), lambda k: build("cnn", (3, 32, 32), 10), data, how, **options)

    shutil.rmtree(folder, ignore_errors=True)
    whole = train()
    Training.run_batch = mortal  # type: ignore[method-assign]
    try:
        train(folder=folder)
    except KeyboardInterrupt:
        pass
    finally:
        Training.run_batch = plain  # type: ignore[method-assign]
    again = train(folder=folder, resume=True)
    pairs = [
        (x, y)
        for a, b in ((whole.nets, again.nets), (whole.method, again.method))
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    ]
    return {
        "bit_identical": all(torch.equal(x, y) for x, y in pairs),
        "largest_difference": max(float((x.double() - y.double()).abs().max()) for x, y in pairs),
        "state_on": {t.device.type for t in whole.method.state_dict().values()}.pop(),
        "loss": whole.history[-1]["loss"],
    }


def images(n: int) -> Data:
    """Random images, of which no time depends."""
    rng = np.random.default_rng(0)
    data = Data(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 10, classes=np.arange(10))
    return data.relabelled(noise.inject(data.y, "symmetric", 0.4, num_classes=10, seed=0).labels)


def simclr(part: Part) -> str:
    """Features for as many epochs as the time allows, then ELR from them under 40 % symmetric noise."""
    tried, folder, tuned = (part.work / f"simclr-{name}" for name in ("tried", "features", "tuned"))
    encoder = part.work / "simclr.safetensors"
    shared = ["cifar10", *part.words(), "--batch-size=512", "--quiet"]
    shared += ["--subset=600"] * part.quick
    for each in (tried, folder, tuned):
        shutil.rmtree(each, ignore_errors=True)
    features = ["-m", "labelproof", "pretrain", *shared, f"--network={part.network}", f"--out={encoder}"]
    call(*features, "--epochs=2", f"--run={tried}")
    first, second = (float(row["seconds"]) for row in rows_of(tried))
    each = second - first
    epochs = 1 if part.quick else max(1, int(0.6 * part.left / each))
    part.found |= {"network": part.network, "seconds_per_epoch": round(each, 3), "epochs": epochs}
    call(*features, f"--epochs={epochs}", f"--run={folder}")
    part.found["features"] = rows_of(folder)[-1]
    # an epoch of fine-tuning sees one view where one of features sees two
    turns = 1 if part.quick else min(40, max(1, int(0.5 * part.left / each)))
    part.found["tuned_epochs"] = turns
    words = ["--method=elr", "--noise=symmetric:0.4", f"--encoder={encoder}", f"--epochs={turns}", f"--out={tuned}"]
    call("-m", "labelproof", "train", *shared, *words)
    result = json.loads((tuned / "run.json").read_text())["result"]
    part.found["result"] = {key: value for key, value in result.items() if isinstance(value, (int, float))}
    return "finished"


def speed(part: Part) -> str:
    """Milliseconds of a step of each method, in each way; the fastest ways first, for time may be up."""
    part.found["milliseconds"] = made = []
    data = images(16 * 8 if part.quick else 128 * 60)
    for way in ({"precision": "bf16-mixed", "compile": True}, {"precision": "bf16-mixed"}, {"precision": "32-true"}):
        if part.quick and way.get("compile"):  # takes a compiler and a minute
            continue
        for last in (True, False):
            for name, network in STEPS.items():
                for benchmark in (False, True):
                    if benchmark and (not last or way.get("compile") or part.device != "cuda"):
                        continue
                    row = {"method": name, "network": "cnn" if part.quick else network, **way}
                    row |= {"channels_last": last, "cudnn_benchmark": benchmark}
                    made.append(row | step_of(part, row, data))
    return "finished"


def step_of(part: Part, row: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """Median and quartiles of a step, in milliseconds, after some that warm up; its share of memory."""
    how = Settings(
        epochs=2,
        batch_size=16 if part.quick else 128,
        device=part.device,
        precision=row["precision"],
        compile=row.get("compile", False),
        augment="crop-flip",
    )
    method, cuda = METHODS[row["method"]](), part.device == "cuda"
    plain, benchmark = Backbone.channels_last, torch.backends.cudnn.benchmark
    torch._dynamo.reset()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        torch.backends.cudnn.benchmark = row["cudnn_benchmark"]
        if not row["channels_last"]:
            Backbone.channels_last = property(lambda self: False)  # type: ignore[method-assign, assignment]
        fabric = launch(how, method)
        inputs = prepare(method, data, None, {}, how, fabric.device)
        loop = _Loop(fabric, method, lambda k: build(row["network"], (3, 32, 32), 10), inputs, how, None)
        began, times = time.perf_counter(), []
        for _ in loop.steps():  # the engine's own steps: feed, augmentation, schedule, optimiser, records
            if cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
    finally:
        Backbone.channels_last, torch.backends.cudnn.benchmark = plain, benchmark  # type: ignore[method-assign]
    low, mid, high = statistics.quantiles(times[len(times) // 3 : -1], n=4, method="inclusive")
    return {
        "median": round(mid, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "first": round(times[0], 1),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else None,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu", help="folder of what is not finished")
    parser.add_argument("--seconds", type=float, default=530, help="the part stops itself then")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--recipe", help="another recipe, or a TOML file, in place of the part's")
    parser.add_argument("--network", default="resnet18", help="of the part simclr: resnet18 or resnet50")
    parser.add_argument("--quick", action="store_true", help="try simclr and speed out; no figure worth reading")
    args = vars(parser.parse_args(argv))
    part = Part(args.pop("part"), **{k: v.absolute() if isinstance(v, Path) else v for k, v in args.items()})
    if part.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --device=cpu to try a part out")
    for folder in (part.out, part.work):
        folder.mkdir(parents=True, exist_ok=True)
    how = train_recipe if part.name in RECIPES else {"check": check, "simclr": simclr, "speed": speed}[part.name]
    try:
        with at_most(part.seconds):
            status = how(part)
    except OutOfTimeError:
        status = "out of time"
    record = {
        "part": part.name,
        "status": status,
        **part.found,
        "seconds": round(time.monotonic() - part.began, 1),
        "hardware": torch.cuda.get_device_name() if part.device == "cuda" else f"cpu, {os.cpu_count()} cores",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    (part.out / f"{part.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if "next" in part.found:
        print(f"out of time; it goes on with: benchmarks/gpu.sh {part.found['next']}")
    return 1 if status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
