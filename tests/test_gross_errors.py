"""Regression with errors of any size, and what users are told of targets that are out of the ordinary."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest

import labelproof as lp
from labelproof import cli


def problem(rows: int = 300, *, wrong: float = 0.1, value: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs, targets of which a share is `value`, and which."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6))
    y = x @ np.linspace(1, 2, 6) + 0.1 * rng.normal(size=rows)
    bad = rng.permutation(rows)[: round(wrong * rows)]
    y[bad] = value
    return x, y, bad


@pytest.mark.filterwarnings("ignore:.* targets lie more than")
@pytest.mark.parametrize("value", [1e3, 1e5, -99999.0, 1e200])
@pytest.mark.parametrize("method", ["prl-l", "trimmed", "huber"])
def test_a_tenth_of_gross_errors_is_survived_and_found(method: str, value: float) -> None:
    x, y, bad = problem(value=value)
    reg = lp.NoisyLabelRegressor(method=method, epochs=20).fit(x, y)
    error = np.sqrt(np.mean((reg.predict(np.eye(6)) - np.linspace(1, 2, 6)) ** 2))
    assert error < 1, "the targets' spread is about 4"
    issues = reg.find_issues()
    assert set(issues.head(len(bad))["id"]) == set(bad.tolist())
    assert issues.head(len(bad))["flagged"].all()


def test_far_targets_are_told() -> None:
    x, y, _ = problem(100, value=1e6)
    with pytest.warns(UserWarning, match=r"10 of 100 targets lie more than 10 robust .* furthest is 1e\+06"):
        lp.NoisyLabelRegressor(epochs=1, noise_rate=0.1).fit(x, y)


def test_many_equal_targets_are_told() -> None:
    x, y, _ = problem(100, wrong=0.6, value=0.0)
    with pytest.warns(UserWarning, match="60 of 100 targets are 0: beside so many equal ones"):
        lp.NoisyLabelRegressor(epochs=1).fit(x, y)


def test_a_network_that_has_learned_nothing_is_told_and_one_that_has_is_not() -> None:
    x, y, _ = problem(200, wrong=0.0)
    with pytest.warns(UserWarning, match=r"the network explains \d+% of the spread of the targets"):
        lp.NoisyLabelRegressor(epochs=1, lr=1e-6).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lp.NoisyLabelRegressor(epochs=30, noise_rate=0.0).fit(x, y)


@pytest.mark.filterwarnings("ignore:.* targets lie more than")
def test_early_stopping_is_not_led_by_wrong_targets_among_the_held_out() -> None:
    x, y, _ = problem(600, wrong=0.1, value=60.0)
    how = {"method": "huber", "epochs": 40, "validation_fraction": 0.2, "lr": 0.02}
    stopped = lp.NoisyLabelRegressor(early_stopping=True, patience=40, **how).fit(x, y)
    whole = lp.NoisyLabelRegressor(**how).fit(x, y)
    unit = np.eye(6)
    errors = [np.sqrt(np.mean((r.predict(unit) - np.linspace(1, 2, 6)) ** 2)) for r in (stopped, whole)]
    assert errors[0] < 1.5 * errors[1] + 0.1
    by_rmse = 1 + int(np.argmin([row["val_rmse"] for row in stopped.history_]))
    assert stopped.run_.fitted.best_epoch != by_rmse, "the RMSE on wrong targets says little"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--task", "regression", "--noise", "symmetric:0.2"],
            "symmetric is for classes, .* are numbers",
        ),
        (["--task", "classification", "--label", "kind", "--noise", "sign-flip:0.2"], "sign-flip is for numbers"),
    ],
)
def test_noise_of_the_other_task_is_refused(
    words: list[str], text: str, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y, _ = problem(60, wrong=0.0)
    path = f"{tmp_path}/prices.csv"
    kinds = np.where(y > 0, "high", "low")
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": kinds, "label": y}).to_csv(path, index=False)
    with pytest.raises(SystemExit):
        cli.main(["inject", path, *words, "--out", f"{tmp_path}/noisy.csv"])
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(text, said), said


def test_a_method_for_regression_alone_says_the_task(tmp_path: object) -> None:
    x, y, _ = problem(60, wrong=0.0)
    path = f"{tmp_path}/prices.csv"
    pd.DataFrame({"a": x[:, 0], "price": np.round(y).astype(int)}).to_csv(path, index=False)
    words = ["find", path, "--label", "price", "--method", "huber", "--epochs", "2", "--quiet"]
    assert cli.main([*words, "--out", f"{tmp_path}/list.csv"]) == 0
    assert "suggested_value" in pd.read_csv(f"{tmp_path}/list.csv")
