"""The reader: what it takes, and what it says about what it cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelproof.report import RunRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text('{"status": "running", "method": {"name": "elr"}}')
    return tmp_path


def test_reads_a_whole_run(digits: Callable, tmp_path: Path) -> None:
    made = digits("elr")
    run = RunRecord.load(made.write(tmp_path))
    assert (run.label, run.short_label, run.method) == ("Early-learning regularisation (ELR)", "ELR", "elr")
    assert run.finished
    assert not run.regression
    assert run.num_samples == 1437
    np.testing.assert_allclose(run.curve("test_accuracy")[1], made.metrics["test_accuracy"])
    assert run.really_wrong().tolist() == (made.issues["given"] != made.issues["truth"]).tolist()
    assert run.matrix("true_transition").shape == (10, 10)
    assert run.gallery.image.shape == (60, 8, 8, 1)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"is not a run folder: it has no run\.json.*made by `labelproof train`"
    ):
        RunRecord.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a run folder"):
        RunRecord.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"status": ', r"run\.json is not valid JSON \(.*\): train again, or restore"),
        ("run.json", b"\xff\xfe\x00", r"run\.json is not valid JSON"),
        ("run.json", b"[1, 2]", r"run\.json must hold a JSON object, not a list"),
        ("metrics.csv", b"epoch,loss\n1,\xff\xfe\n", r"metrics\.csv cannot be read as CSV"),
        ("issues.csv", b"id,label\n1,2\n", r"issues\.csv is not .*column 'given' is missing; there are 'id', 'label'"),
        ("gallery.npz", b"PK\x03\x04 cut short", r"gallery\.npz is not a gallery .*delete it"),
        ("gallery.npz", b"", r"gallery\.npz is not a gallery"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RunRecord.load(folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rank": np.arange(3)}, "it needs `image` or `rows`, and has rank"),
        ({"image": np.zeros((2, 4, 4, 3))}, r"`image` must be \(M, H, W, C\) uint8 .* not \(2, 4, 4, 3\) float64"),
        ({"image": np.zeros((2, 4, 4, 2), np.uint8)}, "C = 1, 3 or 4"),
        ({"rows": np.zeros(4)}, r"`rows` must be \(M, D\), not \(4,\)"),
        ({"rows": np.zeros((4, 2)), "rank": np.arange(3)}, "`rank` has 3 entries for 4 samples"),
    ],
)
def test_bad_galleries(folder: Path, arrays: dict, message: str) -> None:
    np.savez(folder / "gallery.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        RunRecord.load(folder)


def test_a_gallery_with_pickled_objects_is_refused(folder: Path) -> None:
    np.savez(folder / "gallery.npz", rows=np.array([[{"a": 1}]], dtype=object))
    with pytest.raises(ValueError, match="is not a gallery"):
        RunRecord.load(folder)


def test_a_run_that_has_only_begun(folder: Path) -> None:
    run = RunRecord.load(folder)
    assert not run.finished
    assert run.metrics.empty
    assert run.issues is None
    assert run.gallery is None
    assert run.last("test_accuracy") is None
    (folder / "metrics.csv").write_text("")
    (folder / "issues.csv").write_text("")
    assert RunRecord.load(folder).issues is None


def test_half_a_line_of_metrics_is_left_out(folder: Path) -> None:
    (folder / "metrics.csv").write_text("epoch,loss,test_accuracy\n1,2.0,0.5\n2,1.5,0.625\n3,1.2,0.7,9,9\n")
    run = RunRecord.load(folder)
    assert run.curve("test_accuracy")[1].tolist() == [0.5, 0.625]
    assert run.last("test_accuracy") == 0.625


def test_values_that_are_not_finite_are_left_out(folder: Path) -> None:
    (folder / "metrics.csv").write_text("epoch,loss\n1,2.0\n2,inf\n3,\n4,nan\n5,oops\n6,1.0\n")
    x, y = RunRecord.load(folder).curve("loss")
    assert x.tolist() == [1, 6]
    assert y.tolist() == [2, 1]


def test_labels_are_kept_as_they_were_written(folder: Path) -> None:
    (folder / "issues.csv").write_text(
        "id,given,suggested,p_wrong,rank,flagged,truth\n007,NA,None,0.9,1,True,nan\n1e3,null,01,,2,0,null\n"
    )
    run = RunRecord.load(folder)
    assert run.issues[["id", "given", "suggested", "truth"]].to_numpy().tolist() == [
        ["007", "NA", "None", "nan"],
        ["1e3", "null", "01", "null"],
    ]
    assert run.issues["flagged"].tolist() == [True, False]
    assert np.isnan(run.issues["p_wrong"][1])
    assert run.really_wrong().tolist() == [True, False]


def test_the_list_is_sorted_by_rank_and_fills_in_what_is_optional(folder: Path) -> None:
    (folder / "issues.csv").write_text("given,suggested,p_wrong\na,b,0.9\nb,a,0.2\n")
    run = RunRecord.load(folder)
    assert run.issues["rank"].tolist() == [1, 2]
    assert run.issues["id"].tolist() == ["0", "1"]
    assert not run.issues["flagged"].any()
    assert run.num_samples == 2
    (folder / "issues.csv").write_text("id,given,suggested,p_wrong,rank\nx,a,b,0.2,2\ny,b,a,0.9,1\n")
    assert RunRecord.load(folder).issues["id"].tolist() == ["y", "x"]


def test_regression_truth_is_compared_as_numbers(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"data": {"task": "regression"}}))
    table = pd.DataFrame(
        {"given": ["1.50", "2"], "suggested": [1.4, 3.0], "p_wrong": [0.1, 0.9], "truth": ["1.5", "3"]}
    )
    table.to_csv(folder / "issues.csv", index=False)
    assert RunRecord.load(folder).really_wrong().tolist() == [False, True]


def test_sections_of_the_wrong_kind_count_as_absent(folder: Path) -> None:
    (folder / "run.json").write_text(
        '{"data": null, "result": {"noise_transition": [[1, 0], [1]], "true_transition": 5, "test_accuracy": NaN}}'
    )
    run = RunRecord.load(folder)
    assert run.section("data") == {}
    assert run.label == folder.name
    assert run.matrix("noise_transition") is None
    assert run.matrix("true_transition") is None
    assert run.last("test_accuracy") is None
