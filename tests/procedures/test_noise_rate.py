"""`noise_rate="auto"`, estimated by a cross-validation before training."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import labelproof as lp
from labelproof.cli import main
from labelproof.core.method import Fit, Planned
from labelproof.core.types import Loss
from labelproof.data.dataset import Data
from labelproof.engine.loop import fit_once
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import METHODS
from labelproof.procedures.noise_rate import FOLDS_TOLD
from tests.toy import blobs, factory, line, same, settings

TOLD = sorted(name for name, kind in METHODS.items() if "noise_rate" in kind.param_names())
#: Those that are told what this procedure estimates. INCV estimates in a way of its own: tests/procedures/test_incv.py.
ASKING = [name for name in TOLD if "with_noise_rate" in inspect.getclosurevars(METHODS[name].run).globals]
REGRESSION = [name for name in ASKING if "regression" in METHODS[name].tasks]
CLASSIFICATION = [name for name in ASKING if "classification" in METHODS[name].tasks]


def test_all_methods_that_are_told_a_rate_ask_for_it_here_but_incv() -> None:
    assert set(TOLD) - set(ASKING) == {"incv"}


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_auto_finds_the_rate_and_trains_with_it(name: str, rate: float) -> None:
    data = blobs(1000, flips=rate)
    r = fit(METHODS[name](noise_rate="auto"), factory(data), data, settings(epochs=6))
    assert abs(r.method.noise_rate - rate) < 0.05
    told = fit(METHODS[name](noise_rate=r.method.noise_rate), factory(data), data, settings(epochs=6))
    assert same(dict(r.nets.state_dict()), dict(told.nets.state_dict()))


@pytest.mark.parametrize(
    ("kind", "rate"), [("symmetric", 0.2), ("symmetric", 0.4), ("pairflip", 0.2), ("pairflip", 0.4)]
)
def test_auto_on_digits_is_within_five_points(kind: str, rate: float) -> None:
    X, y = load_digits(return_X_y=True)
    noisy = lp.noise.inject(y, kind, rate, seed=0)
    clf = lp.NoisyLabelClassifier(method="self-paced", noise_rate="auto").fit(X, noisy.labels)
    chosen = clf.run_.fitted.method.noise_rate
    assert abs(chosen - rate) < 0.05
    assert clf.method == "self-paced"
    assert clf.noise_rate == "auto"  # what was asked for stays


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_killed_in_any_stage_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    data = blobs(160, flips=0.3) if task == "classification" else line(160, outliers=0.3)
    how, method = settings(epochs=4, batch_size=32, lr=0.05), METHODS["co-teaching"]
    whole = fit(method(noise_rate="auto"), factory(data), data, how, folder=tmp_path / "whole")
    plain = Training.run_batch
    for k, steps in enumerate((3, 13, 30)):  # in the first fold, in the third, in the last training
        done = 0

        def mortal(*args: Any, at: int = steps) -> Loss:
            nonlocal done
            done += 1
            if done > at:
                raise KeyboardInterrupt
            return plain(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "run_batch", mortal)
            with pytest.raises(KeyboardInterrupt):
                fit(method(noise_rate="auto"), factory(data), data, how, folder=tmp_path / str(k))
        begun = any((tmp_path / str(k)).rglob("*.ckpt"))
        again = fit(method(noise_rate="auto"), factory(data), data, how, folder=tmp_path / str(k), resume=begun)
        assert again.method.noise_rate == whole.method.noise_rate
        assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))


def test_the_command_line_prints_and_records_what_was_chosen(tmp_path: Path, capsys: Any) -> None:
    words = ["train", "digits", "--noise", "symmetric:0.3", "--epochs", "10", "--out", str(tmp_path / "run")]
    assert main([*words, "--method", "co-teaching", "--noise-rate", "auto"]) == 0
    said = capsys.readouterr().err
    assert "estimated by cross-validation (95 % interval" in said
    params = json.loads((tmp_path / "run" / "run.json").read_text())["method"]["params"]
    assert abs(params["noise_rate"] - 0.3) < 0.05
    assert f"noise_rate={params['noise_rate']:.3g}" in said
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["cv_noise_rate"] == params["noise_rate"]
    assert result["cv_noise_interval"][0] < 0.3 < result["cv_noise_interval"][1]
    assert "Noise rate trained with" in (tmp_path / "run" / "report.html").read_text()


def test_resuming_in_the_folds_under_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, method, steps = blobs(160, flips=0.3), METHODS["co-teaching"], 0
    plain = Training.run_batch

    def mortal(*args: Any) -> Loss:
        nonlocal steps
        steps += 1
        if steps > 12:  # in the second fold
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_batch", mortal)
        with pytest.raises(KeyboardInterrupt):
            fit(method(noise_rate="auto"), factory(data), data, settings(epochs=4), folder=tmp_path)
    with pytest.raises(ValueError, match=r"cannot resume: .*noise_rate=0.1.*was .*noise_rate='auto'"):
        fit(method(noise_rate=0.1), factory(data), data, settings(epochs=4), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"cannot resume: .*epochs=8 \(was 4\)"):
        fit(method(noise_rate="auto"), factory(data), data, settings(epochs=8), folder=tmp_path, resume=True)


@pytest.mark.parametrize("value", ["Auto", "0,2", "20%", ""])
def test_the_command_line_says_what_a_noise_rate_is(value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "digits", "--method", "co-teaching", f"--noise-rate={value}"])
    assert f"--noise-rate: must be a number or 'auto'. Got value: {value}" in capsys.readouterr().err


@pytest.mark.parametrize("name", TOLD)
def test_nonsense_is_refused(name: str) -> None:
    for value in ("guess", "0.2", 1.0, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="noise_rate"):
            METHODS[name](noise_rate=value)


@pytest.mark.parametrize("name", REGRESSION)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_auto_in_regression_finds_the_share_of_wrong_targets(name: str, rate: float) -> None:
    data, how = line(300, outliers=rate), settings(epochs=20, lr=0.02)
    r = fit(METHODS[name](noise_rate="auto"), factory(data), data, how)
    assert abs(r.method.noise_rate - rate) < 0.1
    low, high = r.figures["cv_noise_interval"]
    assert low <= rate <= high
    assert r.notes == [
        f"noise_rate={r.method.noise_rate:.3g}, estimated by cross-validation (95 % interval {low:.3g} to {high:.3g})"
    ]
    told = fit(METHODS[name](noise_rate=r.method.noise_rate), factory(data), data, how)
    assert same(dict(r.nets.state_dict()), dict(told.nets.state_dict()))


def test_units_of_targets_do_not_change_the_estimate() -> None:
    data = line(200, outliers=0.2)
    far = replace(data, y=data.y.astype(np.float64) * 1e-9 + 1e3, truth=None)
    rates = [
        fit(METHODS["prl-l"](noise_rate="auto"), factory(d), d, settings(epochs=15, lr=0.02)).method.noise_rate
        for d in (data, far)
    ]
    assert rates[0] == pytest.approx(rates[1], abs=0.005)
    assert rates[0] == pytest.approx(0.2, abs=0.05)


def test_folds_of_a_regression_are_trained_carefully_and_for_all_epochs() -> None:
    data, seen = line(60), []

    class Recorder(Fit):
        def __call__(self, method: Any, part: Data, **how: Any) -> Any:
            seen.append((method.noise_rate, len(part), how))
            return SimpleNamespace(method=method, predict=lambda x: x @ np.linspace(1, 2, 6)[:, None])

        def note(self, text: str, **figures: Any) -> None:
            seen.append(text)

    last = METHODS["prl-l"](noise_rate="auto", num_gradual=7).run(Recorder(), data)
    assert seen[:3] == [(FOLDS_TOLD, 40, {"stage": f"noise-rate-fold-{k}", "length": 1.0}) for k in (1, 2, 3)]
    assert seen[3].startswith("noise_rate=0")
    assert seen[4] == (pytest.approx(0, abs=0.1), 60, {})
    assert last.method.num_gradual == 7


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_folds_are_planned_together(task: str) -> None:
    """So that a launcher can train them side by side."""
    data, asked = blobs(60) if task == "classification" else line(60), []

    class Planner(Fit):
        def __call__(self, method: Any, part: Data, **how: Any) -> Any:
            asked.append(how)
            predict = (lambda x: np.full((len(x), 3), 1 / 3)) if task == "classification" else (lambda x: x[:, :1])
            return SimpleNamespace(method=method, predict=predict)

        def all(self, plans: Any) -> Any:
            asked.append([p.stage for p in plans])
            assert sorted(np.concatenate([p.data.ids for p in plans])) == sorted([*range(60)] * 2)
            assert {type(p) for p in plans} == {Planned}
            return super().all(plans)

        def note(self, text: str, **figures: Any) -> None:
            pass

    with pytest.warns(UserWarning, match="little to go by"):
        METHODS["self-paced"](noise_rate="auto").run(Planner(), data)
    assert asked[0] == [f"noise-rate-fold-{k}" for k in (1, 2, 3)]
    assert [how.get("stage") for how in asked[1:]] == [*asked[0], None]


def test_rows_that_are_not_trained_on_have_no_say() -> None:
    whole, folds = blobs(300, flips=0.2), []
    part = whole.only(np.arange(150))

    class Recorder(Fit):
        def __call__(self, method: Any, data: Data, *, stage: str = "", **how: Any) -> Any:
            if stage:
                folds.append(data.ids)
                return SimpleNamespace(predict=lambda x: np.full((len(x), 3), 1 / 3))
            return data

        def note(self, text: str, **figures: Any) -> None:
            pass

    with pytest.warns(UserWarning, match="little to go by"):
        assert METHODS["self-paced"](noise_rate="auto").run(Recorder(), part) is part
    assert sorted(np.concatenate(folds)) == sorted([*range(150)] * 2)


def test_an_estimate_from_networks_that_explain_little_is_doubted() -> None:
    rng = np.random.default_rng(0)
    noise = Data(rng.normal(size=(90, 4)).astype(np.float32), rng.normal(size=(90, 1)))
    with pytest.warns(
        UserWarning, match=r"little to go by: the networks explain \d+% of the spread of the targets, and"
    ):
        fit(METHODS["prl-l"](noise_rate="auto"), factory(noise), noise, settings(epochs=4))


def test_too_few_targets_are_refused_before_any_training() -> None:
    data = line(8)
    with pytest.raises(ValueError, match="noise_rate='auto' needs at least 9 samples, and there are 8: give a number"):
        fit(METHODS["prl-l"](noise_rate="auto"), factory(data), data, settings())


def test_targets_equal_in_all_but_one_fold_are_refused_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).normal(size=(99, 4)).astype(np.float32), np.zeros((99, 1))
    y[40] = 1
    data = Data(x, y)
    with pytest.raises(
        ValueError,
        match=r"auto' trains on 2 of 3 parts of the data, and of 99 targets 1 differ .* the same part: give a",
    ):
        fit(METHODS["prl-l"](noise_rate="auto"), lambda k: pytest.fail("a network was made"), data, settings())
    y[:] = 5
    with pytest.raises(ValueError, match=r"targets of data are constant .* was another column meant"):
        fit(METHODS["prl-l"](noise_rate="auto"), factory(data), Data(x, y), settings())
    y[::3] = 4
    assert fit(METHODS["prl-l"](noise_rate="auto"), factory(data), Data(x, y), settings(epochs=1)).notes


def test_too_few_samples_of_a_class_are_named() -> None:
    y = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    data = Data(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), y, classes=np.arange(2))
    with pytest.raises(ValueError, match=r"noise_rate='auto' needs two classes of at least 3 samples.*7, 1: give a"):
        fit(METHODS["self-paced"](noise_rate="auto"), factory(data), data, settings(batch_size=4))


def test_a_rare_class_takes_no_part_and_no_fold_is_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    data = blobs(600, flips=0.2)
    rare = data.relabelled(np.where(np.arange(600) < 2, 3, data.y))
    rare = replace(rare, classes=np.arange(4))
    r = fit(METHODS["co-teaching+"](noise_rate="auto", warmup=4), factory(rare), rare, settings(epochs=6))
    assert abs(r.method.noise_rate - 0.2) < 0.05
    assert not [w for w in recwarn if "will never be predicted" in str(w.message) or "warmup" in str(w.message)]


def test_an_estimate_from_networks_that_learned_nothing_is_doubted() -> None:
    rng = np.random.default_rng(0)
    noise = Data(rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 3, 90), classes=np.arange(3))
    with pytest.warns(UserWarning, match=r"noise_rate='auto' came to .* which is little to go by"):
        fit(METHODS["self-paced"](noise_rate="auto"), factory(noise), noise, settings(epochs=4))


def test_auto_is_refused_where_nobody_estimates() -> None:
    for name in TOLD:
        with pytest.raises(ValueError, match=r"noise_rate='auto' is estimated by Method\.run"):
            fit_once(METHODS[name](noise_rate="auto"), factory(blobs()), blobs(), settings())
