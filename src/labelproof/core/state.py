"""Per-sample state: one row per training sample, kept in every checkpoint and the same on every rank.

`SampleTable` is memory that a method writes (ELR's targets); `SampleParameter` is learned by gradient (SOP's u and v).
Both are addressed by the stable id of a sample, so shuffling, subsets and ranks cannot mix rows up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelproof.functional.ranks import gather_rows, world_size


def _check_ids(num_samples: int, shape: tuple[int, ...]) -> None:
    if num_samples < 1 or any(s < 1 for s in shape):
        raise ValueError(f"num_samples={num_samples} and shape={shape} must be positive")


def _out_of_range(n: int) -> IndexError:
    return IndexError(
        f"a sample id is not in [0, {n}): ids are rows of the whole training set, and num_samples is its size, "
        "not that of a batch or a subset"
    )


class SampleTable(nn.Module):
    """`(num_samples, *shape)` of persistent memory.

    Args:
        num_samples: N, samples in the whole training set, not in a batch.
        shape: shape of one row.
        dtype: storage type; arithmetic is done in fp32 whatever it is.

    Raises:
        ValueError: N or an entry of `shape` is not positive.

    >>> t = SampleTable(4, 2)
    >>> t.ema(torch.tensor([3]), torch.tensor([[1.0, 0.0]]), beta=0.7)
    tensor([[0.3000, 0.0000]])
    >>> t.rows(torch.tensor([0, 3]))
    tensor([[0.0000, 0.0000],
            [0.3000, 0.0000]])
    """

    values: Tensor

    def __init__(self, num_samples: int, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        _check_ids(num_samples, shape)
        self.register_buffer("values", torch.zeros(num_samples, *shape, dtype=dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.values.numel() * self.values.element_size()

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the given ids, `(B, *shape)` fp32.

        Raises:
            IndexError: an id is not in [0, N). (On a GPU the check is the device's own: asking would mean waiting.)
        """
        try:
            return self.values.index_select(0, index).float()
        except IndexError as error:
            raise _out_of_range(len(self.values)) from error

    @torch.no_grad()
    def write(self, index: Tensor, new: Tensor) -> None:
        """Store `new`, `(B, *shape)`, under the given ids. Rows of all ranks are gathered first.

        An id that occurs twice in the joint batch gets the row that stands first, on every device and every time.

        Raises:
            IndexError: an id is not in [0, N); nothing is written.
        """
        self.rows(index)  # raises before anything is written
        self._store(index, new)

    @torch.no_grad()
    def ema(self, index: Tensor, new: Tensor, beta: float) -> Tensor:
        r"""$t_i \leftarrow \beta t_i + (1-\beta)\,\mathrm{new}_i$; returns the updated rows, `(B, *shape)` fp32.

        Raises:
            IndexError: an id is not in [0, N); nothing is written.
        """
        self._store(index, beta * self.rows(index) + (1 - beta) * new.detach().float())
        return self.rows(index)

    def _store(self, index: Tensor, new: Tensor) -> None:
        index, new = gather_rows(index), gather_rows(new)
        order = index.argsort(stable=True)
        first = order[torch.searchsorted(index[order], index)]
        self.values.index_copy_(0, index, new[first].to(self.values.dtype))

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, {self.values.dtype}, {self.nbytes / 1e6:.1f} MB"


class SampleParameter(nn.Module):
    """`(num_samples, size)` of learned rows with sparse gradients: a step costs B rows, never N.

    Always fp32: values that start near 1e-8, as SOP's do, are 0 in fp16 and could never move. Give it a plain
    `torch.optim.SGD` of its own in `Method.optimizers`. Data-parallel wrappers must not average it densely: the
    engine excludes it from them and calls `sync_grad` instead.

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
        _check_ids(num_samples, (size,))
        self.weight = nn.Parameter(std * torch.randn(num_samples, size))

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the given ids, `(B, size)` fp32, with gradient.

        Raises:
            IndexError: an id is not in [0, N).
        """
        try:
            return F.embedding(index, self.weight, sparse=True)
        except IndexError as error:
            raise _out_of_range(len(self.weight)) from error

    @torch.no_grad()
    def sync_grad(self) -> None:
        """Replace the gradient by its average over ranks (a step of each rank touches other rows)."""
        if world_size() == 1 or self.weight.grad is None:
            return
        grad = self.weight.grad
        self.weight.grad = torch.sparse_coo_tensor(
            gather_rows(grad._indices()[0]).unsqueeze(0), gather_rows(grad._values()) / world_size(), grad.shape
        )
