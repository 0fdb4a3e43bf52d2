"""Fixtures for the tests of data."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and an empty folder to start in, whatever the machine holds."""
    monkeypatch.setenv("LABELPROOF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABELPROOF_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def folder(own_places: None, tmp_path: Path) -> Path:
    """A data folder."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
