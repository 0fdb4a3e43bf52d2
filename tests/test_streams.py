"""A clean subset beside the noisy data, through both faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

import labelproof as lp
from labelproof.cli import main


def digits() -> tuple[Any, ...]:
    X, y = load_digits(return_X_y=True)
    names = np.array([f"digit {i}" for i in range(10)])[y]
    noisy = lp.noise.inject(names[200:], "symmetric", 0.4, seed=0)
    return X[200:], noisy.labels, names[200:], X[:200], names[:200]


def test_estimator_takes_verified_samples() -> None:
    X, y, truth, X_clean, y_clean = digits()
    kept = X_clean.copy(), y_clean.copy()
    clf = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=8).fit(X, y, clean=(X_clean, y_clean))
    plain = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=8).fit(X, y, clean=(X_clean, np.roll(y_clean, 1)))
    assert clf.score(X, truth) > 0.8
    assert not np.allclose(clf.predict_proba(X), plain.predict_proba(X)), "its labels matter"
    assert "evidence_trust" in clf.find_issues()
    np.testing.assert_array_equal(X_clean, kept[0])
    np.testing.assert_array_equal(y_clean, kept[1])


def test_estimator_says_what_is_wrong_with_them() -> None:
    X, y, _, X_clean, y_clean = digits()
    dd = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=1)
    with pytest.raises(ValueError, match=r"needs samples whose labels were verified.*clean=\(X_clean, y_clean\)"):
        dd.fit(X, y)
    with pytest.raises(
        ValueError, match="clean has the label 'zero', which no training sample has: those have 'digit 0', 'digit 1'"
    ):
        dd.fit(X, y, clean=(X_clean, np.full(200, "zero")))
    with pytest.raises(ValueError, match="clean: Found input variables with inconsistent numbers of samples"):
        dd.fit(X, y, clean=(X_clean, y_clean[:7]))
    with pytest.raises(ValueError, match="clean: X has 5 features"):
        dd.fit(X, y, clean=(X_clean[:, :5], y_clean))
    with pytest.raises(ValueError, match="clean has 1 samples"):
        dd.fit(X, y, clean=(X_clean[:1], y_clean[:1]))
    for nonsense in (X_clean, (X_clean,), (X_clean, y_clean, y_clean)):
        with pytest.raises(ValueError, match="must be a pair"):
            dd.fit(X, y, clean=nonsense)
    with pytest.raises(ValueError, match="method ce has no use for clean"):
        lp.NoisyLabelClassifier(method="ce", epochs=1).fit(X, y, clean=(X_clean, y_clean))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    X, y, _, X_clean, y_clean = digits()
    columns = [f"p{i}" for i in range(64)]
    pd.DataFrame(X, columns=columns).assign(label=y).to_csv(tmp_path / "noisy.csv", index=False)
    pd.DataFrame(X_clean, columns=columns).assign(label=y_clean).to_csv(tmp_path / "clean.csv", index=False)
    return tmp_path


def test_command_line_takes_a_clean_file(files: Path, capsys: Any) -> None:
    words = ["train", str(files / "noisy.csv"), "--method", "mentornet-dd", "--epochs", "4"]
    before = (files / "clean.csv").read_bytes()
    assert main([*words, "--clean", str(files / "clean.csv"), "--out", str(files / "run")]) == 0
    assert (files / "run" / "report.html").exists()
    assert (files / "clean.csv").read_bytes() == before
    find = ["find", *words[1:], "--clean", str(files / "clean.csv"), "--out", str(files / "issues.csv"), "--quiet"]
    assert main(find) == 0
    assert "evidence_trust" in pd.read_csv(files / "issues.csv")


def test_resuming_with_other_verified_samples_is_refused(files: Path, capsys: Any) -> None:
    words = [
        "train",
        str(files / "noisy.csv"),
        "--method",
        "mentornet-dd",
        "--epochs",
        "2",
        "--out",
        str(files / "run"),
    ]
    assert main([*words, "--clean", str(files / "clean.csv"), "--quiet"]) == 0
    pd.read_csv(files / "clean.csv").tail(100).to_csv(files / "other.csv", index=False)
    with pytest.raises(SystemExit):
        main([*words, "--clean", str(files / "other.csv"), "--quiet", "--resume"])
    assert "clean" in capsys.readouterr().err


def test_command_line_says_what_is_missing(files: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(files / "noisy.csv"), "--method", "mentornet-dd", "--epochs", "1"])
    said = capsys.readouterr().err
    assert "missing: --clean DATA, samples whose labels were verified" in said
    assert "See labelproof train --method mentornet-dd --help" in said
    with pytest.raises(SystemExit):
        main(["train", str(files / "noisy.csv"), "--method", "elr", "--clean", "x.csv"])
    assert "unknown flag --clean: it is an option of --method mentornet-dd" in capsys.readouterr().err


def test_verified_samples_that_teach_nothing_are_remarked() -> None:
    X, y, *_ = digits()
    dd = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=1)
    with pytest.warns(UserWarning, match="clean is the training data itself"):
        dd.fit(X, y, clean=(X, y))


def test_verified_samples_of_some_classes_alone_are_refused(files: Path, capsys: Any) -> None:
    X, y, _, X_clean, y_clean = digits()
    some = y_clean != "digit 3"
    dd = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=1)
    with pytest.raises(
        ValueError, match=r"clean \(clean\) has no sample of the class 'digit 3', so .*: add some of each"
    ):
        dd.fit(X, y, clean=(X_clean[some], y_clean[some]))
    clean = pd.read_csv(files / "clean.csv")
    clean[clean["label"].isin(["digit 0", "digit 9"])].to_csv(files / "two.csv", index=False)
    words = ["train", str(files / "noisy.csv"), "--method", "mentornet-dd", "--clean", str(files / "two.csv")]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(files / "run")])
    said = capsys.readouterr().err
    assert "clean (two) has no sample of the class 'digit 1', 'digit 2'" in said
    assert "(and 3 more)" in said
    assert not (files / "run").exists()


def test_verified_images_on_another_scale_are_refused() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    y = np.arange(40) % 2
    dd = lp.NoisyLabelClassifier(method="mentornet-dd", epochs=1, network="mlp", batch_size=16)
    with pytest.raises(ValueError, match=r"clean images go up to .*, those trained on went up to 255"):
        dd.fit(images, y, clean=(images / 255, y))
    dd.fit(images, y, clean=(images, y))
    assert dd.run_.folder is None


def test_the_record_names_the_verified_samples(files: Path) -> None:
    words = ["train", str(files / "noisy.csv"), "--method", "mentornet-dd", "--epochs", "1", "--quiet"]
    assert main([*words, "--clean", str(files / "clean.csv"), "--out", str(files / "run")]) == 0
    record = json.loads((files / "run" / "run.json").read_text())
    assert record["data"]["streams"] == {"clean": {"name": "clean", "n": len(pd.read_csv(files / "clean.csv"))}}
