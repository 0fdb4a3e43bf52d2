"""`fit_once`: the training loop.

Its scope is device, precision, accumulation, clipping, schedule, evaluation, early stopping, checkpoints and logs.
Whatever else a method needs belongs to the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.state import per_sample_bytes
from labelproof.core.storage import kept_as
from labelproof.core.types import Batch
from labelproof.data.dataset import Data
from labelproof.data.feed import Feed, endless
from labelproof.data.seeds import derive
from labelproof.engine import checkpoint
from labelproof.engine.evidence import Evidence, Tally
from labelproof.engine.fitted import Fitted
from labelproof.engine.guards import check_network, check_ways
from labelproof.engine.inputs import Inputs, digest, input_shape, prepare
from labelproof.engine.launch import launch
from labelproof.engine.logs import Progress, tensorboard_writer, write_metrics
from labelproof.engine.settings import Settings
from labelproof.engine.stopping import EarlyStopping
from labelproof.engine.training import Training, scan

#: From the number of the peer to its network, freshly initialised; or, if it has an `encoder`, started from that.
Factory = Callable[[int], nn.Module]


def fit_once(
    method: Method,
    factory: Factory,
    data: Data,
    settings: Settings,
    *,
    test: Data | None = None,
    streams: Mapping[str, Data] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    tensorboard: bool = False,
    stamp: Mapping[str, Any] | None = None,
    title: str = "",
) -> Fitted:
    """Train `method` on `data`, once.

    Arguments, result and errors are those of `labelproof.engine.stages.fit`; `title` is for the progress display.
    """
    if folder is None and (resume or tensorboard):
        raise ValueError("resume and tensorboard need a folder")
    check_ways(method, settings)
    fabric = launch(settings, method)
    everything = {**settings.asdict(), **(stamp or {})}
    if folder is not None:
        everything |= {"data": digest(data), "test": "" if test is None else digest(test)}
        everything |= {name: digest(side) for name, side in (streams or {}).items()}
    cuda = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # dropout and weight initialisation draw from torch's generators
        encoder = getattr(factory, "encoder", None)
        inputs = prepare(method, data, test, streams or {}, settings, fabric.device, encoder)
        loop = _Loop(fabric, deepcopy(method), factory, inputs, settings, folder)
        if resume and folder is not None:
            state = checkpoint.load(folder)
            checkpoint.check_same(state["stamp"], everything)
            loop.load_state_dict(state)
        loop.run(folder, everything, verbose, tensorboard, title or type(method).__name__)
        return loop.result()


class _Loop:
    """The state of one call of `fit_once`; `state_dict` holds all of it."""

    def __init__(
        self, fabric: Fabric, method: Method, factory: Factory, inputs: Inputs, settings: Settings, folder: Path | None
    ) -> None:
        self.fabric, self.method, self.inputs, self.settings = fabric, method, inputs, settings
        data, task = inputs.data, inputs.task
        peers = []
        for k in range(method.peers):
            torch.manual_seed(derive(settings.seed, "network", k))
            peers.append(factory(k))
        check_network(peers[0], method, input_shape(data), task.num_outputs)
        memory = settings.memory if settings.memory != "mmap" or folder is None else f"mmap:{folder}"
        with kept_as(memory):
            method.setup(task, len(data), peers[0])
        nets = Nets(peers, twins=method.twins)
        self.training = Training(fabric, method, nets, settings, inputs.train.steps)
        self.evidence = Evidence(task, inputs.given, memory).to(fabric.device)
        known = data.truth is not None and data.classes is not None
        self.tally = Tally(task, torch.from_numpy(data.truth).to(fabric.device) if known else None)
        self.stopping = EarlyStopping(settings.patience if settings.early_stopping else None)
        self.epoch = self.next_step = 0
        self.saw_plain = True  # whether the method's forward passes show the ordinary view
        self.history: list[dict[str, Any]] = []
        self.elapsed = 0.0
        torch.manual_seed(derive(settings.seed, "train", fabric.global_rank))

    def run(self, folder: Path | None, stamp: Mapping[str, Any], verbose: int, tensorboard: bool, title: str) -> None:
        """Train to the end, with checkpoints and logs."""
        first, s = self.fabric.is_global_zero, self.settings

        def save() -> None:
            if folder is not None:
                state = {**self.state_dict(), "stamp": stamp}  # collective: on every rank
                if first:
                    checkpoint.save(folder, state)
                    write_metrics(folder / "metrics.csv", self.history)
                self.fabric.barrier()

        steps = self.inputs.train.steps
        bar = Progress(verbose if first else 0, title, s.epochs, steps, self.epoch)
        events = tensorboard_writer(folder) if tensorboard and folder and first else None
        bar.note(s.memory, method=per_sample_bytes(self.method), record=self.evidence.nbytes)
        with closing(bar), closing(events) if events is not None else nullcontext():
            while not self.finished:
                owed = False
                for step in self.steps():
                    bar.step()
                    owed |= s.checkpoint_every > 0 and (step + 1) % s.checkpoint_every == 0
                    # not between accumulated batches, whose gradients no checkpoint holds; the epoch's end saves anyway
                    if owed and self.training.due and step + 1 < steps:
                        self.training.share_buffers()
                        save()
                        owed = False
                row = self.end_epoch()
                save()
                bar.epoch(row)
                if events is not None:
                    for name, value in row.items():
                        events.add_scalar(name, value, row["epoch"])

    @property
    def finished(self) -> bool:
        return self.stopping.stopped or self.epoch >= self.settings.epochs

    def steps(self) -> Iterator[int]:
        """Train through the present epoch from where it stands; yields after each step."""
        self.training.module.train()
        start, began, train = self.next_step, time.perf_counter(), self.inputs.train
        side = {k: endless(f, self.epoch * train.steps + start) for k, f in self.inputs.side.items()}
        for step, plain in enumerate(train.epoch(self.epoch, start=start), start):
            batch = plain._replace(side={k: next(it) for k, it in side.items()}) if side else plain
            loss = self.training.run_batch(batch, self.epoch, step)
            self.tally.loss(loss.value, loss.log)
            self.saw_plain = loss.out is not None
            if loss.out is not None:
                prob = self.inputs.task.prob(loss.out.detach())  # of one network, or of each peer
                prob = prob.mean(0) if prob.ndim == 3 else prob
                self.evidence.record(batch.index, prob, loss.trust)
                self.tally.predictions(batch.index, prob, batch.target, loss.trust)
            self.next_step = step + 1
            yield step
        self.elapsed += time.perf_counter() - began

    def end_epoch(self) -> dict[str, Any]:
        """Let the method look back, evaluate, and move on to the next epoch."""
        began, inputs = time.perf_counter(), self.inputs
        now = self.training.clock(self.epoch, inputs.train.steps)
        self.training.share_buffers()
        figures = self.method.after_epoch(self.training.nets, partial(self._scan, inputs.train), now) or {}
        if not self.saw_plain:  # one evaluation pass stands in for the predictions training did not show
            index, prob = self._scan(inputs.train, self._predict)
            self.evidence.record(index, prob, joint=True)
            self.tally.predictions(index, prob, self.evidence.given[index])
        row: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.training.lr, **self.tally.read(), **figures}
        if not math.isfinite(row["loss"]):
            raise ValueError(
                f"training diverged in epoch {row['epoch']}: the loss is {row['loss']}; lower lr={self.settings.lr} "
                "or set clip"
            )
        if inputs.valid is not None:
            index, prob = self._scan(inputs.valid, self._predict)
            self.evidence.record(index, prob, joint=True)
            row[f"val_{inputs.metric}"] = inputs.score(inputs.data, index, prob)
            self.stopping.watch(self.epoch + 1, inputs.merit(index, prob), self.training.weights())
        if inputs.test is not None and inputs.test_data is not None:
            index, prob = self._scan(inputs.test, self._predict)
            row[f"test_{inputs.metric}"] = inputs.score(inputs.test_data, index, prob)
        self.elapsed += time.perf_counter() - began
        self.history.append(row | {"seconds": round(self.elapsed, 3)})
        self.epoch, self.next_step = self.epoch + 1, 0
        return self.history[-1]

    def _scan(self, feed: Feed, f: Callable[[Batch], Tensor], *, rows: int | None = None) -> tuple[Tensor, Tensor]:
        some = None if rows is None else self._some(rows)
        with self.fabric.autocast():
            return scan(self.training.nets, f, feed, min(1024, 4 * self.settings.batch_size), some)

    def _some(self, rows: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(derive(self.settings.seed, "scan", self.epoch))
        return rng.permutation(self.inputs.rows)[:rows]

    def _predict(self, batch: Batch) -> Tensor:
        return self.method.predict(self.training.nets, batch.x)

    _PLAIN = ("epoch", "next_step", "saw_plain", "history", "elapsed")

    def state_dict(self) -> dict[str, Any]:
        parts = {k: getattr(self, k).state_dict() for k in ("training", "evidence", "stopping", "tally")}
        parts["standardise"] = self.inputs.standardise.state_dict()
        parts["scale"] = {} if self.inputs.scale is None else self.inputs.scale.state_dict()
        return {**parts, **{k: getattr(self, k) for k in self._PLAIN}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.training.load_state_dict(state["training"])
        self.evidence.load_state_dict(state["evidence"])
        self.stopping.load_state_dict(state["stopping"])
        self.tally.load_state_dict(state["tally"], self.fabric.device)
        for name in self._PLAIN:
            setattr(self, name, state[name])

    def result(self) -> Fitted:
        """The run's end: under early stopping the best epoch's networks, else the last's."""
        inputs = self.inputs
        if self.stopping.weights:
            self.training.module.load_state_dict(self.stopping.weights, strict=False)
        return Fitted(
            method=self.method,
            nets=self.training.plain_nets(),
            task=inputs.task,
            data=inputs.data,
            rows=inputs.rows,
            held=inputs.held,
            standardise=inputs.standardise,
            scale=inputs.scale,
            settings=self.settings,
            history=self.history,
            best_epoch=self.stopping.epoch,
            evidence=self.evidence,
            paths=self.tally.paths.epochs if self.tally.paths is not None else [],
            shape=input_shape(inputs.data),
            top=inputs.top,
        )
