"""A user's own data-parallel loop gives what one process gives with the joint batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.losses.worker import CASES, train

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    out = tmp_path_factory.mktemp("losses-ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    worker = [str(REPO / "tests" / "losses" / "worker.py"), str(out)]
    done = subprocess.run(
        [*command, *worker], env=env, cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in "".join(line for line in done.stderr.splitlines() if "Index" in line)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, two: list[dict[str, dict[str, Tensor]]]) -> None:
    want = train(name, 0, 1)
    for got in two:
        assert got[name].keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[name][key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
