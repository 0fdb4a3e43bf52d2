"""benchmarks/detection.py: what is simulated, what is measured, nothing twice, a section generated from the results."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("cleanlab")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("detection")
    for name, value in {
        "RESULTS": tmp_path / "detection.json",
        "PAGE": tmp_path / "page.md",
        "SIZES": ((3000, 4),),
        "TYPES": ("float32",),
        "SIMULATED": ("pairflip 0.2",),
        "WHERE": {"digits": ("mlp", 2, (0,), ("symmetric 0.2",))},
    }.items():
        monkeypatch.setattr(module, name, value)
    module.PAGE.write_text("# Page\n\nbefore\n")
    return module


@pytest.mark.parametrize("noise", ["symmetric 0.2", "pairflip 0.2", "mixed 0.2"])
def test_simulated_probabilities_have_learnt_the_noise(script: ModuleType, noise: str) -> None:
    given, p, truth = script.simulate(20_000, 5, noise)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (given != truth).mean() == pytest.approx(0.2 if noise[0] != "m" else 0.16, abs=0.06)
    means = np.stack([p[truth == k].mean(axis=0) for k in range(5)])
    np.testing.assert_array_equal(means.argmax(axis=1), range(5))
    np.fill_diagonal(means, 0)
    labels = np.stack([np.bincount(given[truth == k], minlength=5) for k in range(5)]).astype(float)
    np.fill_diagonal(labels, 0)
    if noise[0] != "s":  # where labels go, probabilities go
        np.testing.assert_array_equal(means.argmax(axis=1), labels.argmax(axis=1))


def test_all_rankings_are_of_the_same_probabilities_and_ours_finds_pairflips(script: ModuleType) -> None:
    given, p, truth = script.simulate(3000, 4, "pairflip 0.2")
    found = script.quality(given, p, given != truth)
    assert set(found) == {"ours", *script.SCORES}
    assert found["ours"]["average_precision"] > found["self_confidence"]["average_precision"] + 0.2
    for each in found.values():
        assert 0 <= each["precision_at_wrong"] <= 1


def test_measures_once_and_writes_the_section(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["detection.py"])
    script.main()
    text = script.PAGE.read_text()
    assert text.startswith("# Page\n\nbefore\n")
    assert f"## {script.HEADING}" in text
    assert "| 3,000, 4, float32 | `lp.find_issues`, a table |" in text
    assert "1.00 (1.00–1.00)" in text  # ours beside ours
    assert "| digits, 1,797, symmetric 0.2 |" in text
    monkeypatch.setattr(script, "measure_speed", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(script, "measure_quality", lambda *_: pytest.fail("measured again"))
    script.main()
    assert script.PAGE.read_text() == text


def test_the_best_average_precision_is_in_bold(script: ModuleType) -> None:
    each = {"average_precision": 0.5, "precision_at_wrong": 0.4}
    found = {"a, seed 0": {"ours": each, **{s: {**each, "average_precision": 0.4} for s in script.SCORES}}}
    assert script.quality_table(found, "data")[2] == (
        "| a | **0.500** / 0.400 | 0.400 / 0.400 | 0.400 / 0.400 | 0.400 / 0.400 |"
    )
