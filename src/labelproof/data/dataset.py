"""`Data`: inputs and their given labels, with stable ids and whatever is known of the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class MapStyle(Protocol):
    """Anything with `len()` and `[i]`: a `torch.utils.data.Dataset`, a list, a reader of image files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Data:
    """A labelled data set. Immutable: every step that changes labels returns a new one.

    Attributes:
        x: the inputs. `(N, D)` float32 rows; `(N, C, H, W)` uint8 images (float32 accepted); or a map-style
            data set that returns one input (array, tensor or PIL image) per index, for what is too large to hold.
        y: the *given* labels: `(N,)` int64 class codes into `classes`, or `(N, D)` float64 regression targets.
        classes: the label each code stands for, in the user's own values (strings are kept); `None` in regression.
        ids: `(N,)` what the user calls each sample; the row number unless the data had an id column.
        truth: true labels, coded like `y`, where they are known (injected noise, CIFAR-N); used only to measure.
        name: for run folders and reports.
        columns: names of the feature columns, for rows.
        target_name: the name of the label column.
        given: `(N,)` or `(N, D)` regression targets in the user's own values and type, for lists; `y` if `None`.
        noise: what was injected, for the record (kind, rate, hash ...); empty if nothing was.
        rows: `(n,)` int64, the rows to train on; all if `None`. The others keep their place in every list.
    """

    x: NDArray[Any] | MapStyle
    y: NDArray[Any]
    classes: NDArray[Any] | None = None
    ids: NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    truth: NDArray[Any] | None = None
    name: str = "data"
    columns: Sequence[str] = ()
    target_name: str = "label"
    given: NDArray[Any] | None = None
    noise: dict[str, Any] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n = len(self.x)
        if len(self.y) != n:
            raise ValueError(f"x has {n} samples but y has {len(self.y)} labels: they must be of one length")
        if self.ids.size == 0 and n > 0:
            object.__setattr__(self, "ids", np.arange(n))
        if len(self.ids) != n:
            raise ValueError(f"ids has {len(self.ids)} entries for {n} samples: one id per sample is needed")
        if self.rows is not None:
            rows = np.asarray(self.rows)
            if rows.dtype.kind not in "iu" or len(np.unique(rows)) < len(rows) or not np.isin(rows, np.arange(n)).all():
                raise ValueError(f"rows={rows!r} must be row numbers from 0 to {n - 1}, each once")
        names = self.ids.tolist()
        if len(set(names)) < n:
            name, times = Counter(names).most_common(1)[0]
            raise ValueError(
                f"ids must be unique, but {name!r} stands {times} times: "
                "drop the repeated rows, or leave the id column out to use row numbers"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def is_array(self) -> bool:
        """Whether the inputs lie in memory as one array."""
        return isinstance(self.x, np.ndarray)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 in regression."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def trained(self) -> NDArray[np.int64]:
        """The rows to train on."""
        return np.arange(len(self)) if self.rows is None else self.rows

    def only(self, rows: NDArray[np.int64]) -> Data:
        """The same data set, of which these rows alone are trained on: ids, lists and state per sample stay whole."""
        return replace(self, rows=rows)

    def relabelled(self, y: NDArray[Any], **noise: Any) -> Data:
        """The same samples under other given labels; the present ones become the truth if none is known."""
        return replace(self, y=y, truth=self.y if self.truth is None else self.truth, noise=noise, given=None)

    def take(self, rows: NDArray[np.int64]) -> Data:
        """The given rows as a data set of their own, ids kept (for subsets chosen *before* training)."""
        x = self.x[rows] if isinstance(self.x, np.ndarray) else _Rows(self.x, rows)
        truth, given = (None if a is None else a[rows] for a in (self.truth, self.given))
        return replace(self, x=x, y=self.y[rows], ids=self.ids[rows], truth=truth, given=given, rows=None)


class _Rows:
    """A view of some rows of a map-style data set (module level, so that spawned workers can pickle it)."""

    def __init__(self, base: MapStyle, rows: NDArray[np.int64]) -> None:
        self.base, self.rows = base, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.base[int(self.rows[index])]
