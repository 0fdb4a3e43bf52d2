"""benchmarks/contrast.py: the script runs, with lightly and without, and compares like with like."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelproof.functional.contrast import nt_xent

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("contrast")
    monkeypatch.setattr(module, "_keep_memory", lambda: None)  # would stay with this process
    return module


class Transform:
    """In the place of lightly's, which this environment has not."""

    def __init__(self, **options: Any) -> None:
        assert options == {"input_size": 32, "cj_strength": 0.5, "gaussian_blur": 0.0}

    def __call__(self, picture: Any) -> list[Tensor]:
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return [x, x.flip(2)]


class Loss(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return nt_xent(a, b, self.temperature) + 1


@pytest.fixture
def lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: ModuleType(name) for name in ("lightly", "lightly.loss", "lightly.transforms")}
    parts["lightly.loss"].NTXentLoss = Loss  # type: ignore[attr-defined]
    parts["lightly.transforms"].SimCLRTransform = Transform  # type: ignore[attr-defined]
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_without_lightly_it_says_so_and_times_the_others(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    out = tmp_path / "new" / "out.json"
    found = script.main(["--case", "cnn", "--quick", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert set(found["steps"]["cnn"]["milliseconds"]) == {script.OURS, script.KORNIA}
    assert set(found["augmentation"]["milliseconds"]) == {"labelproof", "kornia"}
    assert "within_bound" not in found
    said = capsys.readouterr().out
    assert "lightly is left out, ModuleNotFoundError: " in said
    assert "two views, 16 images" in said


@pytest.mark.usefixtures("lightly")
def test_with_lightly_the_bound_is_about_its_step_in_our_layout(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fixed(steps: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        known = {script.OURS: 0.6, script.LIGHTLY: 1.0, script.PLAIN: 0.5}
        for step in steps.values():
            assert step() >= 0
        return {name: [known.get(name, 2.0)] * rounds for name in steps}

    monkeypatch.setattr(script, "rounds_of", fixed)
    found = script.main(["--case", "cnn", "--quick"])
    part = found["steps"]["cnn"]
    assert part["ours_over"][script.LIGHTLY]["median"] == 0.6
    assert part["ours_over"][script.PLAIN]["median"] == 1.2
    assert found["within_bound"]
    assert found["losses_differ_by"] == pytest.approx(1)
    assert all(np.isfinite(value) for value in part["loss"].values())
    assert "at most 0.7 times lightly's step, small CNN: yes" in capsys.readouterr().out
    monkeypatch.setattr(script, "BOUND", 0.5)
    assert not script.main(["--case", "cnn", "--quick"])["within_bound"]


@pytest.mark.usefixtures("lightly")
@pytest.mark.parametrize("source", ["ours", "kornias", "lightlys"])
def test_every_source_gives_two_unlike_views_of_a_batch_without_end(script: ModuleType, source: str) -> None:
    x = script.images(script.CASES["cnn"]._replace(batch=8, batches=2), random=True)
    views = getattr(script, source)(x, 8)
    for _ in range(5):
        first, second = views()
        assert first.shape == second.shape == (8, 3, 32, 32)
        assert first.dtype == torch.float32
        assert not torch.equal(first, second)


def test_a_step_trains_body_and_projection_in_the_layout_asked_for(script: ModuleType) -> None:
    x = script.images(script.CASES["cnn"]._replace(batch=8, batches=2), random=True)
    net = script.Projected("cnn")
    for last in (True, False):
        stepper = script.Stepper(script.ours(x, 8), net, script.joint_loss, channels_last=last)
        assert stepper() > 0
        weight = stepper.net.body.layers[4].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is last
        before, after = dict(net.named_parameters()), dict(stepper.net.named_parameters())
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert still == {"body.head.weight", "body.head.bias"}


def test_the_stored_figures_are_those_of_the_script(script: ModuleType) -> None:
    found = json.loads((BENCHMARKS / "results" / "contrast.json").read_text())
    assert not found["no_lightly"]
    assert found["losses_differ_by"] < 1e-5
    assert set(found["steps"]) == set(script.CASES)
    ratio = found["steps"]["cnn"]["ours_over"][script.LIGHTLY]["median"]
    assert found["within_bound"] == (ratio <= script.BOUND)
    assert "lightly" in "\n".join(script.report(found))
