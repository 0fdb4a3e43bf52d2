"""benchmarks/gradnorm.py: the contenders compute the same, memory is measured, steps are timed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:no training sample has the label", "ignore::FutureWarning")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("opacus", reason="opacus is not installed: pip install 'labelproof[bench]'")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gradnorm")


@pytest.mark.parametrize("network", ["mlp", "resnet32-gn"])
def test_the_contenders_agree(script: ModuleType, network: str) -> None:
    want = script.CONTENDERS["vmap(grad)"](script.problem(network, 3))()
    assert want.shape == (3,)
    for name, make in script.CONTENDERS.items():
        if name != "plain backward":
            torch.testing.assert_close(make(script.problem(network, 3))(), want, rtol=1e-2, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_all_gradients_at_once_take_more_memory_than_ours(script: ModuleType) -> None:
    ours, all_at_once = (script.peak_memory("mlp", name, 128) for name in ("ours", "vmap(grad)"))
    assert all_at_once > 128  # 128 times 269,322 numbers are 138 MB
    assert ours < all_at_once / 4


def test_steps_are_timed_against_cross_entropy(script: ModuleType) -> None:
    found = script.steps(script.quick(script.CASES["mlp"]))
    assert found["ratio_to_cross_entropy"]["cross-entropy"]["median"] == 1
    assert found["ratio_to_cross_entropy"]["prl-g, 0.5 kept"]["median"] > 1
