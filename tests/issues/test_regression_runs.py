"""Wrong targets of real tables, found by training: estimator, command line, files and report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import labelproof as lp
from labelproof.data.dataset import Data
from labelproof.engine.settings import Settings
from labelproof.issues import regression, summarise
from labelproof.report.text import number
from labelproof.runs import train

TARGETS = {"concrete": "strength", "energy": "heating_load"}


def planted(data_dir: Path, name: str, kind: str):
    """20 % gross errors: ten times too large, or five standard deviations too high."""
    table = pd.read_csv(data_dir / "uci" / f"{name}.csv")
    y = table[TARGETS[name]].to_numpy(dtype=float)
    off = np.random.default_rng(0).random(len(y)) < 0.2
    given = np.where(off, 10 * y if kind == "tenfold" else y + 5 * y.std(), y)
    return table.assign(**{TARGETS[name]: given}), y, off


def fit(table: pd.DataFrame, target: str, unit: float = 1.0, **options):
    how = {"method": "trimmed", "noise_rate": 0.2, "epochs": 25, "batch_size": 64, "lr": 0.02} | options
    return lp.NoisyLabelRegressor(**how).fit(table.drop(columns=target), table[target] * unit)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["tenfold", "shifted"])
def test_gross_errors_are_ranked_first(data_dir: Path, name: str, kind: str) -> None:
    table, y, off = planted(data_dir, name, kind)
    reg = fit(table, TARGETS[name])
    issues = reg.find_issues()
    result = summarise(issues, off)
    assert result["average_precision"] >= 0.98
    assert result["precision"] > 0.9
    assert result["recall"] > 0.95
    flagged = issues[issues["flagged"]]
    np.testing.assert_array_equal(flagged["suggested"], flagged["suggested_value"])
    given = issues[~issues["flagged"]]
    np.testing.assert_array_equal(given["suggested"], given["given"])
    back = issues.sort_index()
    assert ((back["suggested_low"] <= y) & (y <= back["suggested_high"])).mean() > 0.85
    assert np.abs(back["suggested"] - y).mean() < np.abs(back["given"] - y).mean() / 5
    low, high = reg.run_.result["target_noise_interval"]
    assert low <= off.mean() <= high
    assert low < reg.run_.result["target_noise_rate"] < high


def test_units_a_thousand_times_smaller_rank_the_same(data_dir: Path) -> None:
    table, _, _ = planted(data_dir, "energy", "tenfold")
    a, b = (fit(table, "heating_load", unit, epochs=15).find_issues() for unit in (1.0, 1000.0))
    rank, other = (t.sort_index()["rank"] for t in (a, b))
    assert rank.corr(other, method="spearman") > 0.999
    np.testing.assert_allclose(b.sort_index()["scale"] / a.sort_index()["scale"], 1000, rtol=0.02)


def test_long_tailed_targets_rank_the_same_in_other_units() -> None:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.random((500, 4)), columns=list("abcd"))
    y = np.exp(3 * x["a"] + x["b"] + 0.1 * rng.normal(size=500))
    off = rng.random(500) < 0.2
    table = x.assign(y=np.where(off, 10 * y, y))
    a, b = (fit(table, "y", unit, epochs=30).find_issues() for unit in (1.0, 1000.0))
    assert a["rank"].sort_index().corr(b["rank"].sort_index(), method="spearman") > 0.999
    assert summarise(a, off)["average_precision"] > 0.9


def test_local_noise_is_fitted_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, inner = [], regression.local_scale
    monkeypatch.setattr(regression, "local_scale", lambda *given: calls.append(1) or inner(*given))
    x = np.random.default_rng(0).random((200, 2))
    reg = lp.NoisyLabelRegressor(method="mse", epochs=1, batch_size=64).fit(x, x[:, 0] + x[:, 1] ** 2)
    assert len(reg.find_issues()) == 200
    assert "target_noise_rate" in reg.run_.result
    assert len(calls) == 1


def test_what_is_not_a_number_is_null_in_the_record_at_any_depth(tmp_path: Path) -> None:
    """A procedure's figures, lists among them."""

    class Odd(lp.methods.MSE):
        def run(self, fit: Any, data: Any) -> Any:
            fit.note("odd", interval=[0.1, float("nan")], deep={"a": [[float("inf")], np.float64("-inf")]})
            return fit(self, data)

    x = np.random.default_rng(0).random((60, 2))
    data = Data(x.astype(np.float32), x[:, :1])
    run = train(data, Odd(), "mlp", Settings(epochs=1, device="cpu"), folder=tmp_path / "run")
    text = (tmp_path / "run" / "run.json").read_text()
    record = json.loads(text, parse_constant=lambda found: pytest.fail(f"{found} in JSON"))
    for result in (record["result"], run.result):
        assert result["interval"] == [0.1, None]
        assert result["deep"] == {"a": [[None], None]}


def test_the_command_line_lists_and_reports(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=list("abc"))
    table["price"] = 50 + 10 * table["a"] - 4 * table["b"] + rng.normal(size=300)
    table.loc[:3, "price"] += 200
    table.to_csv(tmp_path / "prices.csv", index=False)
    how = ["--label", "price", "--method", "trimmed", "--noise-rate", "0.1", "--epochs", "12", "--lr", "0.02"]
    command = [sys.executable, "-m", "labelproof", "train", str(tmp_path / "prices.csv"), *how, "--batch-size", "32"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, env=env, check=True
    )
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    low, high = result["target_noise_interval"]
    assert low <= 4 / 300 <= high
    assert f"targets estimated wrong  {result['target_noise_rate']:.1%}" in done.stdout
    assert "noise_rate" not in result
    issues = pd.read_csv(tmp_path / "run" / "issues.csv")
    assert set(issues["id"].head(4)) == {0, 1, 2, 3}
    # Where nothing is flagged the target stays; people are shown what the model says all the same.
    tenth = issues.iloc[9]
    assert not tenth["flagged"]
    assert tenth["suggested"] == tenth["given"]
    shown = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["10"])
    assert abs(float(shown.split()[3]) - tenth["suggested_value"]) < tenth["scale"] / 10, "digits that say something"
    page = (tmp_path / "run" / "report.html").read_text()
    row = re.search(r"<tr[^>]*>\s*<t[hd][^>]*>10</t[hd]>.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert number(tenth["suggested_value"]) in row[0]
    assert "Estimated share of wrong targets" in page
    assert "given − model's value" in page
