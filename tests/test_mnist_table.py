"""benchmarks/mnist_table.py: nothing is run twice, nothing of other settings is shown, the page is made of files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from filelock import FileLock

from labelproof.data import catalog
from labelproof.methods import METHODS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "mnist_table.py"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on 200 digits, one epoch and one seed, in a folder of its own."""
    spec = importlib.util.spec_from_file_location("mnist_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # a script finds its neighbours
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mnist_table", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    clean, test = catalog.load("digits").take(np.arange(200)), catalog.load("digits", split="test")
    changes = {
        "RESULTS": tmp_path / "results",
        "LOCKS": tmp_path / "locks",
        "PAGE": tmp_path / "results.md",
        "SETTINGS": {**module.SETTINGS, "epochs": 1},
        "NOISES": module.NOISES[1::2],
        "SEEDS": 1,
        "load": lambda: (clean, test),
    }
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    module.PAGE.write_text("# Results\n\nbefore\n\n<!-- mnist10k: made by benchmarks/mnist_table.py -->\nold\n"
                           "<!-- end mnist10k -->\n\nafter\n")  # fmt: skip
    return module


def stamps(table: ModuleType) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in table.RESULTS.iterdir()}


def test_every_method_has_a_row(table: ModuleType) -> None:
    elsewhere = {"mw-net", "simclr"}  # these have a table of their own, benchmarks/contrast_table.py
    wanted = {n for n, m in METHODS.items() if "classification" in m.tasks} - elsewhere
    assert wanted <= {row.method for row in table.ROWS.values()}
    for row in table.ROWS.values():
        for noise in table.NOISES:
            row.make(noise._replace(matrix=np.eye(10).tolist()))
    names = [job.path.name for job in table.jobs("*", 3)]
    assert len(set(names)) == len(names)


def test_a_finished_run_is_not_run_again(table: ModuleType) -> None:
    assert table.main(["--only", "elr"]) == 0
    before = stamps(table)
    assert set(before) == {"elr-symmetric0-5-seed0.json", "elr-pairflip0-45-seed0.json"}
    assert table.main(["--only", "ELR"]) == 0
    assert stamps(table) == before
    page = table.PAGE.read_text()
    assert page.startswith("# Results\n\nbefore\n\n<!-- mnist10k: ")
    assert page.endswith("<!-- end mnist10k -->\n\nafter\n")
    assert "old" not in page
    result = json.loads((table.RESULTS / "elr-pairflip0-45-seed0.json").read_text())
    assert result["params"] == {"lam": 1.0, "beta": 0.9}
    assert result["result"]["passes"] == pytest.approx([1, 0], abs=0.02), "two rows try the network out"
    assert "| 1 | 1 + 0 |" in page
    assert len(result["noise_realised"]["hash"]) == 64
    assert f"{100 * result['result']['test_accuracy']:.1f}" in page
    table.main(["--tables"])
    assert table.PAGE.read_text() == page


TWO = {
    "Co-teaching": ("2 + 0", 2),
    "Co-teaching, noise rate estimated": None,
    "Co-teaching+": ("2 + 0", 2),
    "Decoupling": ("2 + 0", 2),
    "MentorNet, predefined": ("1 + 0", 1),
    "MentorNet, data-driven": ("1 + 1", 1),
    "ELR+": ("2 + 2", 2),
    "DivideMix": ("2 + 2", 2),
    "co-PRL-L": ("2 + 0", 2),
}


