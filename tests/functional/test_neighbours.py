"""knn_agreement against scikit-learn's brute-force neighbours and a vote in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from labelproof.functional import neighbours
from labelproof.functional.neighbours import knn_agreement


def problem(n: int = 150, f: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(classes, f))
    y = rng.integers(0, classes, n)
    return torch.from_numpy(centres[y] + rng.normal(size=(n, f))), torch.from_numpy(y)


def by_loops(x: Tensor, y: Tensor, k: int, temperature: float) -> float:
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x.numpy())
    distance, which = search.kneighbors()  # without the sample itself
    right = 0
    for i in range(len(x)):
        votes: dict[int, float] = {}
        for d, j in zip(distance[i], which[i], strict=True):
            votes[int(y[j])] = votes.get(int(y[j]), 0.0) + np.exp((1 - d) / temperature)
        right += max(votes, key=lambda c: votes[c]) == int(y[i])
    return right / len(x)


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 0.01), (20, 0.5), (20, 100.0), (149, 0.1)]
)
def test_equals_neighbours_of_scikit_learn(k: int, temperature: float) -> None:
    x, y = problem()
    want = by_loops(x, y, k, temperature)
    assert 0.3 < want < 1
    assert float(knn_agreement(x, y, k, temperature)) == pytest.approx(want, abs=1e-12)
    assert float(knn_agreement(x.float(), y, k, temperature)) == pytest.approx(want, abs=1e-6)


def test_the_temperature_decides_how_far_votes_count() -> None:
    x, y = problem()
    assert by_loops(x, y, 149, 0.1) != by_loops(x, y, 149, 100.0)


@pytest.mark.parametrize("entries", [1, 400, 1000, 2**24])
def test_chunks_change_nothing(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(97)
    want = knn_agreement(x, y, 7)
    monkeypatch.setattr(neighbours, "_ENTRIES", entries)
    assert torch.equal(knn_agreement(x, y, 7), want)


def test_no_sample_votes_for_itself() -> None:
    x = torch.eye(6)[torch.arange(6)].repeat_interleave(2, 0)
    y = torch.arange(12)  # every sample its own class
    assert knn_agreement(x, y, 1) == 0
    assert knn_agreement(x, y // 2, 1) == 1


def test_labels_are_names_not_numbers() -> None:
    x, y = problem()
    names = torch.tensor([-5, 10**12, 7, 0])
    assert torch.equal(knn_agreement(x, names[y]), knn_agreement(x, y))


def test_ties_go_to_the_nearer_neighbour() -> None:
    angle = torch.tensor([0.0, 0.1, -0.1001])
    x = torch.stack([angle.cos(), angle.sin()], 1).double()
    # at a huge temperature both neighbours of the first count alike
    assert float(knn_agreement(x, torch.tensor([1, 1, 2]), 2, 1e18)) == pytest.approx(2 / 3)
    assert float(knn_agreement(x, torch.tensor([2, 1, 2]), 2, 1e18)) == pytest.approx(1 / 3)


def test_low_temperatures_and_few_samples_are_safe() -> None:
    x, y = problem()
    assert torch.equal(knn_agreement(x.float(), y, 20, 1e-6), knn_agreement(x.float(), y, 1))
    assert knn_agreement(torch.ones(2, 3), torch.tensor([1, 1])) == 1, "at most n - 1 neighbours"
    assert knn_agreement(torch.ones(2, 3).requires_grad_(), torch.tensor([1, 0])).requires_grad is False
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_agreement(x.float(), y), knn_agreement(x.float(), y))
        inside = knn_agreement(x.float(), y)
    assert torch.equal(inside, knn_agreement(x.float(), y))


@pytest.mark.parametrize(("x", "y"), [((5, 2), (4,)), ((5,), (5,)), ((1, 2), (1,)), ((5, 2), (5, 1))])
def test_shapes_that_do_not_fit_are_named(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features and labels have shapes \(.*: they must be \(n, F\) and \(n,\)"):
        knn_agreement(torch.zeros(x), torch.zeros(y))


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_values_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"k=.* must be at least 1 and temperature=.* above 0; 20 and 0.07 are usual"):
        knn_agreement(torch.zeros(5, 2), torch.zeros(5), **options)  # type: ignore[arg-type]
