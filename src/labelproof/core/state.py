"""Per-sample state: one row per training sample, kept in every checkpoint and the same on every rank.

`SampleTable` is memory that a method writes (ELR's targets); `SampleParameter` is learned by gradient (SOP's u and v).
Both are addressed by the stable id of a sample, so shuffling, subsets and ranks cannot mix rows up. `Curve`, one number
per epoch, is for methods that watch the run itself; `RunningScale`, one number, for those that measure residuals.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from labelproof.core.storage import TopK, lookup, make_store, usual_memory
from labelproof.functional.device import host
from labelproof.functional.ranks import gather_rows, world_size
from labelproof.functional.robust_scale import running_scale


def _check_sizes(num_samples: int, shape: tuple[int, ...]) -> None:
    if num_samples < 1 or any(s < 1 for s in shape):
        raise ValueError(f"num_samples={num_samples} and shape={shape} must be positive")


def check_ids(index: Tensor, n: int) -> None:
    """Refuse ids outside [0, n). On a GPU the check is the device's own: asking would mean waiting.

    Raises:
        IndexError: says what ids are.
    """
    if host(index) and len(index) and not 0 <= (ids := index.numpy()).min() <= ids.max() < n:
        wrong = int(ids[(ids < 0) | (ids >= n)][0])
        raise IndexError(
            f"sample id {wrong} is not in [0, {n}): ids are rows of the whole training set, and num_samples={n} must "
            "be its size, not that of a batch or a subset"
        )


class SampleTable(nn.Module):
    """`(num_samples, *shape)` of persistent memory.

    Args:
        num_samples: N, samples in the whole training set, not in a batch.
        shape: shape of one row.
        memory: how rows are kept, see `labelproof.core.storage`; arithmetic is done in fp32 whatever it is. `None` is
            what `kept_as` says, and dense outside it: methods leave it to the run's settings.

    Raises:
        ValueError: N or an entry of `shape` is not positive, or `memory` is unknown.
        MemoryError: there is no room for the table.

    >>> t = SampleTable(4, 2)
    >>> t.ema(torch.tensor([3]), torch.tensor([[1.0, 0.0]]), beta=0.7)
    tensor([[0.3000, 0.0000]])
    >>> t.rows(torch.tensor([0, 3]))
    tensor([[0.0000, 0.0000],
            [0.3000, 0.0000]])
    """

    def __init__(self, num_samples: int, *shape: int, memory: str | None = None) -> None:
        super().__init__()
        _check_sizes(num_samples, shape)
        self.num_samples, self.shape = num_samples, shape
        self.memory = usual_memory() if memory is None else memory
        self.store = make_store(self.memory, num_samples, shape)

    @property
    def values(self) -> Tensor:
        """`(N, *shape)`: the very storage, in its own type; of a top-k table a dense copy."""
        return self.dense() if isinstance(self.store, TopK) else self.store.values

    def dense(self) -> Tensor:
        """A copy of all rows on the host, `(N, *shape)` fp32."""
        out = torch.empty(self.num_samples, *self.shape)
        device = next(self.buffers()).device
        for rows in torch.split(torch.arange(self.num_samples), 65_536):  # a device may have no room for all of them
            out[rows] = self.store.read(rows.to(device)).cpu()
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.store.nbytes

    def rows(self, index: Tensor, *, scale: float = 1.0) -> Tensor:
        """Rows of the given ids, `(B, *shape)` fp32, times `scale`.

        Raises:
            IndexError: an id is not in [0, N), see `check_ids`.
        """
        check_ids(index, self.num_samples)
        return self.store.read(index, scale)

    @torch.no_grad()
    def write(self, index: Tensor, new: Tensor, *, joint: bool = False, checked: bool = False) -> None:
        """Store `new`, `(B, *shape)`, under the given ids.

        An id that occurs twice in the joint batch gets the row that stands first, on every device and every time. Rows
        that are not finite (a batch whose outputs overflowed) are passed over: what is stored stays.

        Args:
            index: `(B,)` ids.
            new: `(B, *shape)`.
            joint: whether every rank holds all of these rows already, as after a scan; else they are gathered first.
            checked: whether `rows` has been asked for these ids in this step, and so has checked them.

        Raises:
            IndexError: an id is not in [0, N); nothing is written.
        """
        if not joint:
            index, new = gather_rows(index), gather_rows(new)
        if not checked:
            check_ids(index, self.num_samples)
        finite = new.flatten(1).sum(1).isfinite()
        if not host(finite) or not finite.numpy().all():
            rows = finite.reshape(-1, *[1] * len(self.shape))
            new = torch.where(rows, new, self.store.read(index))
        self.store.write(index, new)

    @torch.no_grad()
    def ema(self, index: Tensor, new: Tensor, beta: float | Tensor, *, joint: bool = False) -> Tensor:
        r"""$t_i \leftarrow \beta t_i + (1-\beta)\,\mathrm{new}_i$; returns the updated rows, `(B, *shape)` fp32.

        Args:
            index: `(B,)` ids.
            new: `(B, *shape)`.
            beta: in [0, 1]; a tensor may be a scalar or `(B, 1)`, one per row.
            joint: as for `write`.

        Raises:
            IndexError: an id is not in [0, N); nothing is written.
        """
        self.write(index, beta * self.rows(index) + (1 - beta) * new.detach().float(), joint=joint)
        return self.store.read(index)

    def extra_repr(self) -> str:
        return f"{(self.num_samples, *self.shape)}, {self.memory}, {self.nbytes / 1e6:.1f} MB"


class SampleParameter(nn.Module):
    """`(num_samples, size)` of learned rows with sparse gradients: a step costs B rows, never N.

    Always fp32: values that start near 1e-8, as SOP's do, are 0 in fp16 and could never move. Give it a plain
    `torch.optim.SGD` of its own in `Method.optimizers`. With several ranks the backward pass gathers the rows of all
    of them, so that each takes the step of the joint batch: data-parallel wrappers must leave it alone, as the engine
    sees to.

    Args:
        num_samples: N, samples in the whole training set.
        size: columns of one row.
        std: rows start from N(0, std^2), drawn from torch's generator as network weights are.

    >>> u = SampleParameter(5, 1, std=0.0)
    >>> (u.rows(torch.tensor([2])) - 1).square().sum().backward()
    >>> u.weight.grad.coalesce().indices(), u.weight.grad.coalesce().values()
    (tensor([[2]]), tensor([[-2.]]))
    """

    def __init__(self, num_samples: int, size: int = 1, *, std: float = 1e-8) -> None:
        super().__init__()
        _check_sizes(num_samples, (size,))
        self.weight = nn.Parameter(std * torch.randn(num_samples, size))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.weight.numel() * self.weight.element_size()

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the given ids, `(B, size)` fp32, with gradient.

        Raises:
            IndexError: an id is not in [0, N).
        """
        check_ids(index, len(self.weight))
        return cast(Tensor, _Rows.apply(self.weight, index))  # type: ignore[no-untyped-call]


