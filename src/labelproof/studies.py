"""What is trained for an answer and not for a model: which labels are wrong, which to keep, whether theory holds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from labelproof.core.encoder import Encoder
from labelproof.core.method import Method
from labelproof.data.dataset import Data
from labelproof.engine import checkpoint
from labelproof.engine.fitted import Fitted
from labelproof.engine.inputs import input_shape
from labelproof.engine.launchers import Launcher
from labelproof.engine.logs import say, write_text
from labelproof.engine.settings import Settings
from labelproof.engine.stages import Stages, fit
from labelproof.folders import as_json, is_first_process, opened
from labelproof.issues import NoiseEstimate, TargetNoiseEstimate, save_issues, summarise
from labelproof.methods import CE, INCV
from labelproof.networks.encoders import save_encoder
from labelproof.networks.factory import NetworkLike, as_factory, network_name
from labelproof.procedures.contrast import Contrast
from labelproof.procedures.cross_val import cross_val_probs, cross_val_targets
from labelproof.procedures.incv import Selection
from labelproof.procedures.ncv_theory import Verification, check_asked, verify
from labelproof.runs import describe, findings


class Pretrained(NamedTuple):
    """What was learned without labels, and figures: the contrastive loss, and what the monitors said."""

    encoder: Encoder
    result: dict[str, Any]


class Listed(NamedTuple):
    """What a cross-validation says of the labels: the list, worst first, how noisy they are, and figures."""

    issues: pd.DataFrame
    noise: NoiseEstimate | TargetNoiseEstimate
    result: dict[str, Any]


def held_out(
    data: Data,
    method: Method,
    network: NetworkLike,
    settings: Settings,
    folds: int,
    *,
    streams: Mapping[str, Data] | None = None,
    verbose: int = 0,
    launcher: Launcher | None = None,
) -> Listed:
    """The list of wrong labels by networks that were not trained on the samples they judge.

    Args:
        data: labels or targets, some of them wrong.
        method: what each fold is trained with, procedure and all.
        network: as for `labelproof.runs.train`.
        settings: how to train; their seed is that of the folds too.
        folds: at least 2.
        streams: as for `labelproof.runs.train`.
        verbose: 0 is silent.
        launcher: where the folds run side by side.

    Raises:
        ValueError: see `labelproof.procedures.cross_val.cross_val_probs` and `labelproof.engine.stages.fit`.
    """
    if launcher is not None and settings.devices > 1:
        raise ValueError(f"devices={settings.devices} beside a launcher: leave one of both out")
    factory = as_factory(network, input_shape(data), data.num_classes or data.y.shape[-1])
    tell, shown = verbose > 0 and is_first_process(), verbose if launcher is None else 0

    def train(part: Data, name: str) -> Fitted:
        return fit(method, factory, part, settings, streams=streams, verbose=shown)

    if tell and folds > 1:
        say(f"{folds} trainings, each on {1 - 1 / folds:.0%} of the samples")
    predict = cross_val_targets if data.classes is None else cross_val_probs
    told = (lambda name: say(f"{name} of {folds} finished")) if tell else None
    with warnings.catch_warnings():  # what is said of folds is not true of the data
        warnings.filterwarnings("ignore", "no training sample has the label")
        belief = predict(train, data, folds, seed=settings.seed, launcher=launcher, told=told)
    issues, noise = findings(data, belief)
    known = None if data.truth is None else (data.truth != data.y).reshape(len(data), -1).any(1)
    kind = "noise_rate" if data.classes is not None else "target_noise_rate"
    return Listed(issues, noise, {**summarise(issues, known), kind: float(noise.rate)})


def pretrain(
    data: Data,
    method: Contrast,
    network: NetworkLike,
    settings: Settings,
    out: Path | None = None,
    *,
    test: Data | None = None,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    command: str = "",
) -> Pretrained:
    """Train features without labels.

    Args:
        data: its labels are for the monitors alone.
        method: how.
        network: the name of a built-in network, or an encoder to go on from.
        settings: how to train.
        out: a .safetensors file for the encoder.
        test: for the linear probe, after each epoch.
        folder: gets `run.json`, `metrics.csv` and the checkpoints.
        resume: go on from the last checkpoint there.
        verbose: 0 is silent.
        command: how to repeat it, for the record.

    Raises:
        ValueError: see `labelproof.engine.stages.fit`.
        FileExistsError: the folder holds another run already.
    """
    record = {**describe(data, method, network, settings, test, command), "what": "encoder"}
    began = time.perf_counter()
    with opened(folder, record, resume, "--run"):
        fitted = fit(
            method,
            as_factory(network, input_shape(data), data.num_classes or data.y.shape[-1]),
            data,
            settings,
            test=test,
            folder=folder,
            resume=resume and folder is not None and checkpoint.begun(folder),
            verbose=verbose,
            stamp={"network": network_name(network)},
        )
    last = fitted.history[-1]
    kept = ("contrast", "agree", "knn_agreement", "test_accuracy", "test_rmse")
    result = {"epochs": last["epoch"], **{k: last[k] for k in kept if k in last}}
    result["seconds"] = round(time.perf_counter() - began, 2)
    if folder is not None and is_first_process():
        write_text(folder / "run.json", as_json({**record, "status": "finished", "result": result}))
    name = network.about.get("network") if isinstance(network, Encoder) else network_name(network)
    found = fitted.encoder()
    about = {"network": name, "by": method.title, "data": data.name, "n": len(data), "epochs": last["epoch"]}
    encoder = replace(found, about={**found.about, **about})
    if out is not None and is_first_process():
        save_encoder(encoder, out)
    return Pretrained(encoder, result)


def clean(
    data: Data,
    method: INCV,
    network: NetworkLike,
    settings: Settings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    command: str = "",
    launcher: Launcher | None = None,
) -> Selection:
    """The samples whose labels can be trusted, by INCV's first stage alone.

    Args:
        data: a classification data set.
        method: INCV; options of its second stage are not used.
        network: as for `labelproof.runs.train`.
        settings: how to train; each half is trained for `method.length` of the epochs.
        folder: gets `run.json`, `selection.csv` and the checkpoints of each half.
        resume: go on from what is finished there.
        verbose: 0 is silent.
        command: how to repeat it, for the record.
        launcher: where the two halves run side by side.

    Raises:
        ValueError: see `labelproof.procedures.incv.incv`.
        FileExistsError: the folder holds another run already.
    """
    record = {**describe(data, method, network, settings, None, command), "what": "selection"}
    began = time.perf_counter()
    with opened(folder, record, resume, "--run"):
        stages = Stages(
            factory=as_factory(network, input_shape(data), data.num_classes),
            settings=settings,
            stamp={"method": repr(method), "network": network_name(network)},
            folder=folder,
            resume=resume and folder is not None and checkpoint.begun(folder),
            verbose=verbose,
            launcher=launcher,
        )
        found = method.select(stages, data)
    if folder is not None and is_first_process():
        for name, columns in stages.tables.items():
            save_issues(pd.DataFrame(columns), folder / f"{name}.csv")
        result = {**stages.figures, "selected": len(found.selected), "selected_noise": found.selected_noise}
        result["seconds"] = round(time.perf_counter() - began, 2)
        write_text(folder / "run.json", as_json({**record, "status": "finished", "result": result}))
    return found


def theory(
    data: Data,
    network: NetworkLike,
    settings: Settings,
    kinds: Sequence[str],
    rates: Sequence[float],
    *,
    folder: Path,
    resume: bool = False,
    verbose: int = 0,
    command: str = "",
    launcher: Launcher | None = None,
) -> list[Verification]:
    """Noise put into one half of the data and learned, for each kind and rate, beside what theory expects.

    Args:
        data: a classification data set whose labels are right.
        network: as for `labelproof.runs.train`; it is trained with cross-entropy, which memorises.
        settings: how to train; its seed is that of the noise too.
        kinds: of noise, as `labelproof.procedures.ncv_theory.verify` takes them.
        rates: of noise.
        folder: gets `run.json`, `theory.csv` and the checkpoints of each training.
        resume: go on from what is finished there.
        verbose: 0 is silent.
        command: how to repeat it, for the record.
        launcher: where the rates run side by side.

    Raises:
        ValueError: see `labelproof.procedures.ncv_theory.verify`.
        FileExistsError: the folder holds another run already.
    """
    for kind in kinds:
        check_asked(data, kind, rates)
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"noise={','.join(kinds)!r} holds a kind more than once: each is trained once")
    method = CE()
    record = {**describe(data, method, network, settings, None, command), "what": "theory"}
    began = time.perf_counter()
    with opened(folder, record, resume):
        stages = Stages(
            factory=as_factory(network, input_shape(data), data.num_classes),
            settings=settings,
            stamp={"method": repr(method), "network": network_name(network)},
            folder=folder,
            resume=resume and checkpoint.begun(folder),
            verbose=verbose,
            launcher=launcher,
        )
        found = [verify(stages, method, data, kind=kind, rates=rates, seed=settings.seed) for kind in kinds]
    if is_first_process():
        table = pd.concat([v.table.assign(noise=v.kind) for v in found])
        save_issues(table[["noise", *found[0].table.columns]], folder / "theory.csv")
        largest = {v.kind: v.distance()["largest"].to_dict() for v in found}
        result = {"largest_distance": largest, "seconds": round(time.perf_counter() - began, 2)}
        write_text(folder / "run.json", as_json({**record, "status": "finished", "result": result}))
    return found
