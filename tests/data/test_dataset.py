"""`Data`: a part to train on, of which ids, lists and state stay those of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labelproof.data.dataset import Data
from labelproof.engine.inputs import digest
from labelproof.engine.stages import fit
from labelproof.methods import CE, ELR
from tests.toy import blobs, factory, settings


def test_only_changes_what_is_trained_on() -> None:
    data, rows = blobs(50), np.array([3, 7, 20])
    part = data.only(rows)
    assert len(part) == 50
    assert part.trained.tolist() == [3, 7, 20]
    assert part.x is data.x
    assert part.y is data.y
    assert part.ids is data.ids
    assert part.truth is data.truth
    assert data.trained.tolist() == list(range(50))
    assert part.only(np.array([1])).trained.tolist() == [1], "rows are those of the whole, not of the part"


def test_taking_rows_makes_a_whole_of_them() -> None:
    data = blobs(50)
    taken = data.only(np.array([3, 7, 20])).take(np.array([7, 8]))
    assert taken.rows is None
    assert taken.trained.tolist() == [0, 1]
    assert taken.ids.tolist() == [7, 8]


def test_other_labels_leave_the_rows() -> None:
    data = blobs(50).only(np.array([3, 7]))
    assert data.relabelled(1 - data.y % 2).trained.tolist() == [3, 7]


def test_a_part_is_other_data_for_a_run_to_be_resumed() -> None:
    data = blobs(50)
    parts = [data, data.only(np.arange(10)), data.only(np.arange(11)), data.only(np.arange(50))]
    assert len({digest(d) for d in parts}) == 4


def test_training_on_a_part_is_training_on_these_samples() -> None:
    """The same networks as on a data set of these rows alone, and a record of the whole."""
    data, rows = blobs(120, flips=0.2), np.arange(0, 120, 3)
    a = fit(CE(), factory(data), data.only(rows), settings(validation_fraction=0.25))
    b = fit(CE(), factory(data), data.take(rows), settings(validation_fraction=0.25))
    for name, p in a.nets.state_dict().items():
        np.testing.assert_array_equal(p.numpy(), b.nets.state_dict()[name].numpy())
    assert a.rows.tolist() == rows[b.rows].tolist()
    assert a.held.tolist() == rows[b.held].tolist()
    assert a.evidence.visits.numpy()[rows].min() > 0
    assert a.evidence.visits.sum() == b.evidence.visits.sum()
    belief = a.belief()
    assert belief.shape == (120, 3)
    assert np.isfinite(belief).all(), "who was not trained on is predicted"
    np.testing.assert_allclose(belief[rows], b.belief(), atol=1e-6)
    others = np.setdiff1d(np.arange(120), rows)
    np.testing.assert_allclose(belief[others], a.predict(data.take(others).x), atol=1e-6)


def test_state_per_sample_is_that_of_the_whole() -> None:
    data, rows = blobs(60), np.arange(30, 60)
    fitted = fit(ELR(), factory(data), data.only(rows), settings())
    table = fitted.method.belief()
    assert table is not None
    assert len(table) == 60
    assert (fitted.evidence.visits.numpy() > 0).tolist() == [False] * 30 + [True] * 30


def test_ids_must_be_unique() -> None:
    with pytest.raises(
        ValueError, match="ids must be unique, but 'b' stands 3 times: drop the repeated rows, or leave"
    ):
        Data(np.zeros((4, 1)), np.zeros(4, int), classes=np.arange(2), ids=np.array(["a", "b", "b", "b"]))


@pytest.mark.parametrize("rows", [[0, 0, 3], [3, 97], [-1], [True] * 97, [0.0, 1.0]])
def test_rows_are_row_numbers_each_once(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"(?s)rows=array.*must be row numbers from 0 to 96, each once"):
        blobs(97).only(np.array(rows))
