"""`Method`: one paper, mostly one function.

A subclass writes `loss` as the paper does, and `setup` where it keeps memory per sample. Hyper-parameters are
keyword-only constructor arguments, stored unchanged under the same names: the command line, `clone`, `GridSearchCV`
and the run's record are made from the signature alone.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from labelproof.core.encoder import Encoder
from labelproof.core.nets import Nets
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss

T = TypeVar("T")
MakeOptimizer = Callable[[Iterable[Any]], Optimizer]

#: Streams a method may ask for beside "train", and what they hold, for people.
STREAMS = {"clean": "samples whose labels were verified (best if they are in the training data as well)"}

#: A share of wrong labels, or that it is to be estimated first (`labelproof.procedures.noise_rate`).
NoiseRate = float | Literal["auto"]


class Scan(Protocol):
    """A pass over the training samples, as `Method.after_epoch` is given it."""

    def __call__(self, f: Callable[[Batch], Tensor], *, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Run `f` over plain batches in evaluation mode and without gradient.

        Args:
            f: from a batch to `(B, ...)`.
            rows: so many samples only, another random choice in each epoch; all of them if `None`.

        Returns:
            The ids `(n,)` and what `f` returned `(n, ...)`, of the samples of every rank.
        """


class Planned(NamedTuple):
    """One of several trainings that need nothing of each other; what `Fit.__call__` takes."""

    method: Method
    data: Any
    stage: str
    length: float = 1.0
    changes: Mapping[str, Any] = MappingProxyType({})


class Fit(Protocol):
    """One training, as `Method.run` is given it: network, settings and folder are those of the run."""

    def __call__(
        self,
        method: Method,
        data: Any,
        /,
        *,
        stage: str = "",
        length: float = 1.0,
        streams: Mapping[str, Any] | None = None,
        encoder: Encoder | None = None,
        **changes: Any,
    ) -> Any:
        """Train `method` on `data`.

        Args:
            method: hyper-parameters; a copy is trained.
            data: a `labelproof.data.dataset.Data`.
            stage: name of a training before the last one; its checkpoints get a folder of that name.
            length: share of the run's epochs it takes, at least one epoch.
            streams: data for the method's `own_streams`, by name.
            encoder: what the networks start from, e.g. that of an earlier stage (`Fitted.encoder`).
            changes: settings this training does differently, e.g. `early_stopping=True`.

        Returns:
            A `labelproof.engine.fitted.Fitted`.
        """

    @property
    def seed(self) -> int:
        """Of the run, for what a procedure draws itself."""
        return 0

    @property
    def given(self) -> frozenset[str]:
        """Names of the streams that the user gave."""
        return frozenset()

    def all(self, plans: Sequence[Planned]) -> list[Any]:
        """Several trainings that need nothing of each other, side by side where the run has processes for them.

        Args:
            plans: each with a stage of its own.

        Returns:
            What each came to, in order.
        """
        return [self(p.method, p.data, stage=p.stage, length=p.length, **p.changes) for p in plans]

    def note(self, text: str, **figures: Any) -> None:
        """Tell the user something beside the progress of training: what was chosen, say.

        Args:
            text: one line, printed where progress is and kept in the run's record.
            figures: the same for programs, into the result of the run.
        """

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        """Leave a table with the run.

        Args:
            name: of its file in the run's folder, without the ending.
            columns: arrays of one length, by name.
        """


class Run(Protocol):
    """What the engine offers to `Method.update`."""

    nets: Nets
    now: Clock

    @property
    def lr(self) -> float:
        """The learning rate of this step."""

    def forward(self, batch: Batch) -> Loss:
        """`Method.loss` in the run's precision and under its data-parallel wrapper."""

    def backward(self, value: Tensor) -> None:
        """Accumulate gradients of a scalar."""

    def step(self, *names: str) -> None:
        """Clip per network and step the optimisers of these names, or all, once enough batches are accumulated."""


