"""`with_index`: a dataset whose items say which row they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset


class WithIndex(Dataset[Any]):
    """What `with_index` returns. Attributes of the wrapped dataset, as `classes` or `targets`, are its own too.

    Attributes:
        dataset: the wrapped dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        if hasattr(dataset, "__getitems__"):  # DataLoader asks for whole batches where there is such a method
            self.__getitems__ = self._getitems

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        at = int(index)
        row = at + len(self) if at < 0 else at
        return _labelled(self.dataset[index], row)

    def _getitems(self, indices: list[int]) -> list[Any]:
        items = self.dataset.__getitems__(indices)
        return [_labelled(item, int(i)) for item, i in zip(items, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # copy and pickle ask before there is anything
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __repr__(self) -> str:
        return f"with_index({self.dataset!r})"


def with_index(dataset: Any) -> WithIndex:
    """Wrap a dataset so that its items carry their row number, for losses that remember each sample.

    `(x, y)` or `[x, y]` becomes `(x, y, index)`, a dict gets the key `"index"`, any other item becomes
    `(item, index)`; named tuples become plain ones. Wrap *before* splitting: ids then stay those of the whole set.

    Args:
        dataset: anything with `__len__` and `__getitem__`.

    Raises:
        TypeError: the dataset has no row numbers (an `IterableDataset`, or no length).
        ValueError: it is wrapped already; or, when an item is read, there already is an `"index"`.

    >>> from torch.utils.data import DataLoader, Subset
    >>> pictures, labels = list("abcdef"), [0, 1, 0, 1, 0, 1]
    >>> train_set = with_index(list(zip(pictures, labels)))
    >>> train_set[4]
    ('e', 0, 4)
    >>> half = Subset(train_set, [1, 3, 5])  # split afterwards: the rows of the whole set, not 0, 1, 2
    >>> [index for _, _, index in DataLoader(half, batch_size=3)]
    [tensor([1, 3, 5])]
    """
    inner = dataset
    while inner is not None:  # a Subset or a split of an indexed set is indexed too
        if isinstance(inner, WithIndex):
            raise ValueError("this dataset has been given an index already; use it as it is")
        inner = getattr(inner, "dataset", None)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"{type(dataset).__name__} cannot be given an index: its samples have no fixed row numbers. Needed is a "
            "dataset with __len__ and __getitem__; let a stream yield its own ids, 0 to N - 1, the same in each epoch"
        )
    return WithIndex(dataset)


def _labelled(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        if "index" in item:
            raise ValueError('items have a key "index" already; rename it, or pass it on if it is the row number')
        return {**item, "index": index}
    return (*item, index) if isinstance(item, tuple | list) else (item, index)
