"""`Settings.compile`: what is compiled is what would have run, and nothing of it is left behind."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelproof.engine import checkpoint, compiling
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.estimators import NoisyLabelClassifier
from labelproof.methods import METHODS
from labelproof.networks import build
from tests.toy import blobs, eager, factory, mlp, problem, same, settings, streams

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(name for name, method in METHODS.items() if "compile" not in method.forbids)


class Net(nn.Module):
    """With BatchNorm, so that modes matter; counts how often Python runs `forward`, which compiled code does not."""

    ran = 0

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            Net.ran += 1
        out: Tensor = self.head(self.body(x))
        return out


def nets_for(data: Any) -> Any:
    return lambda k: Net(data.x.shape[1], data.num_classes or data.y.shape[1])


@pytest.fixture(autouse=True)
def _no_compiler_needed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def weights(r: Any) -> Tensor:
    return torch.cat([t.detach().flatten().double() for net in r.nets for t in net.state_dict().values()])


@pytest.mark.filterwarnings("ignore:no training sample")
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_the_same(name: str) -> None:
    data = problem(METHODS[name], 97, noise=0.2)
    a, b = (
        fit(eager(name), nets_for(data), data, settings(compile=how), streams=streams(METHODS[name]))
        for how in (False, True)
    )
    torch.testing.assert_close(weights(b), weights(a), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(b.predict(data.x), a.predict(data.x), rtol=1e-3, atol=1e-4)
    for key in a.history[-1].keys() - {"seconds"}:
        assert b.history[-1][key] == pytest.approx(a.history[-1][key], rel=1e-4, abs=1e-4), key


def test_full_training_batches_are_compiled_and_nothing_else() -> None:
    """97 rows make three batches of 32 and less: of each epoch the last, and evaluation, run as they are."""
    data, test = blobs(97), blobs(40, seed=5)
    torch._dynamo.utils.counters.clear()
    Net.ran = 0
    fit(METHODS["ce"](), nets_for(data), data, settings(epochs=4, compile=True), test=test)
    compiled, graphs = Net.ran, torch._dynamo.utils.counters["stats"]["unique_graphs"]
    Net.ran = 0
    fit(METHODS["ce"](), nets_for(data), data, settings(epochs=4), test=test)
    steps = sum(1 for _ in range(0, 97 - 1, 32))
    assert graphs == 1
    assert Net.ran - compiled == 4 * (steps - 1)


def test_one_batch_an_epoch_is_compiled() -> None:
    data = blobs(32)
    torch._dynamo.utils.counters.clear()
    fit(METHODS["ce"](), nets_for(data), data, settings(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_peers_and_twins_share_two_graphs() -> None:
    data = blobs(96)
    torch._dynamo.utils.counters.clear()
    fit(METHODS["elr+"](), nets_for(data), data, settings(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "with gradient, and the twins' without"


def test_a_fitted_run_is_plain_again() -> None:
    data = blobs(97)
    r = fit(METHODS["elr+"](), nets_for(data), data, settings(compile=True))
    assert all(m._compiled_call_impl is None for m in r.nets.modules())
    assert not any("_orig_mod" in name for name in r.nets.state_dict())
    for again in (pickle.loads(pickle.dumps(r)), copy.deepcopy(r)):
        np.testing.assert_array_equal(again.predict(data.x), r.predict(data.x))
    Net.ran = 0
    r.predict(data.x)
    assert Net.ran == 2, "both peers, in Python"


def test_networks_may_be_copied_and_pickled_while_they_are_compiled() -> None:
    """By a method or a user's, in the middle of a run."""
    seen: list[nn.Module] = []

    class Copying(METHODS["ce"]):  # type: ignore[misc]
        def after_step(self, nets: Any, batch: Any, now: Any) -> None:
            seen.extend([copy.deepcopy(nets[0]), pickle.loads(pickle.dumps(nets[0]))])

    data = blobs(32)
    r = fit(Copying(), nets_for(data), data, settings(epochs=1, compile=True))
    for found in seen:
        assert found._compiled_call_impl is None
        assert same(dict(found.state_dict()), dict(r.nets[0].state_dict()))


