"""`labelproof theory`: the whole command on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labelproof.cli import main
from labelproof.engine.training import Training
from labelproof.procedures.ncv_theory import asymmetric

WORDS = ["theory", "digits", "--subset", "300", "--noise", "symmetric,pairflip", "--rates", "0,0.4", "--epochs", "2"]


def test_the_command_trains_writes_and_resumes(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert main([*WORDS, "--out", str(out)]) == 0
    table = pd.read_csv(out / "theory.csv")
    assert table["noise"].tolist() == ["symmetric"] * 2 + ["pairflip"] * 2
    assert table["rate"].tolist() == [0, 0.4, 0, 0.4]
    assert table["accuracy_theory"][3] == pytest.approx(asymmetric(table["realised"][3], 10).accuracy, abs=0.03)
    for name in ("theory.svg", "theory-confusion.svg"):
        assert "pairflip" in (out / name).read_text()
    for kind in ("symmetric", "pairflip"):
        assert all((out / f"theory-{kind}-{rate}").is_dir() for rate in ("0", "0.4"))
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    off = (table["accuracy"] - table["accuracy_theory"]).abs()
    assert record["result"]["largest_distance"]["pairflip"]["accuracy"] == pytest.approx(off[2:].max())
    assert "noise pairflip: measured on the half" in capsys.readouterr().out
    monkeypatch.setattr(Training, "run_batch", lambda *_: pytest.fail("trained again"))
    assert main([*WORDS, "--out", str(out), "--resume", "--quiet"]) == 0
    assert pd.read_csv(out / "theory.csv").equals(table)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rates", "0,x"], "--rates=0,x must be numbers in [0, 1], separated by commas"),
        (["--rates", "0,40"], "rates=40.0 must be in [0, 1]"),
        (["--noise", "pairflip,pairflip"], "noise='pairflip,pairflip' holds a kind more than once"),
        (["--noise", "symmetric,instance-dependent"], "kind='instance-dependent' is no noise with a rate"),
    ],
)
def test_nonsense_is_refused_before_any_training(
    words: list[str], said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "run_batch", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit):
        main(["theory", "digits", "--out", str(tmp_path / "out"), *words])
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_files_of_mine_are_left_alone(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "theory.svg").write_text("mine")
    with pytest.raises(SystemExit):
        main([*WORDS, "--out", str(tmp_path)])
    assert "holds theory.svg, which a run would overwrite" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "theory.svg").read_text() == "mine"
