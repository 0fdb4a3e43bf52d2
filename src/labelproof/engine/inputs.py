"""`Inputs`: data made ready for one run. Split, standardised, coded, and turned into feeds on the device."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelproof.core.encoder import Encoder
from labelproof.core.method import STREAMS, Method
from labelproof.core.task import Classification, Regression, Task
from labelproof.data.dataset import Data
from labelproof.data.feed import DeviceFeed, Feed, StreamFeed, load_item
from labelproof.data.seeds import derive
from labelproof.data.split import hold_out
from labelproof.data.transforms import FAR, Standardise, TargetScale
from labelproof.engine.guards import check_scale, name_of
from labelproof.engine.settings import Settings
from labelproof.functional.ranks import world_size

LEAST_TARGETS, LARGEST = 3, 1e300  # rows of a regression; the size of a target
_RATIO = 4  # of the largest values of images and of those an encoder was trained on: beyond, a warning
_SAMPLED = 2048  # items of a streamed data set from which mean, standard deviation and range are taken


@dataclass
class Inputs:
    """What the loop trains and evaluates on.

    Attributes:
        task: what is learned.
        data: the whole training set.
        rows: `(n,)` rows trained on.
        held: rows held out for validation, labels as given.
        standardise: fitted on the training rows.
        scale: of regression targets; `None` in classification.
        given: labels of all rows as networks see them: `(N,)` codes or `(N, D)` targets in robust units.
        train, valid, test, side: the feeds.
        test_data: the test set.
        top: the largest value of the images, of streamed ones as far as they were looked at.
    """

    task: Task
    data: Data
    rows: NDArray[np.int64]
    held: NDArray[np.int64]
    standardise: Standardise
    scale: TargetScale | None
    given: Tensor
    train: Feed
    valid: Feed | None
    test: Feed | None
    test_data: Data | None
    side: dict[str, Feed]
    top: float | None

    @property
    def metric(self) -> str:
        """What `score` gives."""
        return "accuracy" if self.scale is None else "rmse"

    def score(self, data: Data, index: Tensor, prob: Tensor) -> float:
        """Accuracy, or root mean squared error in the user's units, against the labels of `data`."""
        y = torch.from_numpy(data.y)
        if self.scale is None:
            return float(self.task.score(prob, y.to(prob.device)[index]).mean())
        off = self.scale.inverse(prob) - y[index.cpu()].double()
        unit = off.abs().max().clamp(min=torch.finfo(off.dtype).tiny)  # the square of 1e200 has no place in float64
        return float((off / unit).square().mean().sqrt() * unit) if unit.isfinite() else float(unit)

    def merit(self, index: Tensor, prob: Tensor) -> float:
        """What early stopping compares on held-out data, higher is better.

        Accuracy; or minus the median error, in units of spread, which the wrong targets among them hardly move.
        """
        given = self.given.to(prob.device)[index]
        if self.scale is None:
            return float(self.task.score(prob, given).mean())
        return -float((prob - given).norm(dim=1).median())