@pytest.mark.parametrize("first", [False, True])
def test_checkpoints_go_from_one_to_the_other(first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed with it goes on without, and the other way round."""
    data, plain, done = blobs(97), Training.run_batch, 0
    whole = fit(METHODS["elr"](), nets_for(data), data, settings(epochs=4))

    def mortal(*args: Any) -> Any:
        nonlocal done
        if done == 8:
            raise KeyboardInterrupt
        done += 1
        return plain(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "run_batch", mortal)
        fit(METHODS["elr"](), nets_for(data), data, settings(epochs=4, compile=first), folder=tmp_path)
    assert not any("_orig_mod" in key for key in checkpoint.load(tmp_path)["training"]["step"])
    r = fit(METHODS["elr"](), nets_for(data), data, settings(epochs=4, compile=not first), folder=tmp_path, resume=True)
    torch.testing.assert_close(weights(r), weights(whole), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"other settings: lr=0.2 \(was 0.1\)$"):
        fit(METHODS["elr"](), nets_for(data), data, settings(epochs=4, lr=0.2), folder=tmp_path, resume=True)


def test_early_stopping_restores_the_best_epoch() -> None:
    data = blobs(200, flips=0.2)
    how = {"epochs": 6, "early_stopping": True, "patience": 2}
    a, b = (fit(METHODS["ce"](), nets_for(data), data, settings(**how, compile=c)) for c in (False, True))
    assert b.best_epoch == a.best_epoch
    torch.testing.assert_close(weights(b), weights(a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["prl-g", "co-prl-g"])
def test_methods_that_look_inside_are_refused(name: str) -> None:
    data = problem(METHODS[name])
    with pytest.raises(ValueError, match=rf"^{name} cannot be trained with compile=True: it looks inside the network"):
        fit(METHODS[name](), factory(data), data, settings(compile=True))


def test_a_bare_sequential_is_refused() -> None:
    """torch passes over it without a word."""
    data = blobs()
    with pytest.raises(ValueError, match=r"passes over a bare Sequential.*a class with a forward of its own"):
        fit(METHODS["ce"](), lambda k: mlp(8, 3), data, settings(compile=True))
    torch._dynamo.utils.counters.clear()
    net = mlp(8, 3)
    net.compile(backend="aot_eager")
    net(torch.ones(2, 8))
    assert not torch._dynamo.utils.counters["stats"], "if torch compiles these now, the refusal can go"


def test_a_failing_compiler_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no g++ here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    data = blobs()
    with pytest.raises(
        ValueError,
        match=r"^compile=True: torch.compile failed \(.*no g.. here\). It needs a C\+\+ compiler .*leave compile out$",
    ):
        fit(METHODS["ce"](), nets_for(data), data, settings(compile=True))


def test_a_system_that_cannot_compile_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    data = blobs()
    with pytest.raises(ValueError, match=r"^compile=True: torch.compile is not supported on Python 3.99\+. Leave comp"):
        fit(METHODS["ce"](), nets_for(data), data, settings(compile=True))


def test_other_errors_stay_what_they_are() -> None:
    class Broken(METHODS["ce"]):  # type: ignore[misc]
        def loss(self, nets: Any, batch: Any, now: Any) -> Any:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(Broken(), nets_for(blobs()), blobs(), settings(compile=True))


def test_the_estimator_asks_for_it() -> None:
    data = blobs(64)
    torch._dynamo.utils.counters.clear()
    clf = NoisyLabelClassifier(method="ce", network="mlp", epochs=1, batch_size=64, compile=True, device="cpu")
    p = clf.fit(data.x, data.y).predict_proba(data.x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    np.testing.assert_allclose(p, clf.set_params(compile=False).fit(data.x, data.y).predict_proba(data.x), atol=1e-5)


def test_nothing_is_compiled_unless_asked() -> None:
    assert not Settings().compile
    torch._dynamo.utils.counters.clear()
    fit(METHODS["ce"](), nets_for(blobs()), blobs(), settings())
    assert not torch._dynamo.utils.counters["stats"]


def test_built_in_networks_are_laid_out_with_channels_last() -> None:
    """Where the network says so; on a GPU as well, which a test below has."""
    rng = np.random.default_rng(0)
    data = replace(blobs(40), x=rng.integers(0, 256, (40, 3, 8, 8), np.uint8))
    for name, expected in (("cnn", True), ("cnn-gn", False)):
        r = fit(METHODS["ce"](), lambda k, name=name: build(name, (3, 8, 8), 3), data, settings(epochs=1))
        conv = next(m for m in r.nets.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1)
        assert conv.weight.is_contiguous(memory_format=torch.channels_last) is expected


CODE = """
import torch
from labelproof.engine.stages import fit
from labelproof.methods import METHODS
from labelproof.networks import build
from tests.toy import blobs, settings
data = blobs(64)
r = fit(METHODS["elr"](), lambda k: build("mlp", (8,), 3), data, settings(compile=COMPILE, epochs=2))
print(round(r.history[-1]["loss"], 4))
"""


def _in_a_process(folder: Path, compile: bool, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1", **env}
    env |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code = CODE.replace("COMPILE", str(compile))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.skipif(sys.platform == "win32", reason="needs g++")
def test_the_compiler_itself(tmp_path: Path) -> None:
    """Inductor's C++ code trains what Python trains; without a compiler the error says so."""
    plain, compiled = (_in_a_process(tmp_path, how) for how in (False, True))
    assert compiled.returncode == 0, compiled.stderr
    assert compiled.stdout == plain.stdout
    without = _in_a_process(tmp_path / "empty", True, CXX="/nowhere/g++")
    assert without.returncode != 0
    last = without.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: compile=True: torch.compile failed")
    assert "C++ compiler" in last


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["ce", "elr", "elr+", "co-teaching"])
def test_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    data = problem(METHODS[name], 256, noise=0.2)
    a, b = (
        fit(eager(name), nets_for(data), data, settings(compile=how, device="cuda"), streams=streams(METHODS[name]))
        for how in (False, True)
    )
    torch.testing.assert_close(weights(b), weights(a), rtol=1e-2, atol=1e-2)
    mixed = fit(eager(name), nets_for(data), data, settings(compile=True, device="cuda", precision="bf16-mixed"))
    assert np.isfinite(mixed.history[-1]["loss"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_channels_last_on_a_gpu(precision: str) -> None:
    rng = np.random.default_rng(0)
    data = replace(blobs(40), x=rng.integers(0, 256, (40, 3, 8, 8), np.uint8))
    how = settings(epochs=1, device="cuda", precision=precision)
    r = fit(METHODS["ce"](), lambda k: build("cnn", (3, 8, 8), 3), data, how)
    conv = next(m for m in r.nets.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1)
    assert conv.weight.is_cuda
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
