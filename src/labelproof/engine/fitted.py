"""`Fitted`: what a run leaves behind. Networks that predict, and a record of every label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelproof.core.encoder import Encoder, body
from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.task import Task
from labelproof.data.dataset import Data, MapStyle
from labelproof.data.feed import from_array, load_item
from labelproof.data.transforms import Standardise, TargetScale
from labelproof.engine.evidence import Evidence
from labelproof.engine.guards import check_scale
from labelproof.engine.settings import Settings


@dataclass
class Fitted:
    """A finished run.

    Attributes:
        method: the trained copy, with its per-sample state.
        nets: the networks, in evaluation mode.
        task: what was learned.
        data: the training data.
        rows, held: rows trained on and held out.
        standardise, scale: applied to inputs; undone on regression outputs.
        settings: of the run.
        history: one dict per epoch.
        best_epoch: epoch (from 1) of the best noisy validation score; 0 without validation.
        evidence: the per-sample record.
        paths: per epoch the counts of `labelproof.engine.paths.Paths`; empty where no truth is known.
        shape: of one input.
        top: the largest value of the training images, where they were an array.
        notes: what a procedure told before this training, one line each.
        figures: the same for programs.
        tables: what else it left, columns by name of the table.
        seconds_before: what the trainings before this one took.
    """

    method: Method
    nets: Nets
    task: Task
    data: Data
    rows: NDArray[np.int64]
    held: NDArray[np.int64]
    standardise: Standardise
    scale: TargetScale | None
    settings: Settings
    history: list[dict[str, Any]]
    best_epoch: int
    evidence: Evidence
    paths: list[Tensor]
    shape: tuple[int, ...]
    top: float | None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds_before: float = 0.0

    @torch.no_grad()
    def predict(self, x: NDArray[Any] | MapStyle, *, batch_size: int = 1024) -> NDArray[np.floating[Any]]:
        """Class probabilities `(n, K)` in float32, or targets `(n, D)` in the user's units and float64.

        Args:
            x: inputs of the shape the run was trained on.
            batch_size: inputs per forward pass.

        Raises:
            ValueError: inputs of another shape or scale.
        """
        if isinstance(x, np.ndarray) and x.ndim == 4 and self.top is not None:
            check_scale(float(x.max(initial=0)), self.top)
        self.nets.eval()
        parts = [self.method.predict(self.nets, self.standardise(b)) for b in self._batches(x, batch_size)]
        prob = torch.cat(parts) if parts else torch.empty(0, self.task.num_outputs)
        out: NDArray[np.floating[Any]] = (prob if self.scale is None else self.scale.inverse(prob)).cpu().numpy()
        return out

    def _batches(self, x: NDArray[Any] | MapStyle, batch_size: int) -> Iterator[Tensor]:
        device = next(self.nets.parameters()).device
        for at in range(0, len(x), batch_size):
            if isinstance(x, np.ndarray):
                part = from_array(x[at : at + batch_size])
            else:
                part = torch.stack([load_item(x, i) for i in range(at, min(at + batch_size, len(x)))])
            if part.shape[1:] != self.shape:
                raise ValueError(f"inputs have shape {tuple(part.shape[1:])}, but training inputs had {self.shape}")
            yield part.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles leave the training inputs out, a model must not carry its data about, and open where no GPU is."""
        state = {name: _on_host(value) for name, value in vars(self).items()}
        return {**state, "data": replace(self.data, x=np.empty((len(self.data), 0), dtype=np.float32))}

    def encoder(self) -> Encoder:
        """The (first) network without its last layer, with how its inputs are scaled, on the host."""
        weights = {name: t.detach().cpu().clone() for name, t in body(self.nets[0]).items()}
        s = self.standardise
        return Encoder(weights, s.mean.flatten().cpu(), s.scale.flatten().cpu(), self.top, {"in_shape": self.shape})

    def belief(self) -> NDArray[np.floating[Any]]:
        """`(N, O)` what the run holds each sample's label to be, in the user's units for regression.

        The method's own record where it keeps one, else the mean prediction over epochs. Held-out samples are no part
        of the method's record: theirs is the mean of their validation predictions.
        """
        prob, own = self.evidence.prob(), self.method.belief()
        if own is not None:
            held = torch.from_numpy(self.held)
            prob, mean = own.to("cpu", torch.float32, copy=True), prob  # on the host: (N, K) may not fit on a device
            prob[held] = mean[held]
        if self.scale is not None:
            prob = self.scale.inverse(prob.to(self.scale.centre.device))
        out: NDArray[np.floating[Any]] = prob.cpu().numpy()
        unseen = ~np.isfinite(out).all(1)  # one epoch on several ranks can leave out fewer samples than ranks
        if unseen.any():
            out[unseen] = self.predict(self.data.take(np.flatnonzero(unseen)).x)
        return out

    def suspicion(self) -> NDArray[np.float32] | None:
        """`(N,)` the method's own ranking, if any: higher = more likely mislabelled, NaN for held-out samples."""
        own = self.method.suspicion()
        if own is None:
            return None
        out: NDArray[np.float32] = own.float().cpu().numpy().copy()
        out[self.held] = np.nan  # no part of the method's record
        return out

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """Evidence columns for the list of wrong labels."""
        return {name: values.cpu().numpy() for name, values in self.evidence.columns().items()}


def _on_host(value: Any) -> Any:
    """A copy in host memory of a module that is not there."""
    elsewhere = isinstance(value, nn.Module) and any(t.device.type != "cpu" for t in value.state_dict().values())
    return deepcopy(value).cpu() if elsewhere else value
