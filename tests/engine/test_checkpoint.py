"""Checkpoints: whole or not at all, harmless to open, and never mixed between runs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labelproof.engine import checkpoint
from labelproof.engine.stages import fit
from labelproof.methods import CE, ELR
from tests.toy import blobs, factory, same, settings

REPO = Path(__file__).resolve().parents[2]


def trained(folder: Path, epochs: int = 3) -> None:
    data = blobs()
    fit(ELR(), factory(data), data, settings(epochs=epochs), folder=folder)


def test_a_truncated_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    data = blobs()
    whole = fit(ELR(), factory(data), data, settings(epochs=4), folder=tmp_path)
    last = tmp_path / checkpoint.LAST
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"last\.ckpt cannot be read .* trying the checkpoint before it"):
        again = fit(ELR(), factory(data), data, settings(epochs=4), folder=tmp_path, resume=True)
    assert same(dict(whole.nets.state_dict()), dict(again.nets.state_dict()))
    assert same(dict(whole.method.state_dict()), dict(again.method.state_dict()))


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    trained(tmp_path)
    for name in (checkpoint.LAST, checkpoint.BEFORE):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match=r"no readable checkpoint in .* \(last\.ckpt, previous\.ckpt\): train anew"),
    ):
        checkpoint.load(tmp_path)


def test_foreign_pickles_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    (tmp_path / checkpoint.LAST).write_bytes(pickle.dumps(Evil()))
    torch.save({"a": 1}, tmp_path / checkpoint.BEFORE)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert checkpoint.load(tmp_path) == {"a": 1}
    assert not (tmp_path / "owned").exists()


def test_nothing_to_resume(tmp_path: Path) -> None:
    data = blobs()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: nothing to resume; start without --resume"):
        fit(CE(), factory(data), data, settings(), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume and tensorboard need a folder"):
        fit(CE(), factory(data), data, settings(), resume=True)


def test_other_settings_or_data_are_not_resumed(tmp_path: Path) -> None:
    trained(tmp_path)
    data = blobs()
    with pytest.raises(ValueError, match=r"cannot resume: .*epochs=9 \(was 3\); lr=0\.2 \(was 0\.1\)"):
        fit(ELR(), factory(data), data, settings(epochs=9, lr=0.2), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"method='ELR\(lam=1.0, beta=0.7\)' \(was 'ELR\(lam=3.0, beta=0.7\)'\)"):
        fit(ELR(lam=1.0), factory(data), data, settings(), folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"data='[0-9a-f]+' \(was '[0-9a-f]+'\)"):
        fit(ELR(), factory(data), blobs(seed=5), settings(), folder=tmp_path, resume=True)


def test_a_checkpoint_from_before_a_setting_existed_goes_on_as_it_was(tmp_path: Path) -> None:
    trained(tmp_path)
    state = checkpoint.load(tmp_path)
    assert state["stamp"].pop("momentum_schedule") == "constant"
    checkpoint.save(tmp_path, state)
    data = blobs()
    again = fit(ELR(), factory(data), data, settings(), folder=tmp_path, resume=True)
    assert len(again.history) == 3
    with pytest.raises(ValueError, match=r"other settings: momentum_schedule='linear' \(was 'constant'\)$"):
        fit(ELR(), factory(data), data, settings(momentum_schedule="linear"), folder=tmp_path, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """A real write that fails half-way: the process may write no file larger than a few kilobytes."""
    trained(tmp_path)
    before = (tmp_path / checkpoint.LAST).read_bytes()
    code = f"""
import resource, signal, torch
from pathlib import Path
from labelproof.engine import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
checkpoint.save(Path({str(tmp_path)!r}), {{"big": torch.zeros(100_000)}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "cannot write a checkpoint to" in done.stderr
    assert "Checkpoints already there are untouched" in done.stderr
    assert (tmp_path / checkpoint.LAST).read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    data = blobs()
    with pytest.raises(OSError, match=r"cannot write a checkpoint to .*file/run"):
        fit(CE(), factory(data), data, settings(), folder=blocker / "run")


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    trained(tmp_path)
    data = blobs()
    again = fit(ELR(), factory(data), data, settings(), folder=tmp_path, resume=True)
    assert len(again.history) == 3


def test_another_run_inside_the_folder_is_not_a_stage_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "last.ckpt").touch()
    assert checkpoint.begun(tmp_path), "a stage"
    (tmp_path / "other" / "run.json").touch()
    assert not checkpoint.begun(tmp_path), "a run of its own"
