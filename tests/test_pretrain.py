"""`labelproof pretrain`, and `--encoder` of the other commands: real files, real processes, really killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import labelproof as lp
from labelproof import cli, flags
from labelproof.core.encoder import body
from labelproof.core.nets import linear_head
from labelproof.data.dataset import Data
from labelproof.data.readers import read
from labelproof.engine import checkpoint
from labelproof.engine.settings import Settings
from labelproof.networks.factory import as_factory
from labelproof.procedures.contrast import Contrast
from labelproof.studies import pretrain
from tests.toy import blobs, line, same

REPO = Path(__file__).resolve().parents[1]


def run(*words: str | Path) -> int:
    return cli.main([str(w) for w in words])


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What standard error says of a command that stops with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def table(path: Path, data: Data) -> Path:
    frame = pd.DataFrame(data.x, columns=[f"x{k}" for k in range(data.x.shape[1])])
    label = data.y if data.classes is None else np.array(["ada", "bob", "cyd"])[data.y]
    frame.assign(label=np.asarray(label).reshape(-1)).to_csv(path, index=False)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return table(tmp_path / "rows.csv", blobs(200, flips=0.3))


@pytest.fixture
def encoder(tmp_path: Path, rows: Path) -> Path:
    out = tmp_path / "made.safetensors"
    run("pretrain", rows, "--epochs", "3", "--run", tmp_path / "made", "--out", out, "--quiet")
    return out


def images(path: Path, *, top: int = 255, channels: int = 3, dark: int = 0) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.integers(0, 120, (90, channels, 8, 8)) + (y * 60)[:, None, None, None]
    x[0] = 255
    pixels = (x >> dark).astype(np.uint8) if top == 255 else (x / 255).astype(np.float32)
    np.savez(path, x=pixels, y=y)
    return path


class TestPretrain:
    def test_leaves_a_file_and_a_run(self, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = rows.read_bytes()
        out, folder = tmp_path / "enc.safetensors", tmp_path / "run"
        run("pretrain", rows, "--epochs", "4", "--out", out, "--run", folder, "--temperature", "0.2", "--width", "16")
        assert rows.read_bytes() == before
        shown = " ".join(capsys.readouterr().out.split())
        assert "a linear probe agrees with the labels as given for" in shown
        assert "nearest neighbours agree with them for" in shown
        assert f"next: labelproof train DATA --encoder {out}" in shown
        record = json.loads((folder / "run.json").read_text())
        assert (record["what"], record["status"], record["network"]["name"]) == ("encoder", "finished", "mlp")
        assert record["method"]["params"] == {"temperature": 0.2, "width": 16, "probe_lr": 0.001}
        assert record["command"].startswith(f"labelproof pretrain {rows}")
        s = record["settings"]
        assert (s["optimizer"], s["lr"], s["batch_size"], s["weight_decay"]) == ("adamw", 0.001, 256, 0.01)
        with (folder / "metrics.csv").open() as file:
            history = list(csv.DictReader(file))
        assert len(history) == 4
        for name in ("contrast", "probe", "agree", "knn_agreement"):
            assert all(row[name] for row in history)
            assert name == "probe" or record["result"][name] == pytest.approx(float(history[-1][name]))
        assert record["result"]["epochs"] == 4

    def test_the_file_says_all_that_is_needed(self, encoder: Path, rows: Path, tmp_path: Path) -> None:
        made = lp.load_encoder(encoder)
        x = pd.read_csv(rows).drop(columns="label").to_numpy(np.float32)
        np.testing.assert_allclose(made.mean, x.mean(0), atol=1e-5)
        np.testing.assert_allclose(made.scale, 1 / x.std(0), rtol=1e-4)
        assert made.about["network"] == "mlp"
        assert made.about["n"] == 200
        assert made.about["epochs"] == 3
        assert made.about["data"] == "rows"
        state = checkpoint.load(tmp_path / "made")["training"]["step"]
        assert {f"nets.peers.0.{k}" for k in made.weights} == {
            k for k in state if k.startswith("nets.") and ".head." not in k
        }
        for name, tensor in made.weights.items():
            assert torch.equal(tensor, state[f"nets.peers.0.{name}"])
        with safe_open(encoder, framework="pt") as file:
            names = list(file.keys())
        assert not any("head" in name or name.startswith(("g.", "method.")) for name in names)

    def test_out_without_an_ending(self, rows: Path, tmp_path: Path) -> None:
        run("pretrain", rows, "--epochs", "1", "--out", tmp_path / "enc", "--run", tmp_path / "run", "--quiet")
        assert lp.load_encoder(tmp_path / "enc.safetensors").about["network"] == "mlp"
        assert not (tmp_path / "enc").exists()

    def test_a_folder_of_its_own_by_default(
        self, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run("pretrain", rows, "--epochs", "1", "--seed", "5", "--out", "enc", "--quiet")
        assert capsys.readouterr().out == ""
        assert json.loads((tmp_path / "runs" / "rows-pretrain-seed5" / "run.json").read_text())["what"] == "encoder"

    def test_the_same_command_makes_the_same_file(self, rows: Path, tmp_path: Path) -> None:
        files = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            files.append(tmp_path / f"{name}.safetensors")
            words = ["--epochs", "2", "--seed", str(seed), "--run", tmp_path / name, "--quiet"]
            run("pretrain", rows, "--out", files[-1], *words)
        a, b, c = (file.read_bytes() for file in files)
        assert a == b != c

    def test_labels_make_no_difference(self, rows: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(rows)
        frame["label"] = np.random.default_rng(0).permutation(frame["label"])
        (tmp_path / "other").mkdir()
        frame.to_csv(tmp_path / "other" / "rows.csv", index=False)
        files = []
        for k, data in enumerate((rows, tmp_path / "other" / "rows.csv")):
            files.append(tmp_path / f"{k}.safetensors")
            words = ["--epochs", "3", "--clip", "0.1", "--run", tmp_path / str(k), "--quiet"]
            run("pretrain", data, "--out", files[-1], *words)
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_test_data_is_for_the_probe(self, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        test = table(tmp_path / "test.csv", blobs(60, seed=3))
        words = ["--epochs", "2", "--run", tmp_path / "run", "--out", tmp_path / "e"]
        run("pretrain", rows, "--test", test, *words)
        assert "test accuracy of the probe" in capsys.readouterr().out
        run("pretrain", rows, "--epochs", "2", "--run", tmp_path / "alone", "--out", tmp_path / "f", "--quiet")
        assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()

    def test_numbers_as_targets(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = table(tmp_path / "line.csv", line(120))
        words = ["--task", "regression", "--epochs", "2", "--run", tmp_path / "run", "--out", tmp_path / "e"]
        run("pretrain", data, *words)
        assert "written to" in capsys.readouterr().out
        out = tmp_path / "run2"
        run(
            "train",
            data,
            "--task",
            "regression",
            "--encoder",
            tmp_path / "e.safetensors",
            "--out",
            out,
            "--epochs",
            "1",
        )
        assert "started from" in capsys.readouterr().out

    def test_images_choose_a_network_and_go_on_from_an_encoder(self, tmp_path: Path) -> None:
        data = images(tmp_path / "images.npz")
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        run("pretrain", data, "--epochs", "1", "--run", tmp_path / "1", "--out", first, "--quiet")
        words = ["--encoder", first, "--epochs", "1", "--run", tmp_path / "2", "--out", second, "--quiet"]
        run("pretrain", images(tmp_path / "dark.npz", dark=2), *words)
        a, b = lp.load_encoder(first), lp.load_encoder(second)
        assert (a.about["network"], b.about["network"], a.top) == ("cnn", "cnn", 255.0)
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.scale, b.scale)
        assert a.digest != b.digest


class TestTrain:
    def test_starts_from_it(
        self, rows: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["train", rows, "--encoder", encoder, "--method", "gce", "--epochs", "3"]
        run(*words, "--out", tmp_path / "run")
        assert f"started from {encoder}: 4 of 4 tensors matched" in " ".join(capsys.readouterr().out.split())
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        made = lp.load_encoder(encoder)
        assert record["network"]["name"] == f"mlp from encoder {made.digest}"
        assert any("4 of 4 tensors matched" in note for note in record["result"]["notes"])
        kept = checkpoint.load(tmp_path / "run")["standardise"]
        assert torch.equal(kept["mean"].flatten(), made.mean)

    def test_frozen(self, rows: Path, encoder: Path, tmp_path: Path) -> None:
        run("train", rows, "--encoder", encoder, "--freeze", "--epochs", "3", "--out", tmp_path / "run", "--quiet")
        state = checkpoint.load(tmp_path / "run")["training"]["step"]
        for name, tensor in lp.load_encoder(encoder).weights.items():
            assert torch.equal(state[f"nets.peers.0.{name}"], tensor)
        assert state["nets.peers.0.head.weight"].any()
        assert "frozen" in json.loads((tmp_path / "run" / "run.json").read_text())["network"]["name"]

    def test_dark_images_with_the_scaling_of_bright_ones(self, tmp_path: Path) -> None:
        bright, dark = images(tmp_path / "bright.npz"), images(tmp_path / "dark.npz", dark=3)
        made, out = tmp_path / "e.safetensors", tmp_path / "run"
        run("pretrain", bright, "--epochs", "1", "--run", tmp_path / "pre", "--out", made, "--quiet")
        run("train", dark, "--encoder", made, "--method", "ce", "--epochs", "2", "--out", out, "--quiet")
        own, state = lp.load_encoder(made), checkpoint.load(out)
        assert torch.equal(state["standardise"]["mean"].flatten(), own.mean)
        assert torch.equal(state["standardise"]["scale"].flatten(), own.scale)
        x = np.load(bright)["x"].astype(np.float64)
        np.testing.assert_allclose(own.mean, x.mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(own.scale, 1 / x.std((0, 2, 3)), rtol=1e-5)

    def test_find_and_clean_start_from_it_too(self, rows: Path, encoder: Path, tmp_path: Path) -> None:
        out = tmp_path / "issues.csv"
        run("find", rows, "--encoder", encoder, "--freeze", "--folds", "2", "--epochs", "3", "--out", out, "--quiet")
        assert len(pd.read_csv(out)) == 200
        copy = tmp_path / "clean.csv"
        words = ["--encoder", encoder, "--epochs", "4", "--iterations", "1", "--run", tmp_path / "clean", "--quiet"]
        run("clean", rows, *words, "--out", copy)
        assert 0 < len(pd.read_csv(copy)) < 200
        name = json.loads((tmp_path / "clean" / "run.json").read_text())["network"]["name"]
        assert name.startswith("mlp from encoder ")

    @pytest.mark.slow
    def test_jobs_start_from_it_in_their_processes(self, rows: Path, encoder: Path, tmp_path: Path) -> None:
        words = ["find", rows, "--encoder", encoder, "--folds", "2", "--epochs", "2", "--quiet"]
        run(*words, "--out", tmp_path / "one.csv")
        run(*words, "--out", tmp_path / "two.csv", "--jobs", "2")
        a, b = pd.read_csv(tmp_path / "one.csv"), pd.read_csv(tmp_path / "two.csv")
        np.testing.assert_allclose(a.sort_values("id")["p_wrong"], b.sort_values("id")["p_wrong"], atol=1e-4)

    def test_flags_of_training_that_came_along(self, rows: Path, tmp_path: Path) -> None:
        words = ["--optimizer", "lars", "--sampling", "balanced", "--epoch-samples", "90", "--epochs", "1"]
        run("train", rows, *words, "--out", tmp_path / "run", "--quiet")
        s = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
        assert (s["optimizer"], s["lr"], s["sampling"], s["epoch_samples"]) == ("lars", 1.0, "balanced", 90)
        assert checkpoint.load(tmp_path / "run")["evidence"]["counts"][:, 0].sum() == 90


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--out", "{t}/enc.pt"], "--out={t}/enc.pt must end in .safetensors"),
            (["--out", "{t}/none/enc"], "--out={t}/none/enc.safetensors must be a file in a folder that exists"),
            (["--out", "{t}"], ".safetensors must be a file"),
            ([], "missing: out"),
            (["--out", "{t}/e", "--freeze"], "--freeze is about an encoder: give --encoder FILE as well"),
            (["--out", "{t}/e", "--normalise", "imagenet"], "--normalise is about an encoder: give --encoder FILE"),
            (["--out", "{t}/e", "--encoder", "{t}/made.safetensors", "--freeze"], "frozen"),
            (["--out", "{t}/e", "--network", "linear"], "or use another network than linear"),
            (["--out", "{t}/e", "--temperature", "0"], "temperature=0.0 must lie in (0, inf)"),
            (["--out", "{t}/e", "--temprature", "1"], "unknown flag --temprature: did you mean '--temperature'?"),
            (["--out", "{t}/e", "--early-stopping"], "unknown flag --early-stopping"),
            (["--out", "{t}/e", "--network", "mpl"], "unknown network 'mpl': did you mean 'mlp'?"),
            (["--out", "{t}/e", "--precision", "16-mixed"], "use 'bf16-mixed'"),
            (["--out", "{t}/e", "--resume", "--run", "{t}/nothing"], "nothing to resume"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_of_pretrain(
        self, words: list[str], text: str, rows: Path, encoder: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given = [w.replace("{t}", str(tmp_path)) for w in words]
        if "--run" not in given:
            given += ["--run", str(tmp_path / "run")]
        if text == ".safetensors must be a file":
            (tmp_path / "x.safetensors").mkdir()
            given[1] = str(tmp_path / "x")
        said = fails(capsys, "pretrain", rows, "--epochs", "1", *given)
        assert text.replace("{t}", str(tmp_path)) in said
        assert not (tmp_path / "run").exists(), "what was refused leaves nothing behind"
        assert not (tmp_path / "e.safetensors").exists()
        del encoder

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--freeze"], "--freeze is about an encoder: give --encoder FILE as well"),
            (["--normalise", "zero-one"], "--normalise is about an encoder: give --encoder FILE as well"),
            (["--encoder", "{t}/none.safetensors"], "no encoder in {t}/none.safetensors: there is no such file"),
            (["--encoder", "{t}/rows.csv"], "{t}/rows.csv is damaged, or no file of torch.save"),
            (["--encoder", "{t}/made.safetensors", "--network", "cnn"], "is of network='mlp', leave network out"),
            (["--encoder", "{t}/made.safetensors", "--normalise", "zero-one"], "says itself how its inputs are scaled"),
            (["--encoder", "{t}/made.safetensors", "--method", "simclr", "--freeze"], "frozen"),
            (["--encodr", "{t}/made.safetensors"], "unknown flag --encodr: did you mean '--encoder'?"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    @pytest.mark.parametrize("command", ["train", "find"])
    def test_of_training(
        self, command: str, words: list[str], text: str, rows: Path, encoder: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given = [w.replace("{t}", str(tmp_path)) for w in words]
        out = tmp_path / ("run" if command == "train" else "issues.csv")
        said = fails(capsys, command, rows, "--epochs", "1", *given, "--out", out)
        assert text.replace("{t}", str(tmp_path)) in said
        assert not out.exists()
        del encoder

    def test_an_encoder_for_other_inputs(self, tmp_path: Path, rows: Path, encoder: Path, capsys: Any) -> None:
        made = tmp_path / "images.safetensors"
        data = images(tmp_path / "images.npz")
        run("pretrain", data, "--epochs", "1", "--run", tmp_path / "pre", "--out", made, "--quiet")
        small = images(tmp_path / "small.npz", top=1)
        grey = images(tmp_path / "grey.npz", channels=1)
        narrow = table(tmp_path / "narrow.csv", blobs(60, dims=5))
        for source, file, text in (
            (small, made, "images go up to 1, those trained on went up to 255: give them on that scale"),
            (grey, made, f"{made} was trained on inputs of 3 channels or columns, and one of grey has 1"),
            (narrow, encoder, f"{encoder} was trained on inputs of 8 channels or columns, and one of narrow has 5"),
            (rows, made, f"{made} was trained on inputs of 3 c"),
        ):
            assert text in fails(capsys, "train", source, "--encoder", file, "--epochs", "1", "--out", tmp_path / "run")
            assert not (tmp_path / "run").exists()

    def test_a_run_that_is_there(self, rows: Path, encoder: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["pretrain", rows, "--epochs", "3", "--run", tmp_path / "made"]
        out = ["--out", tmp_path / "again.safetensors"]
        assert "holds a run already: give --resume to go on with it, or another folder with --run" in fails(
            capsys, *words, *out
        )
        assert "holds a run of another command" in fails(
            capsys, "train", rows, "--epochs", "3", "--out", tmp_path / "made", "--resume"
        )
        run(*words, *out, "--resume", "--quiet")
        assert (tmp_path / "again.safetensors").read_bytes() == encoder.read_bytes()

    @pytest.mark.parametrize(
        "other",
        [["--temperature", "0.1"], ["--width", "64"], ["--network", "mlp", "--lr", "0.01"], ["--encoder", "{t}/other"]],
        ids=str,
    )
    def test_going_on_otherwise(self, other: list[str], rows: Path, encoder: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["pretrain", rows, "--epochs", "3", "--run", tmp_path / "made", "--out", tmp_path / "e", "--resume"]
        given = [w.replace("{t}/other", str(encoder)) for w in other]
        said = fails(capsys, *words, *given)
        assert "other settings" in said or "--resume" in said or "resume" in said
        assert not (tmp_path / "e.safetensors").exists()

    def test_training_on_from_another_encoder(self, rows: Path, encoder: Path, tmp_path: Path, capsys: Any) -> None:
        other = tmp_path / "other.safetensors"
        run("pretrain", rows, "--epochs", "3", "--seed", "1", "--run", tmp_path / "o", "--out", other, "--quiet")
        words = ["train", rows, "--epochs", "2", "--out", tmp_path / "run", "--quiet"]
        run(*words, "--encoder", encoder)
        for instead in (["--encoder", other], ["--encoder", encoder, "--freeze"], []):
            assert "network" in fails(capsys, *words, *instead, "--resume")
        run(*words, "--encoder", encoder, "--resume")

    def test_there_is_no_model_to_report_on(self, encoder: Path, tmp_path: Path, capsys: Any) -> None:
        assert "encoder, no trained model to report on" in fails(capsys, "report", tmp_path / "made")
        del encoder


def killed(words: list[str], when: Callable[[], bool]) -> None:
    """Start a real command line, and kill it once something is the case."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "labelproof", *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
        try:
            deadline = time.monotonic() + 120
            while not when():
                assert victim.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline
                time.sleep(0.003)
        finally:
            victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL


