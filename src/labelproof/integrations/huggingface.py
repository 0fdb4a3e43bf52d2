"""Hugging Face: a `Trainer` whose loss is told which samples it sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from labelproof.data.atomic import atomically
from labelproof.data.indexed import with_index
from labelproof.integrations.shared import (
    INDEX,
    check_criterion,
    check_size,
    compute_loss,
    missing_library,
    needs_index,
    num_samples,
    refuse_half,
    row_optimizers,
    step_rows,
)

try:
    import accelerate  # noqa: F401  (the Trainer needs it, and would say so only later)
    from transformers import Trainer
except ImportError as error:
    raise missing_library("transformers with accelerate", "huggingface") from error

__all__ = ["NoisyLabelTrainer"]

STATE = "criterion.pt"


class NoisyLabelTrainer(Trainer):
    """`transformers.Trainer` that trains with a labelproof loss and evaluates as before.

    The training set gets an `index` column unless it has one; the column survives `remove_unused_columns`, goes to the
    loss and never to the model. Evaluation uses the model's own loss, without ids. The state of the loss is in every
    `checkpoint-N` folder and is restored by `train(resume_from_checkpoint=...)`. To build on a trainer of your own,
    inherit from both: `class Mine(NoisyLabelTrainer, MyTrainer)`.

    Args:
        *args: for `Trainer`.
        criterion: called `(logits, labels, index)` if its `forward` has an `index`, else `(logits, labels)`.
        errors: for `SOPLoss`, arguments of its `optimizer`: `{"lr_u": 1, "lr_v": 10}`.
        **kwargs: for `Trainer`.

    Raises:
        ValueError: the training set is larger than the state of the criterion; a loss with learned rows (SOP) is to
            train under fp16; the criterion is not an instance of a loss; `errors` has an unknown key or no learned
            rows to train; or `label_smoothing_factor` is set.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean of its batch: `Trainer` divides it when it accumulates

    def __init__(
        self, *args: Any, criterion: nn.Module, errors: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        check_criterion(criterion)
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} would smooth labels in evaluation only, "
                "since the criterion takes the place of the trainer's loss: leave it 0; to train with smoothed labels, "
                "use criterion=nn.CrossEntropyLoss(label_smoothing=...)"
            )
        self.model_accepts_loss_kwargs = False  # no counting of items: the model's own loss is not trained on
        refuse_half(criterion, self.args.fp16, "TrainingArguments(bf16=True)")
        self.criterion = criterion.to(self.args.device)
        self._rows = row_optimizers(criterion, errors or {})

    def get_train_dataloader(self) -> Any:
        """Batches of the training set, with ids.

        Raises:
            ValueError: the training set is larger than the state of the criterion.
        """
        if needs_index(self.criterion):
            check_size(self.criterion, self.train_dataset)
            self.train_dataset = _indexed(self.train_dataset)
        return super().get_train_dataloader()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if INDEX not in columns:
            columns.append(INDEX)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The criterion in training, the model's own loss in evaluation.

        Raises:
            ValueError: a training batch has no labels, or no ids though the criterion needs them.
        """
        inputs = dict(inputs)
        index = inputs.pop(INDEX, None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        name = self.label_names[0] if self.label_names else "labels"
        if name not in inputs:
            raise ValueError(
                f"a training batch has no {name!r}, only {sorted(inputs)}: name the label column 'label', "
                "or set TrainingArguments(label_names=[...])"
            )
        target = inputs.pop(name)
        outputs = model(**inputs)
        logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        remedy = "the data collator must keep the column 'index' (the trainer adds it to data sets that have a length)"
        loss = compute_loss(self.criterion, logits, target, index, remedy)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One step of evaluation or prediction, without ids."""
        return super().prediction_step(model, {k: v for k, v in inputs.items() if k != INDEX}, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch; learned rows take their own step where the optimiser is due."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            step_rows(self._rows)
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            atomically(Path(output_dir) / STATE, lambda path: torch.save(self.criterion.state_dict(), path))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, so the loss would start from nothing: resume from a checkpoint that "
                "NoisyLabelTrainer wrote, without save_only_model=True"
            )
        _restore(self.criterion, torch.load(path, map_location=self.args.device, weights_only=True), path)


def _restore(criterion: nn.Module, stored: dict[str, Any], path: Path) -> None:
    """Load the state of the loss, or say in what way the stored loss was another one."""
    try:
        criterion.load_state_dict(stored)
    except RuntimeError as error:
        name, own = type(criterion).__name__, criterion.state_dict()
        if own.keys() != stored.keys():
            there, here = (", ".join(sorted(state)) or "nothing" for state in (stored, own))
            what = f"it holds the state of another loss ({there}) than {name} ({here})"
        else:
            key = next(k for k in own if stored[k].shape != own[k].shape)
            what = f"{key} of {name} is {tuple(stored[key].shape)} there and {tuple(own[key].shape)} here"
            if len(stored[key]) != len(own[key]) == num_samples(criterion):
                what = f"its {name} had num_samples={len(stored[key])}, this one has num_samples={len(own[key])}"
        raise ValueError(
            f"{path} does not fit the criterion: {what}. Resume with the loss it was written by"
        ) from error


def _indexed(dataset: Any) -> Any:
    """The data set with an `index` in each item; as it is if it has one, or cannot be numbered (a stream)."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return dataset
    if hasattr(dataset, "add_column"):  # a datasets.Dataset stays one, so that columns can still be removed
        return dataset if INDEX in dataset.column_names else dataset.add_column(INDEX, list(range(len(dataset))))
    return dataset if INDEX in dataset[0] else with_index(dataset)
