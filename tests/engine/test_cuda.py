"""The same runs on a GPU. Skips where there is none."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from labelproof.core.method import Method
from labelproof.core.nets import side_by_side
from labelproof.core.storage import FORMS
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import METHODS
from tests.toy import eager, factory, problem, same, settings, streams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_gpu_learns_what_a_cpu_learns(name: str) -> None:
    data, test = problem(METHODS[name], 200, noise=0.2), problem(METHODS[name], 100, seed=3)
    a, b = (
        fit(
            eager(name),
            factory(data),
            data,
            settings(epochs=5, device=device),
            test=test,
            streams=streams(METHODS[name]),
        ).history[-1]
        for device in ("cpu", "cuda")
    )
    for key in a.keys() & b.keys() - {"seconds"}:
        assert b[key] == pytest.approx(a[key], rel=0.05, abs=0.03), key


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_step_synchronises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Training.run_batch

    def strict(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Training, "run_batch", strict)
    data = problem(METHODS[name], 97)
    fit(eager(name), factory(data), data, settings(device="cuda"), streams=streams(METHODS[name]))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_mixed_precision_stays_finite(name: str, precision: str) -> None:
    data, how = problem(METHODS[name]), settings(device="cuda", precision=precision)
    side = streams(METHODS[name])
    if precision == "16-mixed" and METHODS[name].optimizers is not Method.optimizers:
        with pytest.raises(ValueError, match="cannot serve several optimisers"):
            fit(eager(name), factory(data), data, how, streams=side)
        return
    r = fit(eager(name), factory(data), data, how, streams=side)
    assert np.isfinite(r.history[-1]["loss"])
    assert np.isfinite(r.belief()).all()


@pytest.mark.parametrize("memory", [*FORMS, "topk:2"])
@pytest.mark.parametrize("name", ["ce", "elr", "mse"])
def test_every_form_of_memory(name: str, memory: str) -> None:
    data = problem(METHODS[name])
    r = fit(eager(name), factory(data), data, settings(device="cuda", memory=memory, validation_fraction=0.2))
    assert np.isfinite(r.belief()).all()
    assert r.columns()


def test_resume_on_a_gpu(tmp_path: Any) -> None:
    data = problem(METHODS["elr"])
    whole = fit(METHODS["elr"](), factory(data), data, settings(device="cuda"), folder=tmp_path)
    again = fit(METHODS["elr"](), factory(data), data, settings(device="cuda"), folder=tmp_path, resume=True)
    assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))


def test_streams_change_no_result() -> None:
    """Two networks on streams of their own: the outputs and gradients of one after the other."""
    torch.manual_seed(0)
    nets = [
        torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Flatten(), torch.nn.LazyLinear(10)).cuda() for _ in "ab"
    ]
    x = torch.randn(64, 3, 32, 32, device="cuda")

    def gradients(run: Any) -> list[torch.Tensor]:
        out = run([lambda net=net: net(x) for net in nets])
        for net in nets:
            net.zero_grad()
        torch.stack(out).square().mean().backward()
        return [*out, *[p.grad.clone() for net in nets for p in net.parameters()]]

    one = gradients(lambda calls: [call() for call in calls])
    for _ in range(20):  # a race would not show every time
        for a, b in zip(one, gradients(lambda calls: side_by_side(calls, x)), strict=True):
            torch.testing.assert_close(a, b)


def test_a_pickled_run_opens_where_no_gpu_is() -> None:
    data = problem(METHODS["elr"])
    r = fit(METHODS["elr"](), factory(data), data, settings(device="cuda"))
    again = pickle.loads(pickle.dumps(r))
    assert {t.device.type for t in (*again.nets.state_dict().values(), *again.method.state_dict().values())} == {"cpu"}
    assert r.nets[0][1].weight.device.type == "cuda", "and the run itself stays"
    np.testing.assert_allclose(again.predict(data.x), r.predict(data.x), atol=1e-5)
