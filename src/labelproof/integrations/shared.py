"""What all adapters ask of a loss: does it need ids, how many does it know, who trains its learned rows."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from labelproof.core.registry import did_you_mean
from labelproof.core.state import SampleParameter, SampleTable
from labelproof.data.indexed import WithIndex

#: The name under which ids travel in batches that are dicts, and the argument of the losses that take them.
INDEX = "index"


def check_criterion(criterion: object) -> None:
    """Refuse a class or a name where a loss is due.

    Raises:
        ValueError: it is not an instance of `nn.Module`.
    """
    if isinstance(criterion, nn.Module):
        return
    name = criterion.__name__ if isinstance(criterion, type) else "lp.losses.ELRLoss"
    given = f"the class {name}" if isinstance(criterion, type) else repr(criterion)
    raise ValueError(f"criterion must be an instance of a loss, such as {name}(...) with its arguments, not {given}")


def needs_index(criterion: nn.Module) -> bool:
    """Whether a loss cannot do without the ids of the samples.

    >>> from labelproof.losses import ELRLoss, GCELoss
    >>> needs_index(ELRLoss(10, 2)), needs_index(GCELoss()), needs_index(nn.CrossEntropyLoss())
    (True, False, False)
    """
    taken = inspect.signature(criterion.forward).parameters.get(INDEX)
    return taken is not None and (taken.default is taken.empty or num_samples(criterion) is not None)


def compute_loss(criterion: nn.Module, logits: Tensor, target: Tensor, index: Tensor | None, remedy: str) -> Tensor:
    """The loss of a training batch, by whichever call the criterion understands.

    Raises:
        ValueError: the criterion needs ids and the batch has none; the text ends in `remedy`.
    """
    if not needs_index(criterion):
        return cast(Tensor, criterion(logits, target))
    if index is None:
        raise ValueError(f"{type(criterion).__name__} needs the id of each sample, but the batch has none: {remedy}")
    return cast(Tensor, criterion(logits, target, index.to(logits.device)))


def per_sample(module: nn.Module) -> Iterator[tuple[str, SampleTable | SampleParameter]]:
    """All per-sample state inside a module, with the names it has there."""
    for name, inner in module.named_modules():
        if isinstance(inner, SampleTable | SampleParameter):
            yield name, inner


def num_samples(module: nn.Module) -> int | None:
    """How many samples the losses inside a module have rows for; `None` without per-sample state.

    >>> from labelproof.losses import ELRLoss
    >>> num_samples(ELRLoss(10, 2)), num_samples(nn.CrossEntropyLoss())
    (10, None)
    """
    sizes = [s.num_samples if isinstance(s, SampleTable) else len(s.weight) for _, s in per_sample(module)]
    return min(sizes, default=None)


def check_size(module: nn.Module, dataset: Any) -> None:
    """Refuse a training set larger than the state of a loss, before training and not in the middle of an epoch.

    Args:
        module: a loss, or a module with losses inside.
        dataset: the training set; sizes that cannot be known (streams) are not checked. Of a part of an indexed set
            (`Subset(lp.with_index(whole), rows)`) the size of the whole counts, since ids are rows of that.

    Raises:
        ValueError: the state has too few rows.
    """
    inner = dataset
    while inner is not None and not isinstance(inner, WithIndex):
        inner = getattr(inner, "dataset", None)
    whole = dataset if inner is None else inner
    try:
        n = len(whole)
    except TypeError:
        return
    rows = num_samples(module)
    if rows is not None and n > rows:
        part = "" if whole is dataset else " is part of an indexed set, which"
        raise ValueError(
            f"the training set{part} has {n} samples, but the loss was made with num_samples={rows}: "
            f"make it with num_samples={n}, the size of the whole training set"
        )


def data_parallel_ignores(module: nn.Module) -> list[str]:
    """Names of what data-parallel wrappers must leave alone: the state of losses that remember, all of it.

    Such a loss gathers rows itself and is the same on all ranks; a broadcast of its N rows in each step would be slow
    at best, and an average of learned rows wrong.
    """
    names = []
    for prefix, loss in _remembering(module):
        state = [*loss.named_buffers(), *loss.named_parameters()]
        names += [f"{prefix}.{name}" if prefix else name for name, _ in state]
    return names


def _remembering(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, inner in module.named_modules():
        if any(isinstance(child, SampleTable | SampleParameter) for child in inner.children()):
            yield name, inner


def learns_rows(module: nn.Module) -> bool:
    """Whether losses inside a module have learned rows, as SOP's u and v."""
    return any(isinstance(state, SampleParameter) for _, state in per_sample(module))


def row_optimizers(module: nn.Module, errors: Mapping[str, Any]) -> list[Optimizer]:
    """Plain SGD for learned rows, each made by its loss.

    Rows have sparse gradients, which Adam, weight decay and momentum must not touch: they are kept out of the user's
    optimiser.

    Args:
        module: a loss, or a module with losses inside.
        errors: arguments of the losses' `optimizer`, as `lr_u`.

    Raises:
        ValueError: a loss knows no such argument, or no loss has learned rows.
    """
    losses = [cast(Any, loss) for _, loss in _remembering(module) if learns_rows(loss)]
    if errors and not losses:
        raise ValueError(
            f"errors has {', '.join(errors)}, but only a loss with learned rows (SOPLoss) has such learning rates: "
            "leave errors out, or train with SOPLoss"
        )
    for loss in losses:
        allowed = inspect.signature(loss.optimizer).parameters
        for key in errors:
            if key not in allowed:
                raise ValueError(
                    f"errors has an unknown key {key!r}{did_you_mean(key, allowed)} allowed are: {', '.join(allowed)}"
                )
    return [loss.optimizer(**errors) for loss in losses]


def step_rows(optimizers: Iterable[Optimizer]) -> None:
    """Take the step of the learned rows and drop their gradients, so that no other optimiser meets them."""
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def refuse_half(module: nn.Module, half: bool, remedy: str) -> None:
    """Learned rows start near 1e-8, which is 0 in fp16, and step outside of the gradient scaler of mixed fp16.

    Raises:
        ValueError: half precision with learned rows.
    """
    if half and learns_rows(module):
        raise ValueError(f"learned rows (SOP) need fp32 and no gradient scaler, so no fp16: use {remedy}")


def missing_library(library: str, extra: str) -> ImportError:
    """The error of an adapter whose library is not installed."""
    return ImportError(f"{library} is not installed: pip install 'labelproof[{extra}]'")
