"""skorch: a `NeuralNetClassifier` whose loss is told which samples it sees."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from labelproof.core.state import SampleParameter
from labelproof.integrations import shared

try:
    from skorch import NeuralNetClassifier
    from skorch.dataset import Dataset as SkorchDataset
    from skorch.dataset import get_len
    from skorch.utils import to_tensor
except ImportError as error:
    raise shared.missing_library("skorch", "skorch") from error

__all__ = ["NoisyLabelNet"]


class NoisyLabelNet(NeuralNetClassifier):
    """`skorch.NeuralNetClassifier` for labelproof's losses: the module returns logits, the loss is given ids.

    The id of a sample is its row in what `fit` is given, whatever `train_split` and shuffling do; the loss's
    `num_samples` is filled in from there. `fit` and `partial_fit` also take ids of your own, `(N,)` integers, as
    `index=`; `partial_fit` with a part of the training set needs them. Validation and prediction use no ids; the
    validation loss is plain cross-entropy.

    Args:
        module: class or instance whose `forward` returns logits `(B, K)`.
        *args: for `NeuralNetClassifier`.
        criterion: a loss *class*; its arguments are `criterion__num_classes=...` and so on.
        predict_nonlinearity: from logits to probabilities.
        **kwargs: for `NeuralNetClassifier`; and for `SOPLoss`, `errors__lr_u` and `errors__lr_v`.

    >>> import numpy as np
    >>> from torch import nn
    >>> from labelproof.losses import ELRLoss
    >>> X, y = np.random.default_rng(0).normal(size=(40, 5)).astype("float32"), np.arange(40) % 2
    >>> net = NoisyLabelNet(nn.Linear(5, 2), criterion=ELRLoss, criterion__num_classes=2, max_epochs=2, verbose=0)
    >>> net.fit(X, y).predict_proba(X).shape
    (40, 2)
    """

    prefixes_: ClassVar[list[str]] = [*NeuralNetClassifier.prefixes_, "errors"]
    _ids: NDArray[np.int64] | None = None  # of the samples of the fit in progress
    _row_optimizers: Iterable[torch.optim.Optimizer] = ()

    def __init__(
        self,
        module: Any,
        *args: Any,
        criterion: Any,
        predict_nonlinearity: Any = partial(torch.softmax, dim=-1),  # noqa: B008  (skorch keeps arguments unchanged)
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, criterion=criterion, predict_nonlinearity=predict_nonlinearity, **kwargs)

    def fit(self, X: Any, y: Any = None, *, index: ArrayLike | None = None, **fit_params: Any) -> NoisyLabelNet:
        """Train from scratch (unless `warm_start`); raises as `partial_fit`."""
        if not self.warm_start or not self.initialized_:
            index = np.arange(_length(X)) if index is None else index
            self.num_samples_ = int(np.max(index)) + 1
        super().fit(X, y, index=index, **fit_params)
        return self

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, *, index: ArrayLike | None = None, **fit_params: Any
    ) -> NoisyLabelNet:
        """Train on, keeping the network and the per-sample state.

        Raises:
            ValueError: `X` has not the number of samples the loss knows and no ids are given; ids do not fit; or
                `errors__...` is unknown to the loss.
        """
        if not self.initialized_:
            self.num_samples_ = int(np.max(index)) + 1 if index is not None else _length(X)
            self.initialize()
        self._ids = _check_ids(index, _length(X), shared.num_samples(self.criterion_))
        self._row_optimizers = self._make_row_optimizers()
        try:
            super().partial_fit(X, y, classes, **fit_params)
        finally:  # a pickle would separate these optimisers from their parameters
            self._ids, self._row_optimizers = None, ()
        return self

    def set_params(self, **kwargs: Any) -> NoisyLabelNet:
        """Set parameters; `errors__...` hold from the next step on, and keep the network and the per-sample state."""
        errors = {key: value for key, value in kwargs.items() if key.split("__")[0] == "errors"}
        super().set_params(**{key: value for key, value in kwargs.items() if key not in errors})
        for key, value in errors.items():  # skorch knows only modules, criteria and optimisers
            setattr(self, key, value)
        if self._row_optimizers:  # a callback, in the middle of a fit
            self._row_optimizers = self._make_row_optimizers()
        return self

    def _make_row_optimizers(self) -> list[torch.optim.Optimizer]:
        if hasattr(self, "errors"):
            raise ValueError(f"errors={self.errors!r}: in skorch's way, write errors__lr_u=..., errors__lr_v=...")
        return shared.row_optimizers(self.criterion_, self.get_params_for("errors"))

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Arguments of a component; the criterion's `num_samples` is filled in from the data.

        Raises:
            ValueError: there has been no data yet.
        """
        params: dict[str, Any] = super().get_params_for(prefix)
        if prefix == "criterion" and inspect.isclass(self.criterion) and "num_samples" not in params:
            if "num_samples" not in inspect.signature(self.criterion).parameters:
                return params
            if not hasattr(self, "num_samples_"):
                raise ValueError("before any data, num_samples of the loss is unknown: set criterion__num_samples")
            params["num_samples"] = self.num_samples_
        return params

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Training and validation set; samples carry their ids through any split."""
        dataset = self.get_dataset(X, y)
        return super().get_split_datasets(_WithIds(dataset, self._ids), y, **fit_params)

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Outputs of the module, which does not see the ids."""
        return super().infer(x["X"] if _has_ids(x) else x, **fit_params)

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        """The criterion in training, plain cross-entropy in validation; `y_pred` are logits.

        Raises:
            ValueError: a training batch carries no ids.
        """
        target = to_tensor(y_true, device=self.device)
        if not training:
            return F.cross_entropy(y_pred, target)
        index = X[shared.INDEX] if _has_ids(X) else None
        return shared.compute_loss(self.criterion_, y_pred, target, index, "train through fit or partial_fit")

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimiser trains: all but learned rows (SOP's u and v), which have their own."""
        rows = {id(s.weight) for _, s in shared.per_sample(self.criterion_) if isinstance(s, SampleParameter)}
        return ((name, p) for name, p in super().get_all_learnable_params() if id(p) not in rows)

    def train_step(self, batch: Any, **fit_params: Any) -> Any:
        """One batch, and the step of the learned rows."""
        step = super().train_step(batch, **fit_params)
        shared.step_rows(self._row_optimizers)
        return step


class _WithIds(SkorchDataset):
    """`({"X": x, "index": id}, y)` for each `(x, y)` (module level: spawned workers pickle it)."""

    def __init__(self, base: Any, ids: Any) -> None:
        self.base, self.ids = base, ids
        self.X, self.y = getattr(base, "X", base), getattr(base, "y", None)  # what skorch's scoring reads

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, i: int) -> tuple[dict[str, Any], Any]:
        x, y = self.base[i]
        return {"X": x, shared.INDEX: int(self.ids[i])}, y


def _has_ids(x: Any) -> bool:
    return isinstance(x, dict) and x.keys() == {"X", shared.INDEX}


def _length(X: Any) -> int:
    return len(cast(Any, X)) if isinstance(X, Dataset) else int(get_len(X))


def _check_ids(index: ArrayLike | None, n: int, known: int | None) -> NDArray[np.int64]:
    ids = np.arange(n) if index is None else np.asarray(index, dtype=np.int64)
    if ids.shape != (n,):
        raise ValueError(f"index has shape {ids.shape}, but X has {n} samples: pass one id per sample")
    if known is not None and index is None and n != known:
        raise ValueError(
            f"X has {n} samples, but the loss was made for {known}: which of them these are is not known; "
            "pass their rows as index="
        )
    if known is not None and not 0 <= ids.min() <= ids.max() < known:
        raise ValueError(
            f"ids go from {ids.min()} to {ids.max()}, but the loss was made with num_samples={known}: "
            "set criterion__num_samples to the size of the whole training set"
        )
    return ids