@pytest.mark.parametrize("title", TWO)
def test_rows_of_two_networks_and_mentors(table: ModuleType, monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    """Each trains, and its passes are counted: those without gradient and those at the ends of epochs as well."""
    monkeypatch.setattr(table, "SETTINGS", {**table.SETTINGS, "epochs": 2})
    monkeypatch.setattr(table, "NOISES", table.NOISES[:1])
    row = table.ROWS[title]  # of the 200 images some labels must stay wrong
    monkeypatch.setitem(table.ROWS, title, replace(row, clean=min(row.clean, 50)))
    assert table.main(["--only", title]) == 0
    line = next(x for x in table.PAGE.read_text().splitlines() if x.startswith(f"| {title} |"))
    if TWO[title] is None:  # three trainings on two thirds each come before
        counts = json.loads(next(table.RESULTS.iterdir()).read_text())["result"]["passes"]
        assert counts[0] > 2
        assert counts[1] > 0
    else:
        passes, networks = TWO[title]
        assert line.endswith(f"| {networks} | {passes} |")


def test_rows_with_another_network(table: ModuleType) -> None:
    """PRL-G cannot have BatchNorm: it and what it is compared with run on the network with GroupNorm, and say so."""
    groups = {t for t, row in table.ROWS.items() if row.network == "cnn-gn"}
    assert {"PRL-G", "cross-entropy, GroupNorm", "Co-teaching, GroupNorm"} <= groups
    assert table.main(["--only", "cross-entropy*"]) == 0
    made = {t: json.loads(table.Job(t, table.NOISES[0], 0).path.read_text()) for t in table.ROWS if t.startswith("cro")}
    assert {t: r["network"] for t, r in made.items()} == {t: "cnn-gn" if t in groups else "cnn" for t in made}
    assert made["cross-entropy"]["result"] != made["cross-entropy, GroupNorm"]["result"]
    assert "(with GroupNorm in place of BatchNorm, which PRL-G cannot have: cross-entropy, Gr" in table.PAGE.read_text()
    assert table.main(["--only", "PRL-G"]) == 0
    result = json.loads(table.Job("PRL-G", table.NOISES[0], 0).path.read_text())
    assert result["network"] == "cnn-gn"
    assert result["params"]["noise_rate"] == table.NOISES[0].rate
    table.Job("cross-entropy, GroupNorm", table.NOISES[0], 0).path.write_text(json.dumps(made["cross-entropy"]))
    assert table.finished(table.Job("cross-entropy, GroupNorm", table.NOISES[0], 0)) is None, "of the other network"


def test_networks_are_laid_out_as_the_engine_does(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last is faster between BatchNorm, slower between GroupNorm."""
    seen, train = [], table.runs.train

    def spy(*args: object, **options: object) -> object:
        done = train(*args, **options)
        four = [p for p in done.fitted.nets[0].parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        seen.append({p.is_contiguous(memory_format=torch.channels_last) for p in four})
        return done

    monkeypatch.setattr(table.runs, "train", spy)
    monkeypatch.setattr(table, "NOISES", table.NOISES[:1])
    for title in ("cross-entropy", "cross-entropy, GroupNorm"):
        assert table.main(["--only", title]) == 0
    assert seen == [{True}, {False}]


def test_verified_images_are_right_in_training_too(table: ModuleType) -> None:
    clean, _ = table.load()
    noisy = clean.relabelled((clean.y + 1) % 10, kind="pairflip")
    data, verified = table.verify(noisy, clean, 50, seed=0)
    right = data.y == clean.y
    assert right.sum() == len(verified) == 50
    np.testing.assert_array_equal(verified.ids, clean.ids[right])
    np.testing.assert_array_equal(verified.y, clean.y[right])
    np.testing.assert_array_equal(data.truth, clean.y)
    assert data.noise == {"kind": "pairflip"}
    np.testing.assert_array_equal(noisy.y, (clean.y + 1) % 10)  # the input stays as it was


def test_the_clean_images_are_part_of_what_a_result_must_share(table: ModuleType) -> None:
    with_them = table.identity(table.Job("MentorNet, data-driven", table.NOISES[0], 0))
    assert with_them["clean"] == 500
    assert "clean" not in table.identity(table.Job("ELR", table.NOISES[0], 0))


def test_results_of_other_settings_are_made_again(table: ModuleType) -> None:
    table.main(["--only", "ce"])
    path = table.RESULTS / "cross-entropy-symmetric0-5-seed0.json"
    good = json.loads(path.read_text())
    job = table.Job("cross-entropy", table.NOISES[0], 0)
    for name, value in (
        ("settings", {**good["settings"], "lr": 0.5}),
        ("params", {**good["params"], "mixup": 1.0}),
        ("params", {**good["params"], "gone": 1.0}),
        ("noise", {**good["noise"], "seed": 7}),
        ("labelproof", "0.0.0"),
    ):
        path.write_text(json.dumps({**good, name: value}))
        assert table.finished(job) is None
    path.write_text(json.dumps({**good, "settings": {k: v for k, v in good["settings"].items() if k != "workers"}}))
    assert table.finished(job), "an option that came later has its default"
    path.write_text(path.read_text()[:100])
    assert table.finished(job) is None
    table.main(["--only", "cross-entropy"])
    again = json.loads(path.read_text())
    assert again["result"] == good["result"], "the same seed, the same figures"


def test_a_run_that_another_process_makes_is_left_to_it(table: ModuleType) -> None:
    job = table.Job("MAE", table.NOISES[0], 0)
    table.LOCKS.mkdir()
    with FileLock(table.LOCKS / f"{job.path.stem}.lock"):
        assert table.collect([job]) == []
        assert not job.path.exists()
    lock = str(table.LOCKS / f"{job.path.stem}.lock")
    dies = f"import os; from filelock import FileLock; FileLock({lock!r}).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dies], check=False).returncode == 9
    table.collect([job])
    assert job.path.exists(), "a dead process holds nothing"


def test_failures_are_told_and_divergence_is_a_result(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(text: str) -> None:
        def train(*_: object, **__: object) -> None:
            raise ValueError(text)

        monkeypatch.setattr(table.runs, "train", train)

    fails("a bug")
    assert table.main(["--only", "mae", "--no-tables"]) == 1
    assert "a bug" in capsys.readouterr().err
    assert not list(table.RESULTS.iterdir())
    fails("training diverged in epoch 1: the loss is nan")
    assert table.main(["--only", "mae"]) == 0
    assert "| MAE | – (1 diverged) | – (1 diverged) |" in table.PAGE.read_text()


def test_unknown_rows(table: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--only erl: no row or method of that name; there are cross-entropy"):
        table.main(["--only", "erl"])
    with pytest.raises(SystemExit, match="no results of these settings"):
        table.main(["--tables"])
