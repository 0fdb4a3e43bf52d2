"""The command line, as a newcomer types it: real files, real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from labelproof import cli
from labelproof.engine.settings import Settings
from labelproof.flags import DEFAULT_METHODS, Parser, add_training
from labelproof.methods import METHODS
from tests.toy import blobs, line, same

LABELPROOF = [sys.executable, "-m", "labelproof"]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A CSV of one's own: two number columns too many, string labels, some wrong, the truth in a column."""
    data = blobs(240, flips=0.2)
    names = np.array(["iris", "lily", "rose"])
    frame = pd.DataFrame(np.asarray(data.x), columns=[f"petal {i}" for i in range(8)])
    frame["species"], frame["really"] = names[data.y], names[data.truth]
    frame.insert(0, "id", [f"plant-{i:03d}" for i in range(240)])
    path = tmp_path / "flowers.csv"
    frame.to_csv(path, index=False)
    return path


def run(*words: str | Path) -> int:
    return cli.main([str(w) for w in words])


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_train_writes_a_run_folder(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = flowers.read_bytes(), tmp_path / "run"
    run("train", flowers, "--label", "species", "--truth", "really", "--epochs", "8", "--lr", ".1", "--out", out)
    assert flowers.read_bytes() == before
    assert {p.name for p in out.iterdir()} >= {
        "run.json", "metrics.csv", "issues.csv", "gallery.npz", "report.html", "last.ckpt"
    }  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["classes"] == ["iris", "lily", "rose"]
    assert record["method"]["params"] == {"lam": 3.0, "beta": 0.7}
    assert record["result"]["average_precision"] > 0.8
    issues = pd.read_csv(out / "issues.csv")
    assert sorted(issues["id"]) == [f"plant-{i:03d}" for i in range(240)]
    shown = capsys.readouterr().out
    assert "labels estimated wrong" in shown
    assert "most suspicious" in shown
    assert str(out / "report.html") in shown.replace("\n", "")


def test_find_writes_the_list(flowers: Path, tmp_path: Path) -> None:
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet), (".json", pd.read_json)):
        out = tmp_path / f"issues{suffix}"
        run("find", flowers, "--label", "species", "--truth", "really", "--out", out, "--epochs", "4", "--quiet")
        table = read(out)
        assert list(table.columns[:6]) == ["id", "given", "suggested", "p_wrong", "rank", "flagged"]
        assert len(table) == 240


