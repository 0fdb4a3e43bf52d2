"""`--verified N`: true labels of so many samples in place of `--clean`, for experiments where the truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelproof import cli
from labelproof.asked import verified
from labelproof.data.dataset import Data
from tests.toy import blobs, line


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(w) for w in words])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    data = blobs(120, flips=0.3)
    frame = pd.DataFrame(np.asarray(data.x), columns=[f"petal {i}" for i in range(8)])
    names = np.array(["iris", "lily", "rose"])
    frame["species"], frame["really"] = names[data.y], names[data.truth]
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


@pytest.mark.parametrize("count", [3, 10, 30, 96])
def test_they_have_true_labels_and_every_class_alike(count: int) -> None:
    data = blobs(97, 3, flips=0.4)
    before = data.y.copy()
    taken = verified(data, count, 0)
    share = count // 3
    assert len(taken) == 3 * share
    assert np.bincount(taken.y, minlength=3).tolist() == [share] * 3
    np.testing.assert_array_equal(data.y, before)
    rows = [int(np.flatnonzero((np.asarray(data.x) == x).all(1))[0]) for x in np.asarray(taken.x)]
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(taken.y, np.asarray(data.truth)[rows])
    assert (taken.y != data.y[rows]).any() or count < 10, "labels as given would not do"
    np.testing.assert_array_equal(taken.classes, data.classes)
    assert str(len(taken)) in taken.name


def test_the_choice_is_that_of_the_seed() -> None:
    data = blobs(97, 3, flips=0.4)
    first, again, other = (np.asarray(verified(data, 12, seed).x) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("count", [0, 2, -3, 97 * 3])
def test_too_few_or_too_many(count: int) -> None:
    with pytest.raises(ValueError, match=rf"--verified={count} must be 3 \(one of each class\) to 96"):
        verified(blobs(97, 3), count, 0)


def test_where_the_truth_is_not_known() -> None:
    data = blobs(97, 3)
    unknown = Data(data.x, data.y, classes=data.classes)
    with pytest.raises(ValueError, match=r"--verified=9: the true labels of .* are not known; give --clean DATA"):
        verified(unknown, 9, 0)
    with pytest.raises(ValueError, match="--verified=9"):
        verified(line(97), 9, 0)


def test_from_the_command_line(flowers: Path, tmp_path: Path) -> None:
    words = ["train", flowers, "--label", "species", "--truth", "really", "--epochs", "2", "--quiet"]
    for method in ("mentornet-dd", "mw-net"):
        out = tmp_path / method
        cli.main([str(w) for w in (*words, "--method", method, "--verified", "30", "--out", out)])
        record = json.loads((out / "run.json").read_text())
        assert record["data"]["streams"]["clean"]["n"] == 30
        assert "--verified" in record["command"]
    cli.main([str(w) for w in (*words, "--method", "mw-net", "--out", tmp_path / "without")])
    assert json.loads((tmp_path / "without" / "run.json").read_text())["data"]["streams"] == {}


def test_labels_that_were_made_wrong_have_a_truth(tmp_path: Path) -> None:
    """Noise is injected first: the verified labels are those from before."""
    out = tmp_path / "run"
    words = ["train", "digits", "--noise", "symmetric:0.4", "--method", "mentornet-dd", "--verified", "50"]
    cli.main([*words, "--epochs", "1", "--network", "mlp", "--quiet", "--out", str(out)])
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["streams"]["clean"]["n"] == 50
    assert 0.3 < record["result"]["true_rate"] < 0.5


def test_what_is_refused(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", flowers, "--label", "species", "--epochs", "1", "--out", tmp_path / "run")
    truth = (*words, "--truth", "really", "--method", "mentornet-dd")
    told = fails(capsys, *truth, "--verified", "9", "--clean", flowers)
    assert "--verified=9 is in place of --clean: give one of them" in told
    assert "--verified=1 must be 3 (one of each class) to" in fails(capsys, *truth, "--verified", "1")
    assert "--verified: must be a whole number" in fails(capsys, *truth, "--verified", "few")
    assert "missing: --clean DATA" in fails(capsys, *truth)
    unknown = fails(capsys, *words, "--drop", "really", "--method", "mentornet-dd", "--verified", "9")
    assert "the true labels of flowers" in unknown
    assert "give --clean DATA" in unknown
    assert "--verified" in fails(capsys, *words, "--truth", "really", "--method", "ce", "--verified", "9")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_with_the_same_ones_and_no_others(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", flowers, "--label", "species", "--truth", "really", "--method", "mw-net", "--quiet"]
    words += ["--epochs", "2", "--out", tmp_path / "run"]
    cli.main([str(w) for w in (*words, "--verified", "30")])
    cli.main([str(w) for w in (*words, "--verified", "30", "--resume")])
    assert "cannot resume" in fails(capsys, *words, "--verified", "60", "--resume")
