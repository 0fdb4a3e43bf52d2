"""benchmarks/contrast_table.py: what seeds separate stays apart, encoders are made once, the page is made of files."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from labelproof.data import catalog
from labelproof.networks.encoders import load_encoder

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on 300 digits, two epochs, two seeds and two rates of noise, in a folder of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))  # a script finds its neighbours
    for name in ("contrast_page", "contrast_table"):  # new ones, in the order of their imports
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    old = module.PARTS["digits"]
    small = replace(
        old,
        train=300,
        meta=50,
        watched=40,
        settings={**old.settings, "epochs": 2},
        pretrain={**old.pretrain, "epochs": 2},
    )
    changes = {
        "RESULTS": tmp_path / "results",
        "CHOICE": tmp_path / "results" / "choice",
        "LOCKS": tmp_path / "locks",
        "ENCODERS": tmp_path / "encoders",
        "PAGE": tmp_path / "docs" / "results.md",
        "PARTS": {"digits": small},
        "RATES": (0.2, 0.9),
        "SEEDS": 2,
        "ROWS": {t: replace(r, rates=[x for x in r.rates if x in (0.0, 0.2, 0.9)]) for t, r in module.ROWS.items()},
    }
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    module.split.cache_clear()
    module.PAGE.parent.mkdir()
    module.PAGE.write_text(f"# Results\n\nbefore\n\n{module.START}\nformerly\n{module.END}\n\nafter\n")
    return module


def made(table: ModuleType) -> dict[str, dict[str, Any]]:
    return {str(p.relative_to(table.RESULTS)): json.loads(p.read_text()) for p in table.RESULTS.rglob("*.json")}


def test_no_sample_has_two_uses(table: ModuleType) -> None:
    for seed in (0, 1, table.OUTSIDE):
        of = table.split("digits", seed)
        used = [set(d.ids.tolist()) for d in (of.train, of.meta, of.watched)]
        assert [len(u) for u in used] == [300, 50, 40 if seed == table.OUTSIDE else 0]
        assert len(set.union(*used)) == sum(map(len, used))
        assert np.bincount(of.meta.y).tolist() == [5] * 10
        assert np.array_equal(of.test.x, catalog.load("digits", split="test").x)
    first, second = (table.split("digits", s).train.ids.tolist() for s in (0, 1))
    assert first != second


def test_all_runs_are_listed_once(table: ModuleType) -> None:
    found = table.jobs(["digits"], "*", 2)
    paths = [job.path for job in found]
    assert len(set(paths)) == len(paths) == 2 * (1 + 3 * 2 * 2 + 2)
    assert [job.seed for job in found] == [0] * 15 + [1] * 15, "a table of the first seed is there early"
    assert not found[0].title, "the encoder comes before what starts from it"
    assert {j.start for j in found if j.title == "GCE"} == set(table.STARTS)
    assert {job.title for job in table.jobs(["digits"], "mw-net", 1)} >= {"", "MW-Net"}
    outside = table.choosing(["digits"])
    assert {job.seed for job in outside} == {table.OUTSIDE}
    assert not set(paths) & {job.path for job in outside}
    with pytest.raises(SystemExit, match="--only mwnet: no row or method of that name; there are cross-entropy, GCE"):
        table.jobs(["digits"], "mwnet", 1)


def test_runs_and_their_page(table: ModuleType) -> None:
    assert table.main(["--only", "[cm]*"]) == 0  # all but GCE and ELR
    found = made(table)
    run = found["digits/cross-entropy-simclr-0_9-seed1.json"]
    assert run["noise"] == {"kind": "ghosh-unif", "rate": 0.9, "seed": 1}
    assert 0.73 < run["noise_realised"]["rate"] < 0.87, "the true class is among the new labels"
    assert run["encoder"]["epochs"] == 2
    assert "encoder" not in found["digits/cross-entropy-scratch-0_9-seed1.json"]
    same = [found[f"digits/{t}-0_9-seed1.json"]["noise_realised"] for t in ("mw-net-scratch", "cross-entropy-simclr")]
    assert same[0] == same[1]
    features = found["digits/encoder-seed0.json"]["result"]
    assert set(features) == {"SimCLR", "untrained", "pixels"}
    assert features["pixels"]["linear"] > 0.7
    page = table.PAGE.read_text()
    assert page.startswith("# Results\n\nbefore\n\n<!-- contrast: made by")
    assert page.endswith("<!-- end contrast -->\n\nafter\n")
    assert "formerly" not in page
    scores = [100 * found[f"digits/cross-entropy-simclr-0_9-seed{s}.json"]["result"]["accuracy"] for s in (0, 1)]
    line = next(x for x in page.splitlines() if x.startswith("| cross-entropy | from SimCLR |"))
    assert f"| {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} |" in line
    assert "| GCE |" not in page
    drawing = (table.PAGE.parent / "figures" / "contrast-noise.svg").read_text()
    assert ">MW-Net, from SimCLR<" in drawing
    before = {p: p.stat().st_mtime_ns for p in table.RESULTS.rglob("*.json")}
    assert table.main(["--only", "[cm]*"]) == 0
    assert {p: p.stat().st_mtime_ns for p in table.RESULTS.rglob("*.json")} == before
    assert table.PAGE.read_text() == page


def test_what_a_run_is_given_and_judged_by(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = table.runs.train, []

    def train(data: Any, *rest: Any, streams: dict[str, Any]) -> Any:
        seen.append((data, streams, real(data, *rest, streams=streams)))
        return seen[-1][2]

    monkeypatch.setattr(table.runs, "train", train)
    for title, seed in (("MW-Net", 0), ("cross-entropy", table.OUTSIDE), ("cross-entropy, meta set alone", 0)):
        of = table.split("digits", seed)
        accuracy = table.run(table.Job("digits", seed, title, table.SCRATCH, 0.2, 0.1))["result"]["accuracy"]
        data, streams, done = seen[-1]
        assert streams == ({"clean": of.meta} if title == "MW-Net" else {})
        assert data.ids.tolist() == (of.meta if "alone" in title else of.train).ids.tolist()
        judged = of.watched if seed == table.OUTSIDE else of.test
        assert accuracy == (done.fitted.predict(judged.x).argmax(1) == judged.y).mean()


def test_encoders_are_made_once_and_for_their_settings(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job = table.Job("digits", 0)
    first = table.encoder_of(job)
    path = table.ENCODERS / "digits" / "seed0.safetensors"
    stamp = path.stat().st_mtime_ns
    again = table.encoder_of(job)
    assert path.stat().st_mtime_ns == stamp
    assert all(torch.equal(first.weights[k], again.weights[k]) for k in first.weights)
    assert load_encoder(path).digest == first.digest
    of = table.split("digits", 0).train
    assert first.mean.item() == pytest.approx(of.x.mean()), "of this seed's images"
    longer = replace(job.part, pretrain={**job.part.pretrain, "epochs": 3})
    monkeypatch.setitem(table.PARTS, "digits", longer)
    assert table.encoder_of(job).digest != first.digest


def test_results_of_other_settings_are_not_shown(table: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no results of these settings"):
        table.main(["--tables"])
    job = table.Job("digits", 0, "cross-entropy", table.SCRATCH, 0.9)
    assert table.collect([job]) == []
    good = json.loads(job.path.read_text())
    assert table.finished(job)
    for name, value in (("start", table.ENCODER), ("samples", [300, 50, 9]), ("params", {"label_smoothing": 0.1})):
        job.path.write_text(json.dumps({**good, name: value}))
        assert table.finished(job) is None, name


def test_rates_are_chosen_outside(table: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    table.GRID = (0.1,)
    assert table.main(["--choose"]) == 0
    found = made(table)
    assert set(found) == {f"choice/digits/{t}-{s}-0_8-lr0_1-seed100.json" for t in ("cross-entropy", "gce")
                          for s in ("scratch", "simclr")}  # fmt: skip
    mean = 50 * sum(found[f"choice/digits/{t}-scratch-0_8-lr0_1-seed100.json"]["result"]["accuracy"]
                    for t in ("cross-entropy", "gce"))  # fmt: skip
    assert f"digits from scratch {mean:.1f} at 0.1\n" in capsys.readouterr().out
    assert "formerly" in table.PAGE.read_text()


def result(accuracy: float | None) -> dict[str, Any]:
    return {"result": {"diverged": "loss"} if accuracy is None else {"accuracy": accuracy}}


def test_cells_say_what_is_missing(table: ModuleType) -> None:
    page = table.page
    assert page.cell({0: result(0.5), 1: result(0.7)}, 2) == "60.0 ± 14.1"
    assert page.cell({0: result(0.5), 1: result(None)}, 3) == "50.0 (1 diverged, 1 of 3 seeds)"
    assert page.cell({}, 3) == "–"
    scratch, encoder = {0: result(0.5), 1: result(0.9), 2: result(None)}, {1: result(0.8), 0: result(0.2), 2: result(1)}
    assert page.gain(scratch, encoder) == "-20.0 ± 14.1"
    assert page.gain(scratch, {2: result(1)}) == "–"
    assert page.gain({0: result(0.5)}, {0: result(0.4999)}) == "0.0"
