"""Row numbers for any map-style dataset."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from labelproof.data.indexed import with_index


class Rows(Dataset[Any]):
    classes = ("cat", "dog")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Fetching(Rows):
    asked = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked += 1
        return [self.items[i] for i in indices]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("item", "want"),
    [(("x", 1), ("x", 1, 0)), ({"x": 3}, {"x": 3, "index": 0}), (7.5, (7.5, 0)), ("text", ("text", 0))],
)
def test_items(item: Any, want: Any) -> None:
    assert with_index(Rows([item]))[0] == want
    assert with_index([item])[0] == want


def test_negative_rows_are_the_same_rows() -> None:
    assert with_index(Rows([("a", 0), ("b", 1)]))[-1] == ("b", 1, 1)


def test_attributes_are_those_of_the_dataset() -> None:
    data = with_index(Rows([1, 2]))
    assert data.classes == ("cat", "dog")
    assert data.items == [1, 2]
    assert not hasattr(data, "targets")
    assert not hasattr(data, "__getitems__")
    assert repr(data).startswith("with_index(")


def test_whole_batches_are_fetched_where_the_dataset_can() -> None:
    base = Fetching([(float(i), i % 2) for i in range(10)])
    loader = DataLoader(with_index(base), batch_size=4, shuffle=True)
    seen = [(x, i) for xs, _, index in loader for x, i in zip(xs.tolist(), index.tolist(), strict=True)]
    assert sorted(seen) == [(float(i), i) for i in range(10)]
    assert base.asked == 3


@pytest.mark.parametrize("kind", [Rows, Fetching])
def test_spawned_workers_and_copies(kind: type[Rows]) -> None:
    data = with_index(kind([(float(i), i % 2) for i in range(6)]))
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert [again[i] for i in range(6)] == [data[i] for i in range(6)]
        assert next(iter(DataLoader(again, batch_size=6)))[2].tolist() == list(range(6))
    loader = DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    assert [index.tolist() for _, _, index in loader] == [[0, 1, 2], [3, 4, 5]]


def test_subsets_and_concatenations_keep_the_rows() -> None:
    data = with_index(TensorDataset(torch.arange(10.0), torch.arange(10)))
    parts = ConcatDataset([Subset(data, [7, 1]), Subset(Subset(data, [9, 4, 2]), [2, 0])])
    for x, _, index in DataLoader(parts, batch_size=2, shuffle=True):
        assert x.long().tolist() == index.tolist()
    assert sorted(int(item[2]) for item in parts) == [1, 2, 7, 9]


def test_what_cannot_be_indexed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Stream cannot be given an index: .* let a stream yield its own ids"):
        with_index(Stream())
    with pytest.raises(TypeError, match="generator cannot be given an index"):
        with_index(x for x in range(3))
    with pytest.raises(ValueError, match="has been given an index already"):
        with_index(with_index([1]))
    with pytest.raises(ValueError, match='items have a key "index" already'):
        with_index([{"index": 3}])[0]


def test_a_view_of_an_indexed_set_is_indexed_already() -> None:
    pairs = with_index([(x, x % 2) for x in range(5)])
    with pytest.raises(ValueError, match="has been given an index already"):
        with_index(Subset(pairs, [2, 1]))
    assert with_index([[3, 1], [4, 0]])[1] == (4, 0, 1), "a list is a pair too, as for the loader"
