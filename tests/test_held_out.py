"""`labelproof find --folds`: the list from networks that were not trained on the samples they judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelproof import cli, studies
from labelproof.data.dataset import Data
from labelproof.engine.fitted import Fitted
from labelproof.engine.launchers import Processes
from labelproof.engine.stages import fit
from labelproof.issues import estimate_noise, find_issues
from labelproof.methods import METHODS
from labelproof.networks.factory import as_factory
from labelproof.procedures.cross_val import cross_val_probs
from tests.toy import blobs, line, settings

DATA = blobs(240, flips=0.2)
NAMES = np.array(["lily", "iris", "rose"])[DATA.y]


def find(*words: str | Path) -> int:
    return cli.main(["find", *map(str, words)])


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    frame = pd.DataFrame(np.asarray(DATA.x), columns=[f"petal {i}" for i in range(8)])
    frame["species"], frame["really"] = NAMES, np.array(["lily", "iris", "rose"])[DATA.truth]
    frame.insert(0, "id", [f"plant-{i:03d}" for i in range(240)])
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


def test_the_command_lists_every_sample(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [flowers, "--label", "species", "--truth", "really", "--id-column", "id", "--epochs", "6", "--lr", "0.1"]
    assert find(*words, "--batch-size", "32", "--folds", "3", "--out", tmp_path / "held.csv") == 0
    shown = capsys.readouterr()
    assert "3 trainings, each on 67% of the samples" in shown.err
    assert [f"fold-{k} of 3 finished" in shown.err for k in (1, 2, 3)] == [True] * 3
    assert "labels estimated wrong" in shown.out
    assert "average precision of the list  0.9" in shown.out
    table = pd.read_csv(tmp_path / "held.csv")
    assert list(table.columns[:6]) == ["id", "given", "suggested", "p_wrong", "rank", "flagged"]
    assert sorted(table["id"]) == [f"plant-{i:03d}" for i in range(240)]
    assert (table["given"] != table["truth"])[:40].mean() > 0.9
    find(*words, "--batch-size", "32", "--quiet", "--out", tmp_path / "record.csv")
    record = pd.read_csv(tmp_path / "record.csv")
    both = table.merge(record, on="id", suffixes=("_held", "_record"))
    assert np.abs(both["p_wrong_held"] - both["p_wrong_record"]).max() > 0.01, "0 folds is the record"


def test_it_is_what_the_parts_come_to(capsys: pytest.CaptureFixture[str]) -> None:
    data, how, names = DATA, settings(epochs=4), np.array(["lily", "iris", "rose"])
    data = Data(data.x, data.y, classes=names, ids=np.arange(240) + 1000, truth=data.truth)

    def train(part: Data, name: str) -> Fitted:
        return fit(METHODS["ce"](), as_factory("mlp", (8,), 3), part, how)

    probs = cross_val_probs(train, data, 3, seed=how.seed)
    for launcher in (None, Processes(1)):
        found = studies.held_out(data, METHODS["ce"](), "mlp", how, 3, launcher=launcher, verbose=1)
        said = capsys.readouterr().err
        assert "fold-3 of 3 finished" in said
        assert ("epoch 4/4" in said) is (launcher is None), "what runs side by side does not tell of epochs"
        want = find_issues(names[data.y], probs, classes=names, ids=data.ids)
        pd.testing.assert_frame_equal(found.issues, want)
        assert found.noise.rate == estimate_noise(names[data.y], probs, classes=names).rate
        assert found.result["noise_rate"] == found.noise.rate
        assert found.result["wrong"] == (data.y != data.truth).sum()


def test_targets_too() -> None:
    data = line(150, outliers=0.1)
    found = studies.held_out(data, METHODS["trimmed"](noise_rate=0.2), "mlp", settings(epochs=20, lr=0.02), 2)
    wrong = (data.y != data.truth)[:, 0]
    assert set(found.issues["id"].head(10)) <= set(np.flatnonzero(wrong))
    assert found.result["target_noise_rate"] == found.noise.rate == pytest.approx(0.1, abs=0.05)


def test_what_cannot_be_meant_is_named(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folds in ("1", "-2"):
        with pytest.raises(SystemExit):
            find(flowers, "--label", "species", "--folds", folds, "--out", tmp_path / "i.csv", "--quiet")
        assert f"folds={folds} must be a whole number of at least 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="devices=2 beside a launcher: leave one of both out"):
        studies.held_out(DATA, METHODS["ce"](), "mlp", settings(devices=2), 2, launcher=Processes(2))
    rare = np.where(np.arange(240) == 5, 0, 1 + DATA.y % 2)
    with pytest.warns(UserWarning, match="fewer samples") as told:
        studies.held_out(Data(DATA.x, rare, classes=np.arange(3)), METHODS["ce"](), "mlp", settings(epochs=1), 2)
    said = [str(w.message) for w in told]
    assert any("1 of 3 classes have fewer samples than folds=2 (0 1)" in text for text in said)
    assert not any("will never be predicted" in text for text in said), "which is said of a fold"
