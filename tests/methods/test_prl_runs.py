"""PRL in whole trainings, from arrays, from files and from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

import labelproof as lp
from labelproof import cli
from labelproof.data.dataset import Data
from labelproof.engine.stages import fit
from labelproof.methods import METHODS
from tests.toy import blobs, factory, line, settings

PRL = ["prl-l", "prl-g", "co-prl-l", "co-prl-g"]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_arbitrary_targets_do_not_matter(epsilon: float, features: bool) -> None:
    """An adversary who may write anything, here a million (trained on as ten spreads), moves least squares, not PRL.

    In one batch: the theory is about batches of which at most a share ε is wrong.
    """
    clean, truth = line(400), np.linspace(1, 2, 6)
    bad = np.random.default_rng(5).permutation(400)[: round(epsilon * 400)]
    y = clean.y.copy()
    y[bad] = 1e6
    data = Data(clean.x, y, truth=clean.y)
    names = ["mse", "prl-l", *([] if features else ["prl-g", "co-prl-g", "co-prl-l"])]
    how = settings(epochs=120, batch_size=400, lr=0.1, weight_decay=0.0)
    errors = {}
    for name in names:
        options: dict[str, Any] = {"noise_rate": epsilon, "num_gradual": 1} if name != "mse" else {}
        if name == "prl-l":
            options["features"] = features
        r = fit(METHODS[name](**options), lambda k: nn.Linear(6, 1), data, how)
        slope = (r.predict(np.eye(6, dtype=np.float32)) - r.predict(np.zeros((6, 6), np.float32)))[:, 0]
        errors[name] = float(np.abs(slope - truth).max())
    assert errors.pop("mse") > 0.5
    assert all(error < 0.05 for error in errors.values()), errors


@pytest.mark.parametrize("name", PRL)
def test_wrong_labels_are_dropped_and_found(name: str) -> None:
    data, clean = blobs(300, flips=0.4), blobs(600, seed=9)
    options = {"noise_rate": 0.4, "num_gradual": 5}
    how = settings(epochs=30, weight_decay=0.0)
    base, ours = (fit(m, factory(data, 256), data, how) for m in (METHODS["ce"](), METHODS[name](**options)))
    scores = [(f.predict(clean.x).argmax(1) == clean.y).mean() for f in (base, ours)]
    assert scores[1] > scores[0] + 0.1
    assert ours.history[-1]["label_precision"] > 0.8


@pytest.mark.parametrize("name", ["prl-g", "co-prl-g"])
def test_batchnorm_is_refused_with_the_remedy(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        rf"{name} cannot train through batchnorm \(BatchNorm2d .* in the network\): .* Use network='mlp' or one whose"
    )
    x, y = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32), np.arange(40) % 2
    with pytest.raises(ValueError, match=text):
        lp.NoisyLabelClassifier(method=name, network="cnn", epochs=1).fit(x, y)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "digits", "--method", name, "--network", "cnn", "--epochs", "1", "--out", str(out)])
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{name} cannot train through batchnorm (BatchNorm2d" in said
    assert "resnet32-gn" in said
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    lp.NoisyLabelClassifier(method=name, network="cnn-gn", epochs=1).fit(x, y)  # the remedy


@pytest.mark.parametrize("name", PRL)
def test_a_table_with_numeric_targets(name: str, tmp_path: Path) -> None:
    """From a file to the list: gross errors stand first."""
    data = line(120, outliers=0.1)
    frame = pd.DataFrame(np.asarray(data.x), columns=list("abcdef")).assign(price=data.y)
    frame.to_csv(tmp_path / "prices.csv", index=False)
    words = ["find", str(tmp_path / "prices.csv"), "--label", "price", "--method", name, "--noise-rate", "0.1"]
    how = ["--epochs", "20", "--lr", ".02", "--batch-size", "32", "--quiet", "--out", str(tmp_path / "out.csv")]
    cli.main([*words, *how])
    first = pd.read_csv(tmp_path / "out.csv")["id"].head(12)
    assert (data.y != data.truth)[first, 0].mean() > 0.9


@pytest.mark.parametrize("name", PRL)
def test_half_precision(name: str) -> None:
    data = blobs(200, flips=0.3)
    how = settings(epochs=15, precision="bf16-mixed")
    found = fit(METHODS[name](noise_rate=0.3, num_gradual=3), factory(data), data, how)
    assert found.history[-1]["label_precision"] > 0.8
    assert (found.predict(data.x).argmax(1) == data.truth).mean() > 0.8
