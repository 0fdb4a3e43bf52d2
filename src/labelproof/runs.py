"""From data and a method to a run: trained networks, the list of wrong labels, and a folder with all of it.

Both faces, the estimators and the command line, go through here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import labelproof
from labelproof.core.method import Method
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.data.feed import load_item
from labelproof.engine import checkpoint
from labelproof.engine.fitted import Fitted
from labelproof.engine.inputs import input_shape
from labelproof.engine.launchers import Launcher
from labelproof.engine.logs import write_metrics, write_text
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.folders import as_json, finite, is_first_process, opened
from labelproof.issues import (
    NoiseEstimate,
    TargetNoiseEstimate,
    estimate_noise,
    find_issues,
    save_issues,
    summarise,
)
from labelproof.issues.regression import robust_spread
from labelproof.issues.target_noise import examine_targets
from labelproof.methods import method_name
from labelproof.networks.factory import NetworkLike, as_factory, network_name

_GALLERY = 48
_WIDEST = 500  # columns that say where targets are noisier; more take longer than they are worth
_LEAST_EXPLAINED = 0.2  # share of the targets' spread; with less a list of wrong targets is one of rare ones


@dataclass
class Run:
    """A finished run.

    Attributes:
        fitted: networks and per-sample record.
        issues: the list of wrong labels, worst first, one row per training sample.
        noise: how noisy the labels are.
        result: the figures of `run.json`.
        folder: where it was written, if anywhere.
    """

    fitted: Fitted
    issues: pd.DataFrame
    noise: NoiseEstimate | TargetNoiseEstimate
    result: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def train(
    data: Data,
    method: Method,
    network: NetworkLike,
    settings: Settings,
    *,
    test: Data | None = None,
    streams: Mapping[str, Data] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    tensorboard: bool = False,
    command: str = "",
    launcher: Launcher | None = None,
) -> Run:
    """Train, list the wrong labels, and write the run's folder if one is given.

    Args:
        data: training data.
        method: what to train with.
        network: a built-in name, a module or a factory.
        settings: how to train.
        test: evaluated, never used for a choice.
        streams: further data the method asks for, by name, e.g. `{"clean": verified samples}`.
        folder: gets `run.json`, `metrics.csv`, `issues.csv`, `gallery.npz`, `simplex.npz` (where the truth is known),
            `report.html` with its pictures, what else the method leaves (INCV's `selection.csv`), and checkpoints.
        resume: go on from the folder's last checkpoint.
        verbose: 0 is silent.
        tensorboard: also write TensorBoard events.
        command: how to repeat the run, for its record.
        launcher: where trainings that need nothing of each other run side by side.

    Raises:
        ValueError: see `labelproof.engine.stages.fit`.
        FileExistsError: the folder holds another run already.
    """
    factory = as_factory(network, input_shape(data), data.num_classes or data.y.shape[-1])
    record = describe(data, method, network, settings, test, command)
    record["data"]["streams"] = {name: {"name": side.name, "n": len(side)} for name, side in (streams or {}).items()}
    began = time.perf_counter()
    with opened(folder, record, resume):
        resume = resume and folder is not None and checkpoint.begun(folder)  # killed early: begin again
        fitted = fit(
            method,
            factory,
            data,
            settings,
            test=test,
            streams=streams,
            folder=folder,
            resume=resume,
            verbose=verbose,
            tensorboard=tensorboard,
            stamp={"network": network_name(network)},
            launcher=launcher,
        )
    issues, noise = findings(data, fitted.belief(), fitted.suspicion(), fitted.columns())
    result = {**_result(fitted, issues, noise), **fitted.figures}
    result |= {"notes": fitted.notes} if fitted.notes else {}
    result = finite(result)
    result["seconds"] = round(fitted.seconds_before + fitted.history[-1]["seconds"], 2)
    result["seconds_with_report"] = round(time.perf_counter() - began, 2)
    run = Run(fitted, issues, noise, result, folder)
    if folder is not None and is_first_process():
        record["method"]["params"] |= _chosen(method, fitted.method)
        record["network"]["parameters"] = sum(p.numel() for p in fitted.nets[0].parameters())
        _write(folder, run, {**record, "status": "finished", "result": result})
    return run


def _chosen(asked: Method, trained: Method) -> dict[str, Any]:
    """Hyper-parameters that were left to the procedure (`noise_rate="auto"`), as they were trained with."""
    before, after = asked.get_params(), trained.get_params()
    return {k: v for k, v in after.items() if before.get(k) == "auto" and v != "auto"}


def findings(
    data: Data,
    belief: np.ndarray[Any, Any],
    suspicion: np.ndarray[Any, Any] | None = None,
    evidence: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> tuple[pd.DataFrame, NoiseEstimate | TargetNoiseEstimate]:
    """The list of wrong labels, worst first, and how noisy the labels are.

    Args:
        data: with the labels as given.
        belief: `(N, K)` class probabilities or `(N, D)` targets.
        suspicion: see `labelproof.issues.find_issues`.
        evidence: see there.
    """
    if data.classes is None:
        targets = data.y if data.given is None else data.given.reshape(data.y.shape)
        x = data.x
        features = x if isinstance(x, np.ndarray) and x.ndim == 2 and x.shape[1] <= _WIDEST else None
        _warn_unexplained(targets, belief)
        return examine_targets(targets, belief, features=features, ids=data.ids, evidence=evidence)
    labels, classes = data.classes[data.y], data.classes  # not codes, which could be taken for labels that are numbers
    with _in_terms_of_training():
        issues = find_issues(labels, belief, classes=classes, ids=data.ids, suspicion=suspicion, evidence=evidence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same remarks as find_issues has just made
        return issues, estimate_noise(labels, belief, classes=classes)


def _warn_unexplained(targets: np.ndarray[Any, Any], belief: np.ndarray[Any, Any]) -> None:
    """Say where a network has hardly learned anything: the largest residuals are then the rarest targets."""
    given = np.asarray(targets, dtype=np.float64)
    spread = robust_spread(given)
    known = spread > 0
    explained = 1 - float(np.mean((robust_spread(given - belief)[known] / spread[known]) ** 2)) if known.any() else 0.0
    if explained < _LEAST_EXPLAINED:
        warnings.warn(
            f"the network explains {max(explained, 0):.0%} of the spread of the targets, so that neither the list of "
            "wrong targets nor their estimated number can be trusted: train for more epochs, with another lr, or on "
            "more informative columns",
            stacklevel=4,
        )


#: What the list warns of, said to somebody who trained and brought no probabilities of his own.
_REMARKS = {
    "pred_probs says nothing": "the network has learned nothing about the labels yet, and the list of wrong labels "
    "cannot be trusted: train for more epochs, or with another lr",
    "the most probable class equals": "predictions agreed with every given label, so that none can be found wrong: "
    "they were all learnt, right or wrong; train for fewer epochs, or with a robust method",
}


@contextmanager
def _in_terms_of_training() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for each in caught:
        said = str(each.message)
        text = next((new for start, new in _REMARKS.items() if said.startswith(start)), said)
        warnings.warn(text, each.category, stacklevel=4)


def with_truth(issues: pd.DataFrame, data: Data) -> pd.DataFrame:
    """The list with a `truth` column, where the truth is known."""
    if data.truth is None:
        return issues
    if data.classes is None:
        return issues.assign(truth=data.truth[issues.index, 0]) if data.truth.shape[1] == 1 else issues
    return issues.assign(truth=data.classes[data.truth][issues.index])  # the table's index is the input's row number


def describe(
    data: Data, method: Method, network: NetworkLike, settings: Settings, test: Data | None, command: str
) -> dict[str, Any]:
    """The record of a run that begins, for `run.json`."""
    kind = "image" if len(input_shape(data)) == 3 else "rows"
    return {
        "labelproof": labelproof.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "status": "running",
        "data": {
            "name": data.name,
            "n": len(data),
            "n_test": 0 if test is None else len(test),
            "task": "classification" if data.classes is not None else "regression",
            "kind": kind,
            "classes": [] if data.classes is None else [str(c) for c in data.classes],
            "columns": list(data.columns),
            "target": data.target_name,
            "truth_known": data.truth is not None,
            "noise": data.noise,
        },
        "method": {
            "name": method_name(method),
            "title": method.title or type(method).__name__,
            "paper": method.paper,
            "params": method.get_params(),
        },
        "network": {"name": network_name(network)},
        "settings": settings.asdict(),
        "hardware": {
            "device": torch.cuda.get_device_name() if _on_cuda(settings) else "cpu",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _on_cuda(settings: Settings) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def _result(fitted: Fitted, issues: pd.DataFrame, noise: NoiseEstimate | TargetNoiseEstimate) -> dict[str, Any]:
    last, best = fitted.history[-1], fitted.best_epoch
    result: dict[str, Any] = {
        "epochs": last["epoch"],
        "split": _split_hash(fitted),
        **{k: v for k, v in last.items() if k.startswith("test_")},
    }
    metric = "rmse" if fitted.data.classes is None else "accuracy"
    if best:
        row = fitted.history[best - 1]
        result |= {"best_val_epoch": best, f"val_{metric}_best": row[f"val_{metric}"]}
        if f"test_{metric}" in row:
            result[f"test_{metric}_at_best_val"] = row[f"test_{metric}"]
    data = fitted.data
    found = summarise(issues, None if data.truth is None else (data.truth != data.y).reshape(len(data), -1).any(1))
    result |= {{"precision": "flagged_precision", "recall": "flagged_recall"}.get(k, k): v for k, v in found.items()}
    kind = "noise" if isinstance(noise, NoiseEstimate) else "target_noise"
    result |= {f"{kind}_rate": float(noise.rate), f"{kind}_interval": [float(v) for v in noise.interval]}
    if isinstance(noise, NoiseEstimate):
        result["noise_transition"] = np.round(noise.transition, 5).tolist()
        if data.truth is not None:
            k = data.num_classes
            counts = np.bincount(data.truth * k + data.y, minlength=k * k).reshape(k, k)
            result["true_rate"] = float((data.truth != data.y).mean())
            result["true_transition"] = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).round(5).tolist()
    result["peak_memory_mb"] = _peak_memory(fitted.settings)
    return result


def _split_hash(fitted: Fitted) -> str:
    """A short hash of which samples were trained on and which were held out."""
    h = hashlib.blake2b(digest_size=8)
    for rows in (fitted.rows, fitted.held):
        h.update(np.sort(rows).astype("<i8").tobytes() + b"|")
    return h.hexdigest()


def _peak_memory(settings: Settings) -> float | None:
    """MB of the device's memory, or of this process; `None` where the system does not say."""
    if _on_cuda(settings):
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux starts at the peak of the process that started this one
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "")
        return round(int(line.split()[1]) / 1024, 1) if line else None
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _write(folder: Path, run: Run, record: Mapping[str, Any]) -> None:
    from labelproof.report import write_report  # matplotlib and jinja2: only when a page is made

    data = run.fitted.data
    write_metrics(folder / "metrics.csv", run.fitted.history)
    save_issues(with_truth(run.issues, data), folder / "issues.csv")
    top = run.issues.head(_GALLERY)
    picked = top.index.to_numpy()
    if isinstance(data.x, np.ndarray):
        x = data.x[picked]
    else:
        x = np.stack([load_item(data.x, int(i)).numpy() for i in picked])
    shown = {"image": _as_pictures(x)} if x.ndim == 4 else {"rows": x.reshape(len(x), -1)}
    atomically(folder / "gallery.npz", lambda partial: np.savez_compressed(partial, rank=top["rank"], **shown))
    if run.fitted.paths:
        density = torch.stack(run.fitted.paths).numpy().astype(np.uint32)
        atomically(folder / "simplex.npz", lambda partial: np.savez_compressed(partial, density=density))
    for name, columns in run.fitted.tables.items():
        save_issues(pd.DataFrame(columns), folder / f"{name}.csv")
    write_text(folder / "run.json", as_json(record))
    write_report(folder)


def _as_pictures(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`(M, C, H, W)` inputs as `(M, H, W, C)` bytes; floats are stretched to their range."""
    if x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        x = ((x - low) / (high - low or 1.0) * 255).astype(np.uint8)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