class Method(nn.Module):
    """Base of every training method.

    Class attributes:
        name: what users call it; set where it is registered.
        title, paper, cost: one line each, for people.
        tasks: kinds of task it can learn.
        peers: number of networks trained side by side, each from its own initialisation.
        twins: whether each network has a moving-average twin.
        views: kinds of augmentation, one per view of each sample: `"weak"` is that of the run's settings, `"strong"`
            adds an automatic augmentation policy (images) or masking noise (rows).
        streams: feeds it needs; `"train"` always, others arrive in `batch.side`.
        optional: streams it makes do without.
        own_streams: feeds its `run` may give to `fit`, of which the user knows nothing; they arrive there as well.
        partial_graph: whether some parameters get no gradient in some steps (data-parallel wrappers must know).
        forbids: what it cannot work with, refused before training with the remedy: a kind of layer (`"batchnorm"`) or
            a way of training (`"devices"`: more than one, `"accumulate"`, `"16-mixed"`, `"compile"`).
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    cost: ClassVar[str] = "1 network, 1 forward pass"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    peers: ClassVar[int] = 1
    twins: ClassVar[bool] = False
    views: ClassVar[tuple[str, ...]] = ("weak",)
    streams: ClassVar[tuple[str, ...]] = ("train",)
    optional: ClassVar[tuple[str, ...]] = ()
    own_streams: ClassVar[tuple[str, ...]] = ()
    partial_graph: ClassVar[bool] = False
    forbids: ClassVar[frozenset[str]] = frozenset()

    task: Task

    def run(self, fit: Fit, data: Any) -> Any:
        """The whole procedure: one training, or several in sequence for the few methods that need them.

        Args:
            fit: trains once.
            data: the training data.

        Returns:
            What the last call of `fit` returned.
        """
        return fit(self, data)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        """Allocate per-sample state and auxiliary networks, once the data and the network are known.

        Args:
            task: what is learned; kept as `self.task`.
            num_samples: N, rows of the whole training set: ids are in [0, N).
            network: the first peer, to read shapes from.
        """
        self.task = task

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        """The paper."""
        raise TypeError(f"{type(self).__name__} must define loss(nets, batch, now)")

    def after_step(self, nets: Nets, batch: Batch, now: Clock) -> None:
        """Called after each optimiser step, e.g. to move the twins."""

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> Mapping[str, float] | None:
        """Called after each epoch.

        Args:
            nets: the networks.
            scan: `scan(f)` runs `f` over plain batches of all training samples, see `Scan`.
            now: the clock at the end of the epoch.

        Returns:
            Figures for the epoch's row of `metrics.csv`, if there are any.
        """
        return None

    def side_batch_size(self, stream: str, batch_size: int, rows: int, side_rows: int) -> int:
        """Samples of a side stream in each step: as many as of the training data.

        Args:
            stream: its name.
            batch_size: of the training data.
            rows: trained on.
            side_rows: of the stream.
        """
        return batch_size

    def optimizers(self, nets: Nets, make: MakeOptimizer) -> dict[str, Optimizer]:
        """Optimisers by name. `make(params)` builds the one the user chose; all are stepped once per step."""
        return {"nets": make([{"params": list(p.parameters())} for p in nets.peers])}

    def update(self, run: Run, batch: Batch) -> Loss:
        """One training step. Few methods need another one (bi-level optimisation does)."""
        loss = run.forward(batch)
        run.backward(loss.value)
        run.step()
        return loss

    def predict(self, nets: Nets, x: Tensor) -> Tensor:
        """`(B, O)` predictions: by default the mean probability (or value) over peers."""
        return torch.stack([self.task.prob(net(x)) for net in nets]).mean(0)

    def belief(self) -> Tensor | None:
        """`(N, K)` what the method holds to be each sample's class probabilities, if it keeps such a record.

        Where `None`, the engine's own record is used: each sample's probabilities averaged over its visits.
        """
        return None

    def suspicion(self) -> Tensor | None:
        """`(N,)` the method's own ranking, higher = more likely mislabelled, if it has one."""
        return None

    @classmethod
    def param_names(cls) -> list[str]:
        """Names of the hyper-parameters, from the constructor's signature.

        Raises:
            TypeError: an argument is not keyword-only (write `*` before the first).
        """
        own = cls.__init__ is not Method.__init__
        parameters = [p for p in inspect.signature(cls).parameters.values() if own]
        for p in parameters:
            if p.kind is not inspect.Parameter.KEYWORD_ONLY:
                raise TypeError(
                    f"{cls.__name__}.__init__: make {p.name!r} keyword-only, with * before the first argument"
                )
        return [p.name for p in parameters]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Hyper-parameters by name (scikit-learn's protocol, so that `clone` and `GridSearchCV` reach them)."""
        return {name: getattr(self, name) for name in self.param_names()}

    def set_params(self, **params: Any) -> Method:
        """Set hyper-parameters by name.

        Raises:
            ValueError: a name is not a hyper-parameter of this method, or a value is out of range.
        """
        check_param_names(type(self), params)
        for name, value in type(self)(**{**self.get_params(), **params}).get_params().items():
            setattr(self, name, value)
        return self

    def __sklearn_clone__(self) -> Method:
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"


def check_param_names(method: type[Method], params: Mapping[str, Any]) -> None:
    """Refuse names that are not hyper-parameters of `method`."""
    known = method.param_names()
    for name in params:
        if name not in known:
            raise ValueError(f"{method.__name__} has no hyper-parameter {name!r}; it has {', '.join(known) or 'none'}")


def in_range(name: str, value: float, low: float, high: float, *, closed: str = "both") -> float:
    """Return `value` if it lies between `low` and `high`, else raise `ValueError` naming all three.

    Args:
        name: the argument, for the message.
        value: what was given.
        low: lower bound.
        high: upper bound.
        closed: `"both"`, `"left"`, `"right"` or `"neither"` end belongs to the range.
    """
    above = value >= low if closed in {"both", "left"} else value > low
    below = value <= high if closed in {"both", "right"} else value < high
    if not (above and below):
        left, right = "[" if closed in {"both", "left"} else "(", "]" if closed in {"both", "right"} else ")"
        raise ValueError(f"{name}={value!r} must lie in {left}{low}, {high}{right}")
    return value


def one_of(name: str, value: T, allowed: Sequence[T]) -> T:
    """Return `value` if it is allowed, else raise `ValueError` naming argument, value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, allowed))}")
    return value


def check_warmup(warmup: int, now: Clock) -> None:
    """Warn, at the first step, where training ends before the warm-up does."""
    if warmup >= now.epochs and now.epoch == now.step == 0:
        warnings.warn(
            f"warmup={warmup} lasts for all epochs={now.epochs}: the method itself never begins; train for longer, or "
            "give a shorter warmup",
            stacklevel=2,
        )


def check_kept(keep: float, rows: int, now: Clock) -> None:
    """Warn, at the first step, where so small a share of a batch is less than one sample.

    Args:
        keep: share of each batch that is kept in the end.
        rows: of the joint batch of all ranks.
        now: the clock.
    """
    if keep * rows < 1 - 1e-6 and now.epoch == now.step == 0:
        if keep < 1e-6:
            said = "all samples of each batch are to be dropped, and one is always kept: lower the share"
        else:
            said = (
                f"a share of {keep:.3g} of a batch of {rows} is less than one sample, and one is always kept: fewer "
                f"are dropped than noise_rate says; give batch_size={math.ceil(1 / keep - 1e-6)} or more"
            )
        warnings.warn(said, stacklevel=2)


def check_noise_rate(value: NoiseRate, name: str = "noise_rate") -> NoiseRate:
    """Return `value` if it lies in [0, 1) or is `"auto"`, else raise `ValueError`."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"{name}={value!r} must be a number in [0, 1) or 'auto'")
        return value
    return in_range(name, value, 0, 1, closed="left")
