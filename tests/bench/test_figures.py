"""Two figures that results have since there is a benchmark: which samples were trained on, and the top of the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from labelproof import runs
from labelproof.issues import summarise
from labelproof.methods import CE
from tests.toy import blobs, settings


def listed(wrong: list[bool], order: list[int]) -> pd.DataFrame:
    """A list of wrong labels whose rows stand in `order`, worst first; the index is the number of the sample."""
    n = len(wrong)
    return pd.DataFrame(
        {"rank": np.arange(1, n + 1), "p_wrong": np.linspace(0.9, 0.1, n), "flagged": [True] * n, "given": 0},
        index=order,
    )


@pytest.mark.parametrize("shuffled", [False, True])
def test_precision_among_as_many_as_are_wrong(shuffled: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        wrong = rng.random(50) < 0.3
        order = rng.permutation(50)
        table = listed(wrong.tolist(), order.tolist())
        if shuffled:
            table = table.sample(frac=1, random_state=1)
        found = summarise(table, wrong)["precision_at_wrong"]
        top = order[: wrong.sum()]
        assert found == pytest.approx(sum(bool(wrong[i]) for i in top) / wrong.sum())


def test_of_a_perfect_and_of_an_upside_down_list() -> None:
    wrong = np.array([True] * 3 + [False] * 7)
    assert summarise(listed(wrong.tolist(), list(range(10))), wrong)["precision_at_wrong"] == 1.0
    assert summarise(listed(wrong.tolist(), list(range(10))[::-1]), wrong)["precision_at_wrong"] == 0.0


def test_where_nothing_is_wrong_it_is_undefined() -> None:
    wrong = np.zeros(5, dtype=bool)
    assert np.isnan(summarise(listed(wrong.tolist(), list(range(5))), wrong)["precision_at_wrong"])
    assert "precision_at_wrong" not in summarise(listed(wrong.tolist(), list(range(5))))


def split(tmp_path: Path, name: str, data: Any = None, **changes: Any) -> str:
    data = blobs(97) if data is None else data
    folder = tmp_path / name
    runs.train(data, CE(), "mlp", settings(epochs=1, **changes), folder=folder)
    return str(json.loads((folder / "run.json").read_text())["result"]["split"])


def test_the_split_is_known_by_its_hash(tmp_path: Path) -> None:
    held = {"validation_fraction": 0.2}
    first = split(tmp_path, "first", **held)
    assert len(first) == 16
    assert split(tmp_path, "again", **held) == first
    assert split(tmp_path, "longer", lr=0.01, batch_size=16, **held) == first, "it is of the samples alone"
    others = [
        split(tmp_path, "seed", seed=1, **held),
        split(tmp_path, "share", validation_fraction=0.3),
        split(tmp_path, "all"),
        split(tmp_path, "fewer", blobs(96), **held),
    ]
    assert len({first, *others}) == 5
    assert split(tmp_path, "all with another seed", seed=1) == others[2], "nothing is held out: nothing differs"