class _Rows(torch.autograd.Function):
    """Rows of a table, with the sparse gradient of the joint batch."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = weight.shape  # type: ignore[attr-defined]
        return lookup(weight.detach(), index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        if world_size() > 1:
            index, grad = gather_rows(index), gather_rows(grad) / world_size()
        return torch.sparse_coo_tensor(index[None], grad, ctx.size, check_invariants=False), None


class Curve(nn.Module):
    """One number per epoch, kept in checkpoints whatever its length.

    >>> c = Curve()
    >>> c.append(torch.tensor(0.5)); c.append(torch.tensor(0.75)); c.values
    tensor([0.5000, 0.7500])
    """

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(0))

    def append(self, value: Tensor) -> None:
        """Add the present epoch's number, a scalar."""
        self.values = torch.cat([self.values, value.detach().float().reshape(1).to(self.values.device)])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.values = self.values.new_empty(state_dict[f"{prefix}values"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class RunningScale(nn.Module):
    """The scale of residuals, averaged over the batches of training: see `running_scale`.

    Args:
        decay: of the average, in [0, 1).

    >>> s, r = RunningScale(0.9), torch.tensor([[-1.0], [2.0], [500.0]])
    >>> s(r, training=True), s(10 * r, training=False)
    (tensor(4.4478), tensor(4.4478))
    """

    value: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.tensor(torch.nan))  # the first batch's takes its place

    def forward(self, residual: Tensor, *, training: bool) -> Tensor:
        """The scale with this batch in it, a scalar without gradient.

        Args:
            residual: `(B, D)`.
            training: whether to keep it. Else the scale is as it was, or of this batch alone where none has begun.
        """
        s = running_scale(self.value, residual, decay=self.decay if training else 1)
        if training:
            self.value.copy_(s)
        return s


def per_sample_bytes(module: nn.Module) -> int:
    """Bytes of all per-sample state inside a module."""
    return sum(m.nbytes for m in module.modules() if isinstance(m, SampleTable | SampleParameter))