def prepare(
    method: Method,
    data: Data,
    test: Data | None,
    streams: Mapping[str, Data],
    settings: Settings,
    device: torch.device,
    encoder: Encoder | None = None,
) -> Inputs:
    """Check, split and standardise, and build the feeds.

    Inputs are scaled as those of the encoder that the networks start from, if they do.

    Raises:
        ValueError: method, data and test data do not fit together.
    """
    task = _task(method, data)
    _check_streams(method, data, streams)
    rows, held = _split(data, settings)
    _check(data, test, rows, held, settings)
    known, which = (data.x, rows) if isinstance(data.x, np.ndarray) else (_sample(data, rows, settings.seed), None)
    top = _top(data, known)
    standardise = (Standardise.fit(known, which) if encoder is None else _scaling(encoder, data, top)).to(device)
    scale = None if data.classes is not None else _target_scale(data.y[rows])

    def codes(of: Data) -> Tensor:
        y = torch.from_numpy(of.y)
        return y if scale is None else scale(y)

    def feed(
        of: Data, part: NDArray[np.int64], seed: int, views: tuple[str, ...] = ("weak",), batch_size: int | None = None
    ) -> Feed:
        colour = input_shape(of)[:-2] == (3,)
        common: dict[str, Any] = {
            "standardise": standardise,
            "device": device,
            "batch_size": min(batch_size or settings.batch_size, len(part)),
            "seed": seed,
            "views": views,
            "augment": settings.augment if settings.augment != "auto" else ("crop-flip" if colour else "none"),
        }
        if views != ("weak",):
            common["span"] = float(known.min()), float(known.max())
        if "contrast" in views and len(input_shape(of)) == 1:
            common["pool"] = torch.as_tensor(known[_spread(rows) if which is not None else slice(None)]).to(device)
        if settings.sampling == "balanced" and of is data and part is rows:
            common["balanced"] = settings.epoch_samples or len(rows)
        if isinstance(of.x, np.ndarray) and of.x.nbytes <= settings.resident_bytes:
            return DeviceFeed(of.x, codes(of).numpy(), part, **common)
        return StreamFeed(cast(Any, of.x), codes(of).numpy(), part, workers=settings.workers, **common)

    def side(name: str, of: Data) -> Feed:
        part = of.trained
        size = method.side_batch_size(name, settings.batch_size, len(rows), len(part))
        size = max(size // world_size(), 1) * world_size()  # a part for each rank
        return feed(of, part, derive(settings.seed, name), batch_size=size)

    return Inputs(
        task=task,
        data=data,
        rows=rows,
        held=held,
        standardise=standardise,
        scale=scale,  # stays on the host, in float64
        given=codes(data),
        train=feed(data, rows, settings.seed, method.views),
        valid=feed(data, held, settings.seed) if len(held) else None,
        test=feed(test, np.arange(len(test)), settings.seed) if test is not None else None,
        test_data=test,
        side={name: side(name, d) for name, d in streams.items()},
        top=top,
    )


def _scaling(encoder: Encoder, data: Data, top: float | None) -> Standardise:
    """How the inputs of an encoder are scaled.

    Raises:
        ValueError: it was trained on inputs of other channels or columns, or on another scale.
    """
    shape = input_shape(data)
    if len(encoder.mean) != shape[0]:
        name = encoder.about.get("name", "the encoder")
        raise ValueError(
            f"{name} was trained on inputs of {len(encoder.mean)} channels or columns, and one of {data.name} has "
            f"{shape[0]}"
        )
    if top is not None and encoder.top is not None:
        check_scale(top, encoder.top)
        if not 1 / _RATIO < top / encoder.top < _RATIO:
            warnings.warn(
                f"images of {data.name} go up to {top:.4g}, those the encoder was trained on to {encoder.top:.4g}: if "
                "that is another scale, give them on the encoder's",
                stacklevel=5,
            )
    return Standardise.scaled(encoder.mean, encoder.scale, len(shape))


def _task(method: Method, data: Data) -> Task:
    """What the labels make, refused where it is not for the method."""
    task: Task = Classification(data.num_classes) if data.classes is not None else Regression(data.y.shape[1])
    if task.kind not in method.tasks:
        allowed = " and ".join(sorted(method.tasks))
        raise ValueError(
            f"method {name_of(method)} is for {allowed}, but these labels make a {task.kind} task: choose a method for "
            f"{task.kind} (labelproof methods lists them), or labels for {allowed} (see --task)"
        )
    return task


def _split(data: Data, settings: Settings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows to hold out."""
    given = data.trained
    part, out = hold_out(data.y[given], float(settings.validation_fraction or 0), seed=derive(settings.seed, "holdout"))
    return given[part], given[out]


def _absent(data: Data, rows: NDArray[np.int64]) -> list[Any]:
    """Classes of which none of the rows is."""
    counts = np.bincount(data.y[rows], minlength=data.num_classes)
    return [c for c, n in zip(np.asarray(data.classes).tolist(), counts, strict=True) if n == 0]


def _top(data: Data, sample: Any = None) -> float | None:
    """The largest value of images; of streamed ones that of a sample, if there is one."""
    x = data.x if isinstance(data.x, np.ndarray) else sample
    return None if x is None or x.ndim != 4 else float(x.max())


def _check_streams(method: Method, data: Data, streams: Mapping[str, Data]) -> None:
    wanted = [s for s in method.streams if s != "train"]
    for name in wanted:
        if name not in streams:
            what = STREAMS.get(name, "further data")
            raise ValueError(
                f"method {name_of(method)} also needs {what}: --{name} DATA on the command line, "
                f"fit(X, y, {name}=(X_{name}, y_{name})) in Python"
            )
    for name, side in streams.items():
        if name in method.own_streams and name not in method.optional:
            continue
        if name not in (*wanted, *method.optional):
            raise ValueError(f"method {name_of(method)} has no use for {name}: leave it out")
        _check_like(data, side, name)
        if len(side) < 2 * world_size():  # of which BatchNorm needs two on each
            raise ValueError(f"{name} has {len(side)} samples: at least {2 * world_size()} are needed")
        if len(side) == len(data) and digest(side) == digest(data):  # hashing is a pass over all inputs
            warnings.warn(
                f"{name} is the training data itself, wrong labels included: nothing in it was verified", stacklevel=5
            )
        never = set(_absent(data, data.trained)) if data.classes is not None else set()
        absent = [] if side.classes is None else [c for c in _absent(side, np.arange(len(side))) if c not in never]
        if absent:
            raise ValueError(
                f"{name} ({side.name}) has no sample of the class {_few(absent)}, so that nothing is learned about its "
                "labels: add some of each class"
            )


def input_shape(data: Data) -> tuple[int, ...]:
    """Shape of one input."""
    return tuple(data.x.shape[1:]) if isinstance(data.x, np.ndarray) else tuple(load_item(data.x, 0).shape)


def digest(data: Data) -> str:
    """A short hash of inputs (where they are in memory) and given labels: is this the data the run was started on?"""
    h = hashlib.blake2b(digest_size=8)
    rows = [] if data.rows is None else [data.rows]
    for array in (data.y, data.x if isinstance(data.x, np.ndarray) else np.empty(0), *rows):
        h.update(f"{array.dtype.str}{array.shape}".encode())
        h.update(np.ascontiguousarray(array).data)
    return h.hexdigest()


def _sample(data: Data, rows: NDArray[np.int64], seed: int) -> Tensor:
    """Some inputs of a streamed data set, spread over the training rows, to take statistics from."""
    return torch.stack([load_item(data.x, int(i), seed) for i in _spread(rows)])


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of the rows, from the first to the last."""
    some: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(_SAMPLED, len(rows))).astype(int)]
    return some


