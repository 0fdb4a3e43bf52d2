"""benchmarks/agnostic.py: corruptions within their budget, the bound as documented, nothing run twice, a page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("agnostic")
    for name, value in {
        "RESULTS": tmp_path / "agnostic.json", "LOCKS": tmp_path / "locks", "PAGE": tmp_path / "docs" / "page.md",
        "SEEDS": 2, "LINEAR_RATES": (0.2,), "SIZES": (3.0, 10.0), "LINEAR": ("mse", "prl-g"), "DIGITS": ("ce",),
        "DIGITS_RATES": (0.1,), "DIGITS_SETTINGS": {**module.DIGITS_SETTINGS, "epochs": 1}, "ROWS": 200,
        "LINEAR_SETTINGS": {**module.LINEAR_SETTINGS, "batch_size": 200, "epochs": 20},
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    (tmp_path / "docs").mkdir()
    module.PAGE.write_text("# Page\n\nbefore\n")
    return module


@pytest.mark.parametrize("kind", ["lie", "sign-flip", "constant"])
def test_an_adversary_keeps_to_the_budget(script: ModuleType, kind: str) -> None:
    clean, data = script.corrupted("clean", 0.0, 0.0, 4), script.corrupted(kind, 3.0, 0.2, 4)
    assert clean.wrong.sum() == 0
    assert data.wrong.sum() == 40
    np.testing.assert_array_equal(data.y[~data.wrong], clean.y[~data.wrong])
    np.testing.assert_allclose(data.x.std(axis=0), 1)


def test_the_certificate(script: ModuleType) -> None:
    """By loops, at any weights."""
    data = script.corrupted("lie", 300.0, 0.2, 1)  # the largest gradients are those of wrong rows: M is not
    theta = np.linspace(-1, 1, 21)
    x = np.hstack([np.ones((200, 1)), data.x])
    g = np.array([(row @ theta - target) * row for row, target in zip(x, data.y, strict=True)])
    norms = np.array([np.sqrt((each**2).sum()) for each in g])
    rest = np.linalg.norm(g[np.argsort(norms)[:160]].mean(axis=0))
    moments = sum(np.outer(row, row) for row in x[~data.wrong]) / 160
    bound = (2 * 0.2 * norms[~data.wrong].max() / 0.8 + rest) / np.linalg.eigvalsh(moments).min()
    found = script.certificate(data, theta, 0.2)
    assert found["bound"] == pytest.approx(bound)
    assert found["to_right"] <= bound


def test_from_nothing_to_the_page_and_not_twice(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 0
    made = len(script.jobs("*"))
    assert made == 2 * (2 * 5 + 3)
    assert capsys.readouterr().out.count("CPU seconds") == made
    page = script.PAGE.read_text()
    assert page.startswith("# Page\n\nbefore")
    assert f"{made} runs, seeds 0 to 1" in page
    assert (script.PAGE.parent / "figures" / "agnostic.svg").read_text().startswith("<?xml")
    assert script.main([]) == 0
    assert capsys.readouterr().out == ""
    assert script.PAGE.read_text() == page
    store = json.loads(script.RESULTS.read_text())
    name, run = next((k, r) for k, r in store["runs"].items() if r["method"] == "prl-g" and r["kind"] == "lie")
    assert store["made"][run["made"]]["params"]["noise_rate"] == 0.2
    run["made"] = "of other settings"
    script.RESULTS.write_text(json.dumps(store))
    assert script.main(["--only", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: error ")
    assert json.loads(script.RESULTS.read_text())["runs"][name]["error"] == run["error"]  # made anew, and the same


def test_what_it_refuses(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--only nothing: no run of that name; they are like"):
        script.main(["--only", "nothing"])
    with pytest.raises(SystemExit, match=r"no results of these settings in .*agnostic.json"):
        script.main(["--page"])
    script.RESULTS.write_text("{")
    with pytest.raises(SystemExit, match="is damaged"):
        script.main([])
