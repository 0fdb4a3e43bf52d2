r"""Iterative noisy cross-validation (INCV): which labels to train on.

Chen, Liao, Chen, Zhang, "Understanding and utilizing deep neural networks trained with noisy labels", ICML 2019,
Algorithms 1 (NCV: one iteration) and 2. Selected S = {}, candidates C = all samples. In each iteration:

    (1)  C = C1 + C2, random halves, each class in the same proportion
    (2)  f1 trained on S + C1 and f2 on S + C2, both from new, equal weights
    (3)  T1 = {i in C2: f1(x_i) = y_i}, T2 likewise: out of sample, so that a memorised label gains nothing
    (4)  in the first iteration: the noise, from the predictions of (3) (`labelproof.procedures.noise_model`)
    (5)  R1 = the d |T1| samples of C2 with the largest loss, R2 likewise,  d = min(eps / (1 - eps), 2)
    (6)  S += T1 + T2,   C -= T1 + T2 + R1 + R2

Then a method trains on S, and on C where it can tell which of those are right (`labelproof.methods.incv`).

Deviations. The kind of noise is found, not told. (5) is done for symmetric noise alone, as in the released code, which
is told so. The epoch of f1 and f2 is chosen on a part of their own training samples; the released code chooses it on
the half that is then filtered. No sample is discarded where d |T| < 1; there the released code discards the whole half.
Optimisers begin anew with each network, where there the moments live on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.core.method import Fit, Method, NoiseRate, Planned
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.data.dataset import Data
from labelproof.data.seeds import derive
from labelproof.functional.ranks import of_first_rank
from labelproof.procedures.noise_model import HIGHEST, NoiseModel, noise_model

#: Share of a training part that chooses the epoch, and the fewest samples of which such a share is worth something.
HELD, LEAST_HELD = 0.1, 200

Rows = NDArray[np.int64]


class Selection(NamedTuple):
    """What INCV came to.

    Attributes:
        selected: `(n,)` int64, rows whose labels agree with what was predicted for them.
        candidates: `(m,)` int64, rows that neither agreed nor were discarded.
        noise: the noise of the whole data set, from the first iteration.
        selected_noise: in [0, 1), estimated share of wrong labels among the selected.
        prob: `(N, K)` float32, for each sample the last prediction of a network that was not trained on it.
        iterations: one dict each: counts, agreement, estimated precision, and where the truth is known precision and
            recall of the selected set.
        columns: the table: `id, y_noisy, select, candidate, eval_ratio`, and `y` where the truth is known.
    """

    selected: Rows
    candidates: Rows
    noise: NoiseModel
    selected_noise: float
    prob: NDArray[np.float32]
    iterations: list[dict[str, float]]
    columns: Mapping[str, NDArray[Any]]


class Plain(Method):
    """What each half is trained with: the mean loss of all samples."""

    name = "incv"

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        return Loss(self.task.loss(out, batch.target).mean(), out=out)


def incv(
    fit: Fit,
    data: Data,
    *,
    method: Method | None = None,
    iterations: int = 4,
    length: float = 0.5,
    discard: str = "auto",
    choose: str = "validation",
    noise_rate: NoiseRate = "auto",
    seed: int = 0,
) -> Selection:
    """Select the samples whose labels agree with predictions of networks that have not seen them.

    Args:
        fit: trains once.
        data: a classification data set.
        method: what the networks of each half are trained with; cross-entropy, as in the paper, if `None`.
        iterations: how often; 1 is NCV.
        length: share of the run's epochs that each half is trained for.
        discard: `"always"` does (5), `"never"` does not, `"auto"` does if the noise is symmetric.
        choose: `"validation"` takes each network's best epoch on a tenth of its training samples (of fewer than 200
            there is no such tenth, and it takes the last), `"last"` its last.
        noise_rate: the share of wrong labels where it is known, else `"auto"`.
        seed: of the halves.

    Returns:
        The selection; it is left with the run as the table `selection`, too.

    Raises:
        ValueError: too few samples for two halves, or no prediction agrees with its label.
    """
    _check(data)
    state, trainee = _State(data, seed), method or Plain()
    for number in range(1, iterations + 1):
        before = len(state.selected)
        parts = state.halves(number)
        plans = [
            Planned(trainee, data.take(rows), f"iteration-{number}-half-{k}", length, _choosing(choose, len(rows)))
            for k, rows in enumerate((np.sort(np.r_[state.selected, p]) for p in parts), 1)
        ]
        with warnings.catch_warnings():  # what is said of parts is not true of the data
            warnings.filterwarnings("ignore", "no training sample has the label")
            warnings.filterwarnings("ignore", "batch_size=|warmup=")
            trained = fit.all(plans)
        for fitted, out in zip(trained, parts[::-1], strict=True):
            state.prob[out] = of_first_rank(fitted.predict(data.take(out).x))
        state.measure(None if isinstance(noise_rate, str) else noise_rate)
        state.update(parts, discard == "always" or (discard == "auto" and state.noise[0].kind == "symmetric"))
        row = state.row(number)
        fit.note(
            _told(row, state.noise[0] if number == 1 else None),
            incv=state.rows,
            incv_noise={"kind": state.noise[0].kind, "rate": state.noise[0].rate, "doubt": state.noise[0].doubt},
        )
        if number == 1 and state.noise[0].doubt:
            _warn(state.noise[0], given=not isinstance(noise_rate, str))
        if len(state.selected) == before and number > 1:
            break  # other halves found nothing new
        if len(state.candidates) < 2 or len(np.unique(data.y[state.candidates])) < 2:
            break
    if state.keep_every_class():
        fit.note(_told(state.row(number), None), incv=state.rows)
    selection = state.result()
    fit.table("selection", selection.columns)
    return selection


def _choosing(choose: str, rows: int) -> dict[str, Any]:
    if choose == "last" or rows < LEAST_HELD:
        return {"early_stopping": False, "validation_fraction": 0.0}
    return {"early_stopping": True, "validation_fraction": HELD}


class _State:
    """S and C on their way."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed = data, seed
        self.selected: Rows = np.empty(0, dtype=np.int64)
        self.candidates: Rows = data.trained
        self.prob = np.full((len(data), data.num_classes), np.nan, dtype=np.float32)
        self.noise: list[NoiseModel] = []  # of the candidates, in each iteration
        self.taken: list[int] = []  # so many at a time, of which this share is estimated right
        self.precision: list[float] = []
        self.rows: list[dict[str, float]] = []

    def halves(self, number: int) -> tuple[Rows, Rows]:
        """(1). A class with an odd number has one more in either."""
        rng = np.random.default_rng(derive(self.seed, "incv", number))
        rows = rng.permutation(self.candidates)
        rows = rows[np.argsort(self.data.y[rows], kind="stable")]
        return np.sort(rows[::2]), np.sort(rows[1::2])

    def measure(self, rate: float | None) -> None:
        """(4), of the candidates of this iteration."""
        among = self.candidates
        found = noise_model(self.data.y[among], self.prob[among], rate if not self.noise else None)
        self.noise.append(found)
        self.precision.append(found.precision if np.isfinite(found.precision) else 0.0)

    def update(self, parts: tuple[Rows, Rows], discard: bool) -> None:
        """(3), (5) and (6)."""
        eps = self.noise[0].rate
        ratio = min(eps / (1 - eps), 2.0) if discard else 0.0
        taken, gone = [], []
        for rows in parts:
            p, y = self.prob[rows], self.data.y[rows]
            agrees = p.argmax(1) == y
            worst = np.argsort(p[np.arange(len(rows)), y], kind="stable")  # the largest loss first
            taken.append(rows[agrees])
            gone.append(rows[worst[: int(ratio * agrees.sum() + 1e-6)]])  # .6 / .4 is a little less than 1.5
        new = np.concatenate(taken)
        self.taken.append(len(new))
        self.selected = np.sort(np.r_[self.selected, new])
        self.candidates = np.setdiff1d(self.candidates, np.r_[new, np.concatenate(gone)])
        if len(self.selected) == 0:
            raise ValueError(
                "INCV selected nothing: no prediction agreed with the label of a sample left out. The networks have "
                "learned nothing: train for more epochs, with another lr, or on more informative inputs"
            )

    def keep_every_class(self) -> bool:
        """Take a class of which nothing was selected as it is, and say whether there was one.

        Rare classes are not wrong for being rare. As many of their labels count as wrong as of all.
        """
        y, all_rows = self.data.y, self.data.trained
        lost = np.setdiff1d(y[all_rows], y[self.selected])
        if len(lost) == 0:
            return False
        kept = all_rows[np.isin(y[all_rows], lost)]
        self.selected, self.candidates = np.union1d(self.selected, kept), np.setdiff1d(self.candidates, kept)
        names = ", ".join(map(repr, np.asarray(self.data.classes)[lost].tolist()[:5]))
        warnings.warn(
            f"INCV selected no sample of the class {names}: its {len(kept)} samples are kept as they are, unchecked; "
            "if these are many, train for longer",
            stacklevel=4,
        )
        self.taken.append(len(kept))
        self.precision.append(1 - self.noise[0].rate)
        self.rows.pop()
        return True

    @property
    def selected_noise(self) -> float:
        """Wrong among the selected, by what each iteration estimated of those it took."""
        return min(1 - float(np.average(self.precision, weights=self.taken)), HIGHEST)

    def row(self, number: int) -> dict[str, float]:
        """The figures of an iteration."""
        row: dict[str, float] = {
            "iteration": number,
            "selected": len(self.selected),
            "candidates": len(self.candidates),
            "agreement": self.noise[-1].agreement,
            "estimated_precision": 1 - self.selected_noise,
        }
        if self.data.truth is not None:
            clean = self.data.truth == self.data.y
            right = int(clean[self.selected].sum())
            row["label_precision"] = right / max(len(self.selected), 1)
            row["label_recall"] = right / max(int(clean[self.data.trained].sum()), 1)
        self.rows.append(row)
        return row

    def result(self) -> Selection:
        data, n = self.data, len(self.data)
        classes = np.asarray(data.classes)
        columns: dict[str, NDArray[Any]] = {"id": data.ids, "y_noisy": classes[data.y]}
        for name, rows in (("select", self.selected), ("candidate", self.candidates)):
            columns[name] = np.isin(np.arange(n), rows)
        columns["eval_ratio"] = np.full(n, self.noise[0].rate)
        if data.truth is not None:
            columns["y"] = classes[data.truth]
        return Selection(
            self.selected, self.candidates, self.noise[0], self.selected_noise, self.prob, self.rows, columns
        )