def _check(data: Data, test: Data | None, rows: NDArray[np.int64], held: NDArray[np.int64], settings: Settings) -> None:
    least = 2 * world_size()
    if len(rows) < least:
        raise ValueError(f"too few training samples: n_samples={len(rows)}, but at least {least} are needed")
    if data.classes is None:
        _check_targets(data, rows)
    if len(rows) < settings.batch_size:
        warnings.warn(
            f"batch_size={settings.batch_size} is larger than the {len(rows)} training samples: "
            "each epoch is a single batch of all of them",
            stacklevel=5,
        )
    if data.classes is not None:
        seen = np.bincount(data.y[rows], minlength=data.num_classes)
        if (seen > 0).sum() < 2:
            only = data.classes.tolist()[int(seen.argmax())]
            raise ValueError(f"labels have one class only ({only!r}): at least two are needed to train a classifier")
        absent = _absent(data, rows)
        if absent:
            warnings.warn(f"no training sample has the label {_few(absent)}: it will never be predicted", stacklevel=5)
    if test is not None:
        _check_like(data, test, "test")
    if settings.early_stopping and len(held) == 0:
        raise ValueError(
            f"early_stopping=True, but {len(rows)} samples are too few to hold any out: leave it off "
            "(forward and backward correction without a matrix need it: give transition)"
        )


def _check_targets(data: Data, rows: NDArray[np.int64]) -> None:
    """Refuse targets that cannot be learned, or of which no list could be made after training."""
    if len(data) < LEAST_TARGETS:
        raise ValueError(
            f"too few training samples: n_samples={len(data)}, but regression needs at least {LEAST_TARGETS}, to tell "
            "a wrong target from a usual error"
        )
    _check_finite(data, data.name)
    y = data.y[rows]
    if (y == y[0]).all():
        raise ValueError(
            f"targets of {data.name} are constant ({', '.join(f'{v:g}' for v in y[0])} in all {len(y)} training rows): "
            "there is nothing to learn; was another column meant?"
        )
    size = np.abs(data.y)
    if float(size.max()) > LARGEST:
        row = data.ids[int(size.max(1).argmax())]  # folds and subsets have the ids of the whole
        raise ValueError(
            f"targets of {data.name} go up to {size.max():.3g} (row {row}), and no further than {LARGEST:g} can be "
            "computed with: correct the row, or give all targets in a larger unit"
        )


def _check_finite(data: Data, name: str) -> None:
    """Refuse targets that are NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(data.y).all(1))
    if len(bad):
        raise ValueError(
            f"targets of {name} are missing or infinite (NaN, inf) in {len(bad)} of {len(data)} rows, the first in row "
            f"{data.ids[bad[0]]}: drop those rows or fill them in"
        )


def _target_scale(y: NDArray[Any]) -> TargetScale:
    """The scale of the targets; how many of them are cut is said, and if one value stands out."""
    scale = TargetScale.fit(y)
    off = ((torch.from_numpy(y).double() - scale.centre) / scale.scale).abs().max(1).values
    if (count := int((off > FAR).sum())) > 0:
        warnings.warn(
            f"{count:,} of {len(y):,} targets lie more than {FAR:g} robust standard deviations from the median (the "
            f"furthest is {y[int(off.argmax())].max():.6g}) and are trained on as that far; lists have them as they "
            "are. If they are right, train on their logarithm",
            stacklevel=5,
        )
    values, counts = np.unique(y[:, 0], return_counts=True)
    if len(y) >= 50 and counts.max() > 0.3 * len(y):
        warnings.warn(
            f"{counts.max():,} of {len(y):,} targets are {values[counts.argmax()]:.6g}: beside so many equal ones "
            "right targets may look wrong; those might better be told apart by a classifier first",
            stacklevel=5,
        )
    return scale


def _check_like(data: Data, other: Data, name: str) -> None:
    """Refuse further data of other inputs or classes than the training data."""
    if input_shape(other) != input_shape(data):
        raise ValueError(f"{name} inputs have shape {input_shape(other)}, training inputs {input_shape(data)}")
    ours, theirs = ([] if d.classes is None else d.classes.tolist() for d in (data, other))
    if ours != theirs:
        raise ValueError(f"training and {name} data must have the same classes: {_few(ours)} is not {_few(theirs)}")
    if other.classes is None:
        _check_finite(other, name)
    tops = [_top(d) for d in (data, other)]
    if tops[0] is not None and tops[1] is not None:
        check_scale(tops[1], tops[0], f"{name} images")


def _few(values: list[Any]) -> str:
    return ", ".join(map(repr, values[:5])) + (f" (and {len(values) - 5} more)" if len(values) > 5 else "")
