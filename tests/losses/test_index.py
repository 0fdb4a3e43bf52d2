"""Wrong row numbers are an error or a warning with the remedy; right ones never are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from labelproof.losses import ELRLoss, IndexWarning

N, B, K = 60, 12, 3
LABELS = torch.arange(N) % K
G = torch.Generator()


def run(batches: Iterable[tuple[Tensor, Tensor]], num_samples: int = N, **options: bool) -> list[str]:
    """Texts of the warnings that (rows, index) pairs cause; the labels are those of the rows."""
    criterion = ELRLoss(num_samples, K, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for rows, index in batches:
            criterion(torch.zeros(len(rows), K, requires_grad=True), LABELS[rows], index)
    assert all(w.category is IndexWarning and w.filename == __file__ for w in said)
    return [str(w.message) for w in said]


def epochs(n: int, rows: Tensor | None = None, size: int = B) -> Iterable[Tensor]:
    G.manual_seed(0)
    rows = torch.arange(N) if rows is None else rows
    for _ in range(n):
        yield from rows[torch.randperm(len(rows), generator=G)].split(size)


@pytest.mark.parametrize("size", [1, 12, 25, N])
def test_right_ids_are_silent(size: int) -> None:
    assert run((rows, rows) for rows in epochs(5, size=size)) == []


def test_a_subset_with_the_ids_of_the_whole_is_silent() -> None:
    assert run((rows, rows) for rows in epochs(12, torch.arange(0, N, 3))) == []


def test_positions_in_the_batch_are_seen_in_the_second_batch() -> None:
    """ELR#4: num_samples of the data set, ids of the batch."""
    (text,) = run((rows, torch.arange(len(rows))) for rows in list(epochs(1))[:2])
    assert "another label than before (sample" in text
    assert "not positions within the batch" in text
    assert "lp.with_index(train_set)" in text
    assert "check_index=False" in text


def test_the_size_of_the_batch_given_for_that_of_the_data() -> None:
    (text,) = run(((rows, torch.arange(len(rows))) for rows in epochs(1)), num_samples=B)
    assert f"num_samples={B} is also the size of this batch: it must be len(train_set)" in text


def test_positions_in_the_batch_without_hard_labels() -> None:
    criterion = ELRLoss(N, K)
    soft = torch.full((B, K), 1 / K)
    with pytest.warns(IndexWarning, match=f"only {B} of num_samples={N} ids occurred, no more than one batch has"):
        for _ in range(5):
            criterion(torch.zeros(B, K, requires_grad=True), soft, torch.arange(B))


def test_a_subset_renumbered_in_each_epoch() -> None:
    texts = run((rows, torch.arange(len(rows)) + 12 * (n % 5)) for n, rows in enumerate(epochs(2)))
    assert len(texts) == 1
    assert "another label than before" in texts[0]


def test_labels_given_as_index() -> None:
    texts = run((rows, LABELS[rows]) for rows in epochs(4))
    assert any("of 12 ids of a batch are repetitions" in t and "the labels?" in t for t in texts)


def test_a_sampler_with_replacement_is_named_once() -> None:
    draws = [torch.randint(0, N, (B,), generator=G.manual_seed(s)) for s in range(40)]
    texts = run((rows, rows) for rows in draws)
    assert len(texts) <= 1
    skewed = [torch.randint(0, N, (B,), generator=G.manual_seed(s)).square() // N for s in range(40)]
    (text,) = run((rows, rows) for rows in skewed)
    assert "A sampler with replacement does that, and it is harmless if intended" in text


def test_the_same_id_twice_in_a_batch_with_two_labels() -> None:
    (text,) = run([(torch.tensor([0, 1]), torch.tensor([5, 5]))])
    assert "another label" in text


def test_changed_labels_are_seen_after_the_full_checks_too() -> None:
    criterion = ELRLoss(N, K)
    for rows in epochs(4):
        criterion(torch.zeros(len(rows), K, requires_grad=True), LABELS[rows], rows)
    with pytest.warns(IndexWarning, match="another label"):
        for rows in epochs(16):
            criterion(torch.zeros(len(rows), K, requires_grad=True), (LABELS[rows] + 1) % K, rows)


def test_it_can_be_switched_off_and_is_never_saved() -> None:
    assert run(((rows, torch.arange(len(rows))) for rows in epochs(3)), check_index=False) == []
    assert not any("check" in key for key in ELRLoss(N, K).state_dict())


def test_ids_of_other_integer_types_are_fine() -> None:
    criterion = ELRLoss(N, K)
    criterion(torch.zeros(2, K, requires_grad=True), torch.tensor([0, 1]), torch.tensor([3, 4], dtype=torch.int32))
    assert criterion.t.values.sum(1).nonzero().flatten().tolist() == [3, 4]