def epochs_in(folder: Path) -> int:
    """Epochs that `metrics.csv` of a folder has; it is written in one step."""
    try:
        return max(0, len((folder / "metrics.csv").read_text().splitlines()) - 1)
    except FileNotFoundError:
        return 0


class TestKilled:
    def test_pretraining_goes_on_bit_identical(self, rows: Path, tmp_path: Path) -> None:
        whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
        words = ["pretrain", str(rows), "--epochs", "14", "--batch-size", "32", "--checkpoint-every", "4", "--quiet"]
        run(*words, "--run", tmp_path / "whole", "--out", whole)
        victim = [*words, "--run", str(tmp_path / "killed"), "--out", str(again)]
        killed(victim, lambda: epochs_in(tmp_path / "killed") >= 3)
        assert not again.exists()
        assert 3 <= epochs_in(tmp_path / "killed") < 14
        assert json.loads((tmp_path / "killed" / "run.json").read_text())["status"] == "running"
        run(*victim, "--resume")
        assert again.read_bytes() == whole.read_bytes()
        ends = [checkpoint.load(tmp_path / name) for name in ("whole", "killed")]
        assert same(ends[0]["training"], ends[1]["training"])
        rows_ = [[{k: v for k, v in row.items() if k != "seconds"} for row in end["history"]] for end in ends]
        assert rows_[0] == rows_[1]

    @pytest.mark.parametrize("stage", ["pretrain", ""])
    def test_simclr_goes_on_bit_identical_in_either_stage(self, stage: str, rows: Path, tmp_path: Path) -> None:
        words = ["train", str(rows), "--method", "simclr", "--epochs", "12", "--batch-size", "16", "--quiet"]
        words += ["--pretrain-batch-size", "32", "--length", "1", "--checkpoint-every", "5", "--q", "0.66"]
        run(*words, "--out", tmp_path / "whole")
        folder = tmp_path / "killed"
        killed([*words, "--out", str(folder)], lambda: epochs_in(folder / stage) >= 3)
        assert bool(stage) != bool(checkpoint.found(folder)), "killed where it was meant to be"
        assert not (folder / "issues.csv").exists()
        run(*words, "--out", folder, "--resume")
        for part in ("pretrain", ""):
            a, b = (checkpoint.load(tmp_path / name / part) for name in ("whole", "killed"))
            assert same(a["training"], b["training"])
            assert same(a["evidence"], b["evidence"])
        assert (folder / "issues.csv").read_bytes() == (tmp_path / "whole" / "issues.csv").read_bytes()

    def test_simclr_goes_on_under_no_other_options(self, rows: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["train", str(rows), "--method", "simclr", "--epochs", "40", "--batch-size", "16", "--quiet"]
        folder = tmp_path / "killed"
        killed([*words, "--out", str(folder)], lambda: epochs_in(folder / "pretrain") >= 2)
        for other in (["--q", "0.5"], ["--temperature", "0.1"], ["--length", "3"], ["--seed", "1"]):
            said = fails(capsys, *words, *other, "--out", folder, "--resume")
            assert "resume" in said, said


class TestInPython:
    def test_without_files(self) -> None:
        data = blobs(120)
        how = Settings(epochs=2, batch_size=32, optimizer="adamw", device="cpu")
        found = pretrain(data, Contrast(), "mlp", how)
        assert set(found.result) == {"epochs", "contrast", "agree", "knn_agreement", "seconds"}
        assert (found.encoder.about["network"], found.encoder.about["n"]) == ("mlp", 120)
        clf = lp.NoisyLabelClassifier(network=found.encoder, method="ce", epochs=3).fit(data.x, data.y)
        assert clf.score(data.x, data.truth) > 0.5

    def test_saved_and_loaded_is_the_same(self, tmp_path: Path) -> None:
        data = blobs(120)
        how = Settings(epochs=2, batch_size=32, optimizer="adamw", device="cpu")
        found = pretrain(data, Contrast(), "mlp", how, tmp_path / "e.safetensors")
        loaded = lp.load_encoder(tmp_path / "e.safetensors")
        assert loaded.digest == found.encoder.digest
        frozen = lp.load_encoder(tmp_path / "e.safetensors", freeze=True)
        net = as_factory(frozen, (8,), 3)(0)
        assert not any(p.requires_grad for p in body(net).values())
        assert linear_head(net).weight.requires_grad

    def test_features_predict_as_they_were_trained(self, tmp_path: Path) -> None:
        """From disk to the last number: raw inputs, the file's scaling, the network's features."""
        data = read(images(tmp_path / "i.npz"))
        how = Settings(epochs=1, batch_size=32, optimizer="adamw", device="cpu")
        pretrain(data, Contrast(), "cnn", how, tmp_path / "e.safetensors")
        made = lp.load_encoder(tmp_path / "e.safetensors", freeze=True)
        clf = lp.NoisyLabelClassifier(network=made, method="ce", epochs=4, lr=0.5).fit(data.x, data.y)
        net = clf.run_.fitted.nets[0]
        mean, scale = (t.view(1, -1, 1, 1) for t in (made.mean, made.scale))
        with torch.no_grad():
            out: Tensor = net((torch.from_numpy(data.x).float() - mean) * scale)
        np.testing.assert_allclose(clf.predict_proba(data.x), out.softmax(1), atol=1e-5)


def test_commands_have_usage_examples_and_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(cli.USAGE) == set(cli.COMMANDS) == set(cli.EXAMPLES)
    assert set(flags.FLAGS) <= set(cli.COMMANDS)
    with pytest.raises(SystemExit) as stopped:
        run("pretrain", "--help")
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "labelproof pretrain DATA --out FILE [flags]" in said
    for flag in (
        "--temperature",
        "--width",
        "--probe-lr",
        "--encoder",
        "--run",
        "--resume",
        "--sampling",
        "--optimizer",
    ):
        assert flag in said
    assert "(default: 100)" in said
    assert "(default: adamw)" in said
    with pytest.raises(SystemExit):
        run("train", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert all(flag in said for flag in ("--encoder", "--freeze", "--normalise"))
