"""Lightning: a callback for any LightningModule that holds a labelproof loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from labelproof.integrations.shared import (
    check_size,
    data_parallel_ignores,
    learns_rows,
    missing_library,
    num_samples,
    refuse_half,
    row_optimizers,
    step_rows,
)

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise missing_library("lightning", "lightning") from error

__all__ = ["NoisyLabels"]


class NoisyLabels(pl.Callback):
    """Makes labelproof's losses safe inside a LightningModule; add it to the trainer's `callbacks`.

    Assign the loss to the module (`self.criterion = ELRLoss(...)`), so that Lightning moves it, saves it and restores
    it with the module; load the training set through `lp.with_index(dataset)`; call the loss with the ids of the batch
    in `training_step` and use plain cross-entropy in `validation_step`. The callback

    - checks that the batches bring ids and that the loss was made for so many samples;
    - keeps data-parallel wrappers off the per-sample state, which agrees on all ranks by itself;
    - trains learned rows (SOP's u and v) with their own plain SGD: `configure_optimizers` may return any optimiser of
      `self.parameters()`, which never meets their gradients.

    With losses that have no per-sample state it does nothing.

    Args:
        errors: for `SOPLoss`, arguments of its `optimizer`: `{"lr_u": 1, "lr_v": 10}`.

    >>> import lightning.pytorch as pl
    >>> trainer = pl.Trainer(max_epochs=1, callbacks=[NoisyLabels()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, *, errors: Mapping[str, float] | None = None) -> None:
        self.errors = dict(errors or {})
        self._rows: list[Optimizer] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Exclude per-sample state from data-parallel wrappers; called before the module is wrapped.

        Raises:
            ValueError: a loss with learned rows is to train in half precision, or a strategy shards parameters.
        """
        if stage != "fit":
            return
        keeps_fp32 = trainer.precision in {"32-true", "64-true", "bf16-mixed"}
        refuse_half(pl_module, not keeps_fp32, 'Trainer(precision="bf16-mixed") or "32-true"')
        kind = type(trainer.strategy).__name__
        if learns_rows(pl_module) and not kind.startswith(("SingleDevice", "DDP")):
            raise ValueError(f'learned rows (SOP) cannot be sharded by {kind}: use Trainer(strategy="ddp")')
        ignored = [*getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()), *data_parallel_ignores(pl_module)]
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(pl_module, ignored)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the optimisers of learned rows, once these are where they are to stay.

        Raises:
            ValueError: `errors` has an unknown key, or no loss has learned rows.
        """
        self._rows = row_optimizers(pl_module, self.errors)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the sizes of training set and state.

        Raises:
            ValueError: the training set is larger.
        """
        check_size(pl_module, getattr(trainer.train_dataloader, "dataset", None))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look whether the first batch of each epoch can hold ids, before `training_step` unpacks it.

        Raises:
            ValueError: it has fewer than three parts, and a loss of the module needs input, label and id.
        """
        if batch_idx or num_samples(pl_module) is None:
            return
        if isinstance(batch, Mapping):
            complete = "index" in batch
        else:  # of one part, or of an (x, y) pair, there is no id
            complete = not isinstance(batch, Sequence) or len(batch) >= 3
        if not complete:
            raise ValueError(
                f"a loss of {type(pl_module).__name__} needs the id of each sample, but training batches bring none: "
                "load lp.with_index(dataset), whose batches are (x, y, index), or dicts with an 'index'"
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Step the learned rows; called after backward and before gradients are clipped."""
        step_rows(self._rows)
