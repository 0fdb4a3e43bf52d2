"""benchmarks/two_networks.py and benchmarks/passes.py: the script runs, and passes are counted right."""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import torch

from labelproof.core import nets
from labelproof.core.nets import features, side_by_side
from labelproof.networks import build

pytestmark = pytest.mark.filterwarnings("ignore:no training sample has the label")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("two_networks")


def test_passes_with_and_without_gradient_of_a_network_and_its_copies(two: ModuleType) -> None:
    passes = two.Passes()
    net = passes.watch(build("cnn", (1, 8, 8), 3))
    twin, x = deepcopy(net).requires_grad_(False), torch.zeros(5, 1, 8, 8)
    net(x)
    features(net, x)
    with torch.no_grad():
        net(x)
        twin(x)
    twin(x)
    assert passes.take(5) == [2, 3]
    assert passes.take(5) == [0, 0], "counted since the last time"
    assert two.words([2.0, 0.128]) == "2 + 0.1"


def test_the_script_runs(
    two: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out.json"
    found = two.main(["--case", "cnn", "--case", "cuda", "--quick", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    rows = found["ratios"]["cnn"]["contenders"]
    assert set(rows) == set(two.CONTENDERS)
    step = {title: row["passes_per_step"] for title, row in rows.items()}
    end = {title: row["passes_at_end_of_epoch"] for title, row in rows.items()}
    assert step["cross-entropy"] == [1, 0]
    assert step["Co-teaching"] == step["Decoupling"] == step["Co-teaching+"] == [2, 0]
    assert step["Co-teaching, 0.5 kept, scored first"] == [1, 2]
    assert step["ELR+"] == [2, 2]
    # grey images are not augmented, so both views are one
    assert (step["DivideMix"], end["DivideMix"]) == ([2, 2], [0, 2]), "one view, and the division"
    assert step["MentorNet, data-driven"] == [1, 1], "a clean batch"
    assert not found["ratios"]["cnn"]["score_first"]["0.2"]["auto_scores_first"], "the network has BatchNorm"
    said = capsys.readouterr().out
    assert "no CUDA device" in said
    assert "scoring first, keep 0.5" in said


def test_the_streams_part_compares_two_ways_to_run_the_same_step(
    two: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(nets, "side_by_side", lambda each, like: calls.append(1) or side_by_side(each, like))
    monkeypatch.setattr(two, "OVERLAPPING", ("Co-teaching",))
    case = two.quick(two.CASES["cnn"])  # on a CPU there are no streams, and both ways are the same
    found = two.overlap(case)
    assert len(calls) == case.batches + case.rounds, "an epoch, and one of the two steps of each round"
    text = "\n".join(two.report({"streams": {"cnn": {**found, "device": "a CPU"}}}))
    assert "what a stream for each network gains" in text
    assert "Co-teaching" in text
