"""`studies.clean`: the selection alone, its folder, killed and resumed, side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from labelproof import runs, studies
from labelproof.core.types import Loss
from labelproof.data.dataset import Data
from labelproof.engine import checkpoint
from labelproof.engine.launchers import Processes
from labelproof.engine.training import Training
from labelproof.methods import INCV
from labelproof.procedures.incv import Selection
from labelproof.report import write_report
from tests.toy import blobs, line, mlp, settings

COLUMNS = ["id", "y_noisy", "select", "candidate", "eval_ratio"]


def named(data: Data) -> Data:
    """The same under class names and ids of its own."""
    names = np.array([f"class {k}" for k in data.classes])
    ids = np.array([f"s{i:03d}" for i in range(len(data))])
    return Data(np.asarray(data.x), data.y, classes=names, ids=ids, truth=data.truth)


def small() -> nn.Module:
    return mlp(8, 4)


def clean(folder: Path | None, n: int = 160, **options: Any) -> Selection:
    data = named(blobs(n, 4, flips=0.3))
    how = settings(epochs=4, **options.pop("how", {}))
    method = INCV(**{"iterations": 2, **options.pop("method", {})})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return studies.clean(data, method, small, how, folder=folder, **options)


def test_the_folder_has_the_table_and_the_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found = clean(folder, command="labelproof clean x")
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"iteration-{i}-half-{k}" for i in (1, 2) for k in (1, 2)), "run.json", "selection.csv"
    ]  # fmt: skip
    table = pd.read_csv(folder / "selection.csv")
    assert list(table) == [*COLUMNS, "y"]
    assert table["id"].tolist() == [f"s{i:03d}" for i in range(160)]
    assert np.flatnonzero(table["select"]).tolist() == found.selected.tolist()
    assert np.flatnonzero(table["candidate"]).tolist() == found.candidates.tolist()
    data = named(blobs(160, 4, flips=0.3))
    assert table["y_noisy"].tolist() == data.classes[data.y].tolist()
    assert table["y"].tolist() == data.classes[data.truth].tolist()
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["what"]) == ("finished", "selection")
    assert record["command"] == "labelproof clean x"
    assert record["method"]["name"] == "incv"
    result = record["result"]
    assert result["selected"] == len(found.selected) == result["incv"][-1]["selected"]
    assert result["selected_noise"] == pytest.approx(found.selected_noise)
    assert result["incv_noise"]["rate"] == pytest.approx(found.noise.rate)
    assert result["seconds"] > 0


def test_without_a_folder_the_answer_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_folder, without = clean(tmp_path / "run"), clean(None)
    assert with_folder.selected.tolist() == without.selected.tolist()
    np.testing.assert_array_equal(with_folder.prob, without.prob)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_each_half_takes_its_share_of_the_epochs_and_no_second_stage_follows(tmp_path: Path) -> None:
    clean(tmp_path, method={"iterations": 1, "length": 0.25})
    stages = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    assert [len(pd.read_csv(p / "metrics.csv")) for p in stages] == [1, 1]
    assert not checkpoint.found(tmp_path)


def test_a_second_run_into_the_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    clean(tmp_path / "run", method={"iterations": 1})
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    with pytest.raises(FileExistsError, match=r"run holds a run already: give --resume to go on with it, or another "):
        clean(tmp_path / "run", method={"iterations": 1})
    assert {p: p.read_bytes() for p in before} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "selection.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine holds selection.csv, which a run would overwrite: choose another"):
        clean(tmp_path / "mine")
    assert (tmp_path / "mine" / "selection.csv").read_text() == "mine"


def test_a_run_of_another_command_is_not_gone_on_with_nor_reported_on(tmp_path: Path) -> None:
    clean(tmp_path / "run", method={"iterations": 1})
    before = (tmp_path / "run" / "run.json").read_bytes()
    data = named(blobs(160, 4, flips=0.3))
    with pytest.raises(FileExistsError, match=r"run holds a run of another command .*: give another folder with --out"):
        runs.train(data, INCV(iterations=1), small, settings(epochs=4), folder=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"run holds a selection, no trained model to report on: what it found stands"):
        write_report(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    data = line(40)
    with pytest.raises(ValueError, match="INCV compares predicted with given classes"):
        studies.clean(data, INCV(), lambda: mlp(6, 1), settings(), folder=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        clean(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="devices=2 trains each network on several devices, and a launcher trains"):
        clean(tmp_path / "run", launcher=Processes(2), how={"devices": 2})
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = clean(tmp_path)
    csv = (tmp_path / "selection.csv").read_bytes()
    (tmp_path / "selection.csv").unlink()

    def never(*_: Any) -> Loss:
        raise AssertionError("all halves are finished")

    monkeypatch.setattr(Training, "run_batch", never)
    again = clean(tmp_path, resume=True)
    assert (tmp_path / "selection.csv").read_bytes() == csv
    np.testing.assert_array_equal(again.prob, first.prob)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"how": {"lr": 0.05}}, r"lr=0\.05 \(was 0\.1\)"),
        ({"method": {"length": 0.25}}, r"length=0\.25.*was .*length=0\.5"),
        ({"n": 161}, "data="),
    ],
)
def test_other_settings_are_not_resumed(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    clean(tmp_path, method={"iterations": 1})
    how = {"resume": True, **options, "method": {"iterations": 1, **options.get("method", {})}}
    with pytest.raises(ValueError, match=f"cannot resume: the run was started with other settings: .*{text}"):
        clean(tmp_path, **how)


def slowly(folder: Path) -> None:
    """A run to be killed, as a program."""
    torch.set_num_threads(1)
    plain = Training.run_batch

    def slow(*args: Any) -> Loss:
        time.sleep(0.03)
        return plain(*args)

    Training.run_batch = slow  # type: ignore[method-assign]
    clean(folder, how={"checkpoint_every": 1})


def test_killed_in_a_half_and_resumed(tmp_path: Path) -> None:
    folder, half = tmp_path / "killed", "iteration-2-half-1"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "tests.test_studies", str(folder)], env=env) as victim:
        try:
            deadline = time.monotonic() + 60
            while not (folder / half / "last.ckpt").exists() and time.monotonic() < deadline:
                assert victim.poll() is None
                time.sleep(0.002)
        finally:
            victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL, "it must not have finished"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert not (folder / "selection.csv").exists()
    done = [p for k in (1, 2) for p in checkpoint.found(folder / f"iteration-1-half-{k}")]
    before = [p.stat().st_mtime_ns for p in done]
    resumed = clean(folder, resume=True, how={"checkpoint_every": 1})
    whole = clean(tmp_path / "whole", how={"checkpoint_every": 1})
    assert len(done) == 4
    assert [p.stat().st_mtime_ns for p in done] == before, "what was finished is not trained again"
    np.testing.assert_array_equal(resumed.prob, whole.prob)
    assert (folder / "selection.csv").read_bytes() == (tmp_path / "whole" / "selection.csv").read_bytes()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


if __name__ == "__main__":
    slowly(Path(sys.argv[1]))