def test_inject_never_touches_the_input(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = flowers.read_bytes(), tmp_path / "noisy.parquet"
    run("inject", flowers, "--label", "really", "--noise", "pairflip:0.45", "--out", out)
    assert flowers.read_bytes() == before
    noisy, clean = pd.read_parquet(out), pd.read_csv(flowers)
    wrong = noisy["really"] != clean["really"]
    assert wrong.mean() == pytest.approx(0.45, abs=0.1)
    assert (noisy["label_original"] == clean["really"]).all()
    assert f"{wrong.mean():.4f}" in capsys.readouterr().out


def test_a_regression_csv_goes_through(tmp_path: Path) -> None:
    data = line(200, outliers=0.1)
    frame = pd.DataFrame(np.asarray(data.x), columns=list("abcdef")).assign(price=data.y)
    frame.to_csv(tmp_path / "prices.csv", index=False)
    how = ["--method", "co-teaching", "--noise-rate", "0.1", "--lr", ".02", "--batch-size", "32", "--quiet"]
    run("find", tmp_path / "prices.csv", "--label", "price", *how, "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert (data.y != data.truth)[table["id"].head(20), 0].mean() > 0.9


@pytest.fixture
def prices(tmp_path: Path) -> pd.DataFrame:
    data = line(60, outliers=0.1)
    return pd.DataFrame(np.asarray(data.x), columns=list("abcdef")).assign(price=data.y.astype(np.float64))


def at(frame: pd.DataFrame, rows: list[int], value: object) -> pd.DataFrame:
    """The table with some prices replaced; text and what is missing make a column of objects."""
    prices = frame["price"].astype(object)
    prices.iloc[rows] = value
    return frame.assign(price=prices if isinstance(value, str) else prices.astype(float))


BAD_TARGETS = {
    "NaN": (
        lambda f: at(f, [3, 5], np.nan),
        r"column 'price' of t\.\w+ has 2 missing values, the first in row 3: drop",
    ),
    "inf": (lambda f: at(f, [4], np.inf), r"column 'price' of t\.\w+ has 1 infinite value, the first in row 4: drop"),
    "-inf": (lambda f: at(f, [4], -np.inf), r"column 'price' of t\.\w+ has 1 infinite value, the first in row 4: drop"),
    "n/a": (lambda f: at(f, [6], "n/a"), r"column 'price' of t.csv has 1 missing value, the first in row 6: drop"),
    "12,5": (lambda f: at(f, [6], "12,5"), r"column 'price' of t.csv holds '12,5' in row 6, the first of 1 in 60 rows"),
    "unit": (
        lambda f: at(f, [6, 8], "3 kg"),
        r"holds '3 kg' in row 6, the first of 2 in 60 rows that are no numbers: r",
    ),
    "text": (lambda f: f.assign(price="cheap"), r"'cheap' in row 0, the first of 60 .* classes, say task='classificat"),
    "dates": (
        lambda f: f.assign(price=pd.date_range("2020-01-01", periods=60)),
        r"holds '2020-01-01' in row 0.*\(of a date, say, the days since another\)",
    ),
    "yes or no": (lambda f: f.assign(price=f.a > 0), r"column 'price' of t\.\w+ holds yes or no \((True|False)\), and"),
    "constant": (
        lambda f: f.assign(price=5.0),
        r"targets of t are constant \(5 in all 60 training rows\): there is noth",
    ),
    "too large": (
        lambda f: at(f, [7], 1e305),
        r"targets of t go up to 1e\+305 \(row 7\), and no further than 1e\+300 can",
    ),
    "two rows": (
        lambda f: f.head(2),
        r"too few training samples: n_samples=2, but regression needs at least 3, to tell",
    ),
    "misspelt": (
        lambda f: f.rename(columns={"price": "prize"}),
        r"'price' is not a column of t\.\w+: did you mean 'prize'",
    ),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_targets_are_named_and_leave_nothing(
    prices: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    make, text = BAD_TARGETS[name]
    if suffix == ".parquet" and "t.csv" in text:
        return  # in Parquet a column has one type
    frame, path = make(prices), tmp_path / f"t{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.astype({"price": str} if name == "unit" else {}).to_parquet(path)
    for command, out in (("train", tmp_path / "run"), ("find", tmp_path / "issues.csv")):
        said = fails(capsys, command, path, "--label", "price", "--task", "regression", "--epochs", "1", "--out", out)
        assert re.search(text, said), said
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("kind", ["1e30", "1e300", "half equal", "1e9 + 1", "whole numbers"])
def test_unusual_targets_go_through(prices: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    y = prices["price"].to_numpy().copy()
    if kind in ("1e30", "1e300"):
        y[7] = float(kind)
    elif kind == "half equal":
        y[:31] = 0.0
    else:
        y = np.round(y * 100) if kind == "whole numbers" else y + 1e9
    prices.assign(price=y.astype(int) if kind == "whole numbers" else y).to_csv(tmp_path / "t.csv", index=False)
    words = [
        tmp_path / "t.csv",
        "--label",
        "price",
        "--task",
        "regression",
        "--quiet",
        "--lr",
        "0.01",
        "--batch-size",
        "16",
    ]
    run("find", *words, "--out", tmp_path / "issues.csv")
    run("train", *words, "--out", tmp_path / "run")
    for path in (tmp_path / "issues.csv", tmp_path / "run" / "issues.csv"):
        table = pd.read_csv(path)
        np.testing.assert_allclose(table["given"], y[table["id"]], rtol=1e-15)
        assert np.isfinite(table["suggested"]).all()
        assert np.isfinite(table["p_wrong"]).all()
        if kind in ("1e30", "1e300"):
            assert table["id"][0] == 7
            assert table["flagged"][0]
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert result["method"]["name"] == "prl-l"


def test_the_default_method_and_network_follow_task_and_method(
    prices: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices.to_csv(tmp_path / "t.csv", index=False)
    words = ["train", tmp_path / "t.csv", "--label", "price", "--epochs", "1"]
    run(*words, "--task", "regression", "--noise-rate", "0.3", "--out", tmp_path / "told")
    record = json.loads((tmp_path / "told" / "run.json").read_text())
    assert (record["method"]["name"], record["method"]["params"]["noise_rate"]) == ("prl-l", 0.3)
    assert "targets flagged" in capsys.readouterr().out
    run(*words, "--out", tmp_path / "found", "--quiet")
    assert json.loads((tmp_path / "found" / "run.json").read_text())["method"]["name"] == "prl-l"
    for method, network in (("prl-g", "cnn-gn"), ("prl-l", "cnn")):
        out = tmp_path / method
        run("train", "digits", "--subset", "64", "--method", method, "--epochs", "1", "--out", out, "--quiet")
        assert json.loads((out / "run.json").read_text())["network"]["name"] == network


def test_options_of_the_default_method_work_without_naming_the_task(prices: pd.DataFrame, tmp_path: Path) -> None:
    """What the data makes decides which default method is trained, after the flags were read."""
    prices.to_csv(tmp_path / "t.csv", index=False)
    words = ["--label", "price", "--epochs", "1", "--quiet", "--noise-rate", "0.3", "--features"]
    run("train", tmp_path / "t.csv", *words, "--out", tmp_path / "run")
    method = json.loads((tmp_path / "run" / "run.json").read_text())["method"]
    assert method["name"] == "prl-l"
    assert method["params"] == {**METHODS["prl-l"]().get_params(), "noise_rate": 0.3, "features": True}
    run("find", tmp_path / "t.csv", *words, "--out", tmp_path / "issues.csv")
    run("train", "digits", "--subset", "64", "--epochs", "1", "--quiet", "--lam", "7", "--out", tmp_path / "digits")
    method = json.loads((tmp_path / "digits" / "run.json").read_text())["method"]
    assert method == {**method, "name": "elr", "params": {"lam": 7.0, "beta": 0.7}}


def test_options_of_the_other_default_method_are_refused_before_training(
    prices: pd.DataFrame, flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "run"
    prices.to_csv(path, index=False)
    for command in ("train", "find"):
        for words in (["--lam", "7"], ["--lam=3.0"], ["--noise-rate", "0.3", "--lam", "3"]):
            said = fails(capsys, command, path, "--label", "price", *words, "--out", out.with_suffix(".csv"))
            assert (
                "--lam is an option of --method elr, but these labels make a regression task, which is for --method "
                "prl-l where none is given: leave it out; or say --task classification if that is what it is" in said
            )
        for words in (["--noise-rate", "0.3"], ["--no-features"], ["--num_gradual", "3"]):
            said = fails(capsys, command, flowers, "--label", "species", *words, "--out", out.with_suffix(".csv"))
            assert "is an option of --method prl-l, but these labels make a classification task, which is for" in said
            assert "; ask for --method " in said
            assert re.search(r"prl-l.*; or say --task regression if", said)
    mine = recipe_file(tmp_path, "lam = 2.0\nepochs = 1")
    assert "--lam is an option of" in fails(capsys, "train", path, "--label", "price", "--recipe", mine, "--out", out)
    assert not out.exists()
    assert not out.with_suffix(".csv").exists()


def test_default_methods_share_no_option() -> None:
    """While the task is unknown a flag must have one meaning and one default."""
    elr, prl = (set(METHODS[name].param_names()) for name in DEFAULT_METHODS.values())
    assert not elr & prl
    parser = Parser(prog="t", allow_abbrev=False)
    add_training(parser, [])
    given = vars(parser.parse_args([]))
    for name in DEFAULT_METHODS.values():
        assert {k: given[k] for k in METHODS[name].param_names()} == METHODS[name]().get_params()


@pytest.mark.parametrize("value", ["-0.1", "1", "1.5", "nan", "abc"])
def test_a_noise_rate_is_a_share(
    prices: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    prices.to_csv(tmp_path / "t.csv", index=False)
    words = ["train", tmp_path / "t.csv", "--label", "price", "--task", "regression", f"--noise-rate={value}"]
    assert re.search(
        r"noise_rate=\S+ must lie in \[0, 1\)|--noise-rate: must be a number or 'auto'. Got value: (abc|nan)",
        fails(capsys, *words, "--out", tmp_path / "run"),
    )
    assert not (tmp_path / "run").exists()


def test_a_killed_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    """SIGKILL to the real command; then --resume; then compared with a run that was left alone."""
    words = ["train", "digits", "--method", "co-teaching", "--network", "mlp", "--noise", "symmetric:0.4"]
    words += ["--epochs", "12", "--checkpoint-every", "3", "--validation-fraction", "0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    victim = subprocess.Popen([*LABELPROOF, *words, "--out", str(killed)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (killed / "previous.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it must not have finished"
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    for out, more in ((killed, ["--resume"]), (whole, [])):
        subprocess.run([*LABELPROOF, *words, "--out", str(out), "--quiet", *more], env=env, check=True)
    from labelproof.engine import checkpoint

    a, b = checkpoint.load(killed), checkpoint.load(whole)
    for part in ("training", "evidence"):
        assert same(a[part], b[part])
    ours, theirs = (pd.read_csv(d / "issues.csv") for d in (killed, whole))
    assert ours.equals(theirs)


def test_overview_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(name, "--help")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "example:" in text
        assert name in text


def test_flags_of_a_method_come_from_its_constructor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("train", "--method", "co-teaching", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "options of --method co-teaching" in text
    assert "--noise-rate" in text
    assert "--lam LAM" not in text
    assert "--momentum-schedule MOMENTUM_SCHEDULE of the momentum, in the same words; multistep:80:0.1111 takes" in text


def test_methods_and_data_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run("methods")
    assert "co-teaching" in capsys.readouterr().out
    run("data")
    assert "digits" in capsys.readouterr().out


def test_typos_are_answered(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian': did you mean 'train'?" in fails(capsys, "trian", flowers)
    assert "unknown flag --epoch: did you mean '--epochs'?" in fails(capsys, "train", flowers, "--epoch", "3")
    assert "unknown method 'erl': did you mean 'elr'?" in fails(capsys, "train", flowers, "--method", "erl")
    assert (
        "unknown flag --noise-rate: it is an option of --method co-prl-g, co-prl-l, co-teaching, co-teaching+, incv, "
        "mentornet, prl-g, prl-l, self-paced or trimmed;"
        in fails(capsys, "train", flowers, "--method", "ce", "--noise-rate", "0.2")
    )
    assert "missing: data. See labelproof train --help" in fails(capsys, "train")
    text = fails(capsys, "train", flowers, "--label", "specie")
    assert "species" in text
    assert "petal 0" in text
    assert "did you mean 'digits'?" in fails(capsys, "train", "digit")
    assert "symmetric" in fails(capsys, "train", "digits", "--noise", "symetric:0.4")
    assert "--epochs" in fails(capsys, "train", "digits", "--epochs", "many")
    text = fails(capsys, "train", "digits", "--method", "bootstrap", "--kind", "sfot")
    assert "--kind: must be one of hard, soft. Got value: sfot" in text
    text = fails(capsys, "find", "digits", "--recipe", "mine.toml")
    assert "unknown flag --recipe: recipes are for labelproof train; see labelproof find --help" in text


@pytest.mark.parametrize("error", [MemoryError("no room for 3 GB"), MemoryError()])
def test_too_little_room_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: MemoryError
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("labelproof.runs.train", no_room)
    assert fails(capsys, "train", "digits") == f"error: {str(error) or 'MemoryError'}"


def test_the_truth_is_not_the_label(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "find", flowers, "--label", "species", "--truth", "species")
    assert "label='species' (--label) and truth='species' (--truth) are the same column" in text


def test_a_misfit_of_method_and_task(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "train", flowers, "--label", "petal 0", "--drop", "species,really", "--method", "sop+")
    assert "sop+ is for classification, but these labels make a regression task: choose a method for regression" in text
    assert "(labelproof methods lists them), or labels for classification (see --task)" in text


def test_too_few_samples_to_hold_any_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.csv").write_text("a,label\n1,x\n2,y\n3,x\n")
    text = fails(capsys, "train", tmp_path / "tiny.csv", "--method", "forward", "--out", tmp_path / "run")
    assert "forward and backward correction without a matrix need it: give transition" in text


def test_a_report_is_a_page_of_different_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"method": {"name": "ce"}}')
    text = fails(capsys, "report", tmp_path, "--out", tmp_path / "x.txt")
    assert "x.txt' must end in .html" in text
    assert f"run_dirs names a folder more than once: {tmp_path}. Give each run once" in fails(
        capsys, "report", tmp_path, f"{tmp_path}/."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_nothing_is_overwritten(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", flowers, "--label", "species", "--epochs", "1", "--quiet", "--out", tmp_path / "run"]
    run(*words)
    stamp = (tmp_path / "run" / "run.json").read_bytes()
    assert "holds a run already: give --resume to go on with it, or another folder" in fails(capsys, *words)
    assert (tmp_path / "run" / "run.json").read_bytes() == stamp
    assert "cannot write to the output folder" in fails(capsys, *words[:-1], flowers / "inside")
    text = fails(capsys, "find", flowers, "--label", "species", "--out", "issues.xls")
    assert "--out=issues.xls must end in .csv, .parquet or .json" in text


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "needs images of at least 28x28" in fails(capsys, "train", "digits", "--network", "cnn9", "--out", out)
    assert "no run in" in fails(capsys, "train", "digits", "--resume", "--out", out)
    assert not out.exists()
    run("train", "digits", "--network", "mlp", "--epochs", "1", "--out", out, "--quiet")
    assert (out / "report.html").exists()


def test_what_is_not_ours_is_never_overwritten(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("issues.csv", "run.json"):
        (mine / name).write_text("mine")
        words = ["train", flowers, "--label", "species", "--epochs", "1", "--quiet", "--out", mine]
        assert f"{mine} holds {name}, which a run would overwrite" in fails(capsys, *words)
        assert (mine / name).read_text() == "mine"
        (mine / name).unlink()
    before = flowers.read_bytes()
    assert "is the data itself" in fails(capsys, "find", flowers, "--label", "species", "--out", flowers)
    assert "must be a file in a folder that exists" in fails(
        capsys, "find", flowers, "--out", tmp_path / "no" / "x.csv"
    )
    assert flowers.read_bytes() == before


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["train", "digits", "--network", "mlp", "--epochs", "500", "--checkpoint-every", "1", "--out", str(out)]
    first = subprocess.Popen([*LABELPROOF, *words, "--quiet"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (out / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "another process is training in" in fails(capsys, *words, "--resume")
    finally:
        first.kill()
        first.wait()
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "running"


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", "digits", "--network", "mlp", "--epochs", "1", "--out", out, "--quiet")
    record = json.loads((out / "run.json").read_text())
    for path in out.iterdir():
        path.unlink()
    (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    run("train", "digits", "--network", "mlp", "--epochs", "1", "--out", out, "--quiet", "--resume")
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


def test_labels_with_brackets_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = blobs(60, classes=2)
    y = np.where(np.arange(60) < 6, 1 - data.y, data.y)  # so that both labels are suspected somewhere
    frame = pd.DataFrame(np.asarray(data.x)).assign(label=np.array(["[/neg]", "[red]"])[y])
    frame.to_csv(tmp_path / "odd.csv", index=False)
    run("find", tmp_path / "odd.csv", "--epochs", "20", "--out", tmp_path / "i.csv")
    shown = capsys.readouterr().out
    assert "[/neg]" in shown
    assert "[red]" in shown


def test_noise_on_noisy_labels_is_refused(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, "train", flowers, "--label", "species", "--truth", "really", "--noise", "symmetric:0.2")
    assert "the labels of flowers are noisy already; leave --noise out" in text


def test_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """Every joint batch is shared by two processes; one folder, one report, the list of one process."""
    words = ["train", "digits", "--network", "mlp", "--noise", "symmetric:0.4", "--epochs", "3", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for devices in ("1", "2"):
        out = ["--devices", devices, "--out", str(tmp_path / devices)]
        done = subprocess.run([*LABELPROOF, *words, *out], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.count("most suspicious") == 1
    one, two = (pd.read_csv(tmp_path / d / "issues.csv").set_index("id")["p_wrong"] for d in "12")
    assert (one - two.loc[one.index]).abs().max() < 1e-4


def recipe_file(tmp_path: Path, train: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "my digits"\ncitation = "me, 2026"\nsource = "here"\n\n[train]\n{train}\n')
    return path


def test_a_recipe_stands_between_the_default_and_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = recipe_file(tmp_path, 'data = "digits"\nmethod = "elr"\nlam = 2.0\nepochs = 2\nnoise = "symmetric:0.2"')
    out = tmp_path / "run"
    run("train", "--recipe", mine, "--epochs", "1", "--network", "mlp", "--out", out)
    record = json.loads((out / "run.json").read_text())
    assert record["method"]["params"] == {"lam": 2.0, "beta": 0.7}  # of the recipe, by default
    assert record["settings"]["epochs"] == 1  # as typed
    assert record["data"]["noise"]["kind"] == "symmetric"
    shown = capsys.readouterr().out
    assert "recipe mine: my digits" in shown
    assert "changed here, so not comparable: --epochs, --network" in shown


def test_the_record_of_a_recipe_repeats_the_run(tmp_path: Path) -> None:
    mine = recipe_file(tmp_path, 'data = "digits"\nnetwork = "mlp"\nepochs = 9\nnoise = "symmetric:0.2"')
    first, second = tmp_path / "first", tmp_path / "second"
    run("train", "--recipe", mine, "--epochs", "1", "--quiet", "--out", first)
    mine.unlink()
    command = json.loads((first / "run.json").read_text())["command"]
    assert "#" not in command, "zsh takes no comments when typed"
    assert "--recipe" not in command, "the file may be gone"
    _, *words = shlex.split(command)
    run(*(str(second) if word == str(first) else word for word in words))
    assert (first / "issues.csv").read_bytes() == (second / "issues.csv").read_bytes()


def test_a_recipe_with_another_method_or_other_data(flowers: Path, tmp_path: Path) -> None:
    """The baseline under a recipe's settings: what only its method knows goes; data on the command line counts."""
    mine = recipe_file(tmp_path, 'data = "digits"\nmethod = "elr"\nlam = 2.0\nepochs = 2')
    out = tmp_path / "run"
    run("train", flowers, "--label", "species", "--recipe", mine, "--method", "ce", "--quiet", "--out", out)
    record = json.loads((out / "run.json").read_text())
    assert (record["method"]["name"], record["settings"]["epochs"]) == ("ce", 2)
    assert record["data"]["classes"] == ["iris", "lily", "rose"]
    assert "lam" not in record["method"]["params"]


def test_a_recipe_without_a_method_is_one_for_the_task(prices: pd.DataFrame, tmp_path: Path) -> None:
    prices.to_csv(tmp_path / "t.csv", index=False)
    for train, words, name, params in (
        ('task = "regression"\nnoise-rate = 0.3', [], "prl-l", {"noise_rate": 0.3}),
        ("noise-rate = 0.3", [], "prl-l", {"noise_rate": 0.3}),
        ("noise-rate = 0.3\nlam = 2.0", ["--method", "mse"], "mse", {}),
        ("noise-rate = 0.3\nlam = 2.0", ["--method", "prl-l"], "prl-l", {"noise_rate": 0.3}),
    ):
        mine, out = recipe_file(tmp_path, train), tmp_path / "run"
        how = ["--label", "price", "--recipe", mine, "--epochs", "1", "--quiet", "--out", out]
        run("train", tmp_path / "t.csv", *how, *words)
        method = json.loads((out / "run.json").read_text())["method"]
        shutil.rmtree(out)
        assert (method["name"], {k: method["params"][k] for k in params}) == (name, params)


def test_mistakes_about_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'elr-cifar10-sym40'?" in fails(capsys, "train", "--recipe", "elr-cifar10-sym4")
    mine = recipe_file(tmp_path, "epochs = 1")
    assert "missing: data, which the recipe" in fails(capsys, "train", "--recipe", mine)
    mine = recipe_file(tmp_path, 'data = "digits"\nepoch = 1')
    assert f"recipe {mine}: unknown flag --epoch: did you mean '--epochs'?" in fails(capsys, "train", "--recipe", mine)


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run("recipes")
    shown = capsys.readouterr().out
    assert "elr-cosine-cifar10-sym80" in shown
    assert "80.69 ± 0.57" in shown


@pytest.mark.parametrize("name", sorted(METHODS))
def test_flags_have_the_defaults_of_the_signature(name: str) -> None:
    """What is not typed is what Python has when it is not given, for every method and every setting."""
    parser = Parser(prog="t", allow_abbrev=False)
    add_training(parser, ["--method", name])
    clean = ["--clean", "verified.csv"] if "clean" in METHODS[name].streams else []
    given = vars(parser.parse_args(["--method", name, *clean]))
    assert {k: given[k] for k in METHODS[name].param_names()} == METHODS[name]().get_params()
    for field in dataclasses.fields(Settings):
        assert given[field.name] == field.default


def test_a_switch_can_be_turned_off_and_on() -> None:
    parser = Parser(prog="t", allow_abbrev=False)
    add_training(parser, ["--method", "forward"])
    off = vars(parser.parse_args(["--method", "forward", "--no-calibrated", "--early-stopping"]))
    assert (off["calibrated"], off["early_stopping"]) == (False, True)
    again = vars(parser.parse_args(["--no-calibrated", "--calibrated", "--early-stopping", "--no-early-stopping"]))
    assert (again["calibrated"], again["early_stopping"]) == (True, False)


#: One iteration of two short halves.
CLEAN = ["--epochs", "4", "--lr", "0.1", "--batch-size", "32", "--iterations", "1", "--quiet"]


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be trained")


def selection(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "selection.csv", dtype={"id": str})


def test_clean_keeps_the_selected_rows_as_they_are(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out, folder = flowers.read_bytes(), tmp_path / "clean.csv", tmp_path / "run"
    words = ["clean", flowers, "--label", "species", "--truth", "really", "--out", out, "--run", folder, *CLEAN]
    run(*words[:-1], "--length", "1")
    assert flowers.read_bytes() == before
    table = selection(folder)
    assert list(table) == ["id", "y_noisy", "select", "candidate", "eval_ratio", "y"]
    lines = flowers.read_text().splitlines(keepends=True)
    assert table["id"].tolist() == [line.split(",")[0] for line in lines[1:]]
    assert 100 < table["select"].sum() < 240
    kept = [line for line, select in zip(lines[1:], table["select"], strict=True) if select]
    assert out.read_text() == "".join([lines[0], *kept]), "the very text, and no other column"
    given = pd.read_csv(flowers)
    assert (table["y_noisy"] == given["species"]).all()
    assert (table["y"] == given["really"]).all()
    copy = pd.read_csv(out)
    assert (copy["species"] == copy["really"]).mean() > (given["species"] == given["really"]).mean() + 0.1
    shown = capsys.readouterr().out
    assert f"samples kept  {len(copy):,} of 240" in shown
    assert "right ones" in shown
    assert str(out) in shown
    assert not (tmp_path / "runs").exists()


def test_clean_parquet(tmp_path: Path) -> None:
    data = blobs(120, 2, flips=0.2)
    frame = pd.DataFrame(np.asarray(data.x), columns=[f"f{i}" for i in range(8)])
    frame["kind"] = pd.Categorical(np.array(["no", "yes"])[data.y], ["yes", "no"], ordered=True)
    frame["when"] = pd.date_range("2020-01-01", periods=120)
    frame["tags"] = [[i] for i in range(120)]
    source = tmp_path / "data.parquet"
    frame.to_parquet(source)
    before, words = source.read_bytes(), ["clean", source, "--label", "kind", "--drop", "when,tags", *CLEAN]
    run(*words, "--out", tmp_path / "out.parquet", "--run", tmp_path / "run")
    assert source.read_bytes() == before
    table, copy = selection(tmp_path / "run"), pd.read_parquet(tmp_path / "out.parquet")
    assert list(table) == ["id", "y_noisy", "select", "candidate", "eval_ratio"]
    assert table["id"].tolist() == [str(i) for i in range(120)], "row numbers, where there are no ids"
    pd.testing.assert_frame_equal(copy, frame[table["select"].to_numpy()].reset_index(drop=True))


def test_clean_an_npz(tmp_path: Path) -> None:
    data = blobs(120, 2, flips=0.2)
    source = tmp_path / "data.npz"
    np.savez(source, x=data.x, y=np.array(["no", "yes"])[data.y], ids=np.arange(120) + 5, extra=np.arange(3))
    before = source.read_bytes()
    run("clean", source, *CLEAN, "--out", tmp_path / "out.npz", "--run", tmp_path / "run")
    assert source.read_bytes() == before
    table = selection(tmp_path / "run")
    rows = np.flatnonzero(table["select"])
    assert table["id"].tolist() == [str(i + 5) for i in range(120)]
    with np.load(tmp_path / "out.npz") as out:
        assert sorted(out.files) == ["extra", "ids", "x", "y"]
        np.testing.assert_array_equal(out["x"], np.asarray(data.x)[rows])
        assert out["y"].tolist() == np.array(["no", "yes"])[data.y][rows].tolist()
        assert out["ids"].tolist() == (rows + 5).tolist()
        assert out["extra"].tolist() == [0, 1, 2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Light and dark squares, a few of them in the wrong folder."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for i in range(40):
        name = ("dark", "light")[(i % 2) ^ (i % 8 == 0)]
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (8, 8, 3)) + 180 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def test_clean_a_folder_of_images(photos: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in photos.rglob("*.png")}
    out = tmp_path / "out.parquet"
    run("clean", photos, *CLEAN, "--network", "mlp", "--out", out, "--run", tmp_path / "run")
    assert {p: p.read_bytes() for p in photos.rglob("*.png")} == before
    table, copy = selection(tmp_path / "run"), pd.read_parquet(out)
    assert list(copy) == ["image", "label", "id"]
    assert copy["id"].tolist() == table["id"][table["select"]].tolist()
    assert 0 < len(copy) <= 40
    for row in copy.itertuples():
        assert row.image == (photos / row.id).read_bytes()
        assert row.label == row.id.split("/")[0]


def test_clean_refuses_what_cannot_be_written_before_training(
    flowers: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelproof.engine.stages.fit_once", never)
    monkeypatch.chdir(tmp_path)
    pixels = tmp_path / "pixels.parquet"
    pd.DataFrame({"image": [b"x"] * 4, "label": list("abab")}).to_parquet(pixels)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    there = {p for p in tmp_path.rglob("*") if p.is_file()}
    before = flowers.read_bytes()
    words = ["clean", flowers, "--label", "species"]
    for out, text in (
        (tmp_path / "nowhere" / "out.csv", "out.csv must be a file in a folder that exists"),
        (photos, "photos must end in .csv, .csv.gz, .parquet, .pq or .npz"),
        (tmp_path / "out.json", "out.json must end in .csv, .csv.gz, .parquet, .pq or .npz"),
        (flowers, "flowers.csv is the data itself, which is never changed: choose another file"),
        (tmp_path / "out.npz", "out.npz: a copy of an .npz is one, a copy of anything else is a table"),
    ):
        assert text in fails(capsys, *words, "--out", out)
    out = tmp_path / "out.csv"
    assert "out.csv: a copy of an .npz is one" in fails(capsys, "clean", tmp_path / "data.npz", "--out", out)
    for source in (photos, "digits"):
        assert "out.csv does not fit this data set: it is written to Parquet" in fails(
            capsys, "clean", source, "--out", out
        )
    assert "missing: out" in fails(capsys, *words)
    text = fails(capsys, *words, "--out", out, "--label", "petal 0", "--task", "regression")
    assert "INCV compares predicted with given classes: it has nothing to say of numbers" in text
    assert flowers.read_bytes() == before
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == there
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_clean_refuses_images_in_a_csv_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.data.samples import image_table

    monkeypatch.setattr("labelproof.engine.stages.fit_once", never)
    text = fails(capsys, "clean", image_table(tmp_path), "--out", tmp_path / "out.csv", "--run", tmp_path / "run")
    assert "column 'image' of images.parquet (binary) does not fit into a CSV: write Parquet" in text


def test_clean_again_is_refused_or_resumed(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "clean.csv", tmp_path / "run"
    words = ["clean", flowers, "--label", "species", "--drop", "really", "--out", out, "--run", folder, *CLEAN]
    run(*words)
    first, table = out.read_bytes(), (folder / "selection.csv").read_bytes()
    monkeypatch.setattr("labelproof.engine.training.Training.run_batch", never)
    text = fails(capsys, *words)
    assert "run holds a run already: give --resume to go on with it, or another folder with --run" in text
    assert out.read_bytes() == first
    out.unlink()
    run(*words, "--resume")
    assert out.read_bytes() == first
    assert (folder / "selection.csv").read_bytes() == table
    assert "was started with other settings" in fails(capsys, *words, "--resume", "--lr", "0.2")
    assert "no run in" in fails(capsys, *words[:-1], "--run", tmp_path / "other", "--resume")
    assert not (tmp_path / "other").exists()


def test_clean_killed_in_a_half_goes_on(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelproof.engine.training import Training

    def words(name: str) -> list[str | Path]:
        how = ["--label", "species", "--drop", "really", *CLEAN, "--iterations", "2"]
        return ["clean", flowers, *how, "--out", tmp_path / f"{name}.csv", "--run", tmp_path / name]

    plain, left = Training.run_batch, [11]  # a half has 2 epochs of 4 steps: in the second half

    def mortal(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Training, "run_batch", mortal)
        run(*words("killed"))
    assert not (tmp_path / "killed.csv").exists()
    assert (tmp_path / "killed" / "iteration-1-half-1").exists()
    run(*words("killed"), "--resume")
    run(*words("whole"))
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "killed" / "selection.csv").read_bytes() == (tmp_path / "whole" / "selection.csv").read_bytes()


def test_clean_side_by_side_writes_the_same_file(flowers: Path, tmp_path: Path) -> None:
    """Real worker processes."""
    for name, more in (("alone", []), ("beside", ["--jobs", "2"])):
        how = ["--label", "species", "--drop", "really", *CLEAN, *more]
        run("clean", flowers, *how, "--out", tmp_path / f"{name}.csv", "--run", tmp_path / name)
    assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "beside.csv").read_bytes()
    assert (tmp_path / "alone" / "selection.csv").read_bytes() == (tmp_path / "beside" / "selection.csv").read_bytes()


def test_clean_writes_what_became_of_each_sample_where_asked(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "clean.csv", tmp_path / "each.parquet"
    words = ["clean", flowers, "--label", "species", "--drop", "really", "--run", tmp_path / "run", "--out", out]
    run(*words, "--selection", table, *CLEAN[:-1])
    each, known = pd.read_parquet(table), selection(tmp_path / "run")
    assert list(each) == ["id", "y_noisy", "select", "candidate", "eval_ratio"]
    assert (each["select"] == known["select"]).all()
    assert f"what became of each sample: {table}" in capsys.readouterr().out
    monkeypatch.setattr("labelproof.engine.stages.fit_once", never)
    for name, text in (
        ("each.npz", "--selection=.*each.npz must end in .csv, .parquet or .json"),
        ("nowhere/each.csv", "--selection=.*each.csv must be a file in a folder that exists"),
        ("flowers.csv", "--selection=.*flowers.csv is the data itself, which is never changed"),
        ("clean.csv", "--selection=.*clean.csv is where the copy goes: choose another file"),
    ):
        assert re.search(text, fails(capsys, *words, "--selection", tmp_path / name))


def test_clean_has_no_flags_of_what_it_does_not_do(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options of the second stage and of how an epoch is chosen; the parser has each other option of INCV."""
    for flag in ("--warmup", "--num-gradual", "--selected-noise", "--early-stopping", "--method"):
        assert f"unknown flag {flag}" in fails(capsys, "clean", flowers, "--out", tmp_path / "o.csv", flag, "1")
    with pytest.raises(SystemExit):
        run("clean", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for flag in (
        "--noise-rate",
        "--iterations",
        "--length",
        "--discard",
        "--choose",
        "--jobs",
        "--resume",
        "--network",
    ):
        assert flag in text
