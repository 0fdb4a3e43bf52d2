"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Two cores are shared by the whole suite: threads of several processes would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run: a suite that fails now and then teaches people to run it again.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("LABELPROOF_DATA") or REPO.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(
            f"real data not found at {folder}: set LABELPROOF_DATA to the folder that holds cifar10/, mnist/, uci/"
        )
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread in this process too; kernels then also add in one fixed order."""
    torch.set_num_threads(1)