def _check(data: Data) -> None:
    """Refuse what has no two halves; name what will never be selected."""
    if data.classes is None:
        raise ValueError("INCV compares predicted with given classes: it has nothing to say of numbers")
    counts = np.bincount(data.y[data.trained], minlength=data.num_classes)
    if (counts >= 2).sum() < 2:
        raise ValueError(
            "INCV trains on one half and asks of the other, so it needs two classes of at least two samples each, and "
            f"the classes have {', '.join(map(str, counts[:10]))}: label more samples"
        )
    if (counts == 1).any():
        single = data.classes[counts == 1].tolist()
        warnings.warn(
            f"one sample each has the label {', '.join(map(repr, single[:5]))}: no network that has seen the class is "
            "asked about it, so that its label cannot be checked",
            stacklevel=3,
        )


def _warn(model: NoiseModel, *, given: bool) -> None:
    what = f"the kind of noise ({model.kind})" if given else f"the noise estimate ({model.rate:.1%}, {model.kind})"
    remedy = "train for longer" if given else "give noise_rate if you know it, or train for longer"
    warnings.warn(f"{what} is little to go by: {model.doubt}; {remedy} or on more informative inputs", stacklevel=3)


def _told(row: Mapping[str, float], noise: NoiseModel | None) -> str:
    kind = f"; noise {noise.kind} {noise.rate:.1%}" if noise is not None else ""
    known = (
        f" (label precision {row['label_precision']:.1%}, recall {row['label_recall']:.1%})"
        if "label_precision" in row
        else ""
    )
    return (
        f"INCV {row['iteration']:.0f}: {row['selected']:,.0f} selected{known}, {row['candidates']:,.0f} candidates"
        f"{kind}"
    )
