"""Every form of per-sample memory keeps what it is given, as exactly as it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

import labelproof as lp
from labelproof.core.state import Curve, SampleTable, per_sample_bytes
from labelproof.core.storage import FORMS, kept_as, parse_memory
from labelproof.core.task import Classification
from labelproof.engine.evidence import Evidence
from labelproof.engine.stages import fit
from labelproof.methods import ELR
from tests.toy import blobs, factory, same, settings

EXACT = {"dense": 0.0, "cpu": 0.0, "mmap": 0.0, "fp16": 1e-3, "bf16": 8e-3}


def shares(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(k, 0.1), n)).float()


@pytest.mark.parametrize("memory", EXACT)
def test_rows_come_back_as_they_went_in(memory: str, tmp_path: Path) -> None:
    table = SampleTable(50, 7, memory=f"mmap:{tmp_path}" if memory == "mmap" else memory)
    index, rows = torch.randperm(50)[:20], shares(20, 7)
    table.write(index, rows)
    torch.testing.assert_close(table.rows(index), rows, atol=EXACT[memory], rtol=EXACT[memory])
    assert table.rows(index).dtype == torch.float32
    assert table.values.shape == (50, 7)
    untouched = sorted(set(range(50)) - set(index.tolist()))
    assert not table.rows(torch.tensor(untouched)).any()


@pytest.mark.parametrize("memory", [*EXACT, "topk:3"])
def test_survives_a_checkpoint_and_a_cast(memory: str, tmp_path: Path) -> None:
    a, b = SampleTable(20, 9, memory=memory), SampleTable(20, 9, memory=memory)
    a.write(torch.arange(20), shares(20, 9))
    torch.save(a.state_dict(), tmp_path / "t.pt")
    b.load_state_dict(torch.load(tmp_path / "t.pt", weights_only=True))
    assert torch.equal(a.rows(torch.arange(20)), b.rows(torch.arange(20)))
    assert torch.equal(a.to("cpu").rows(torch.arange(20)), b.rows(torch.arange(20)))


@given(st.integers(5, 40), st.integers(1, 4), st.integers(0, 100))
def test_topk_keeps_the_largest_and_spreads_the_rest(width: int, k: int, seed: int) -> None:
    table, rows = SampleTable(6, width, memory=f"topk:{k}"), shares(6, width, seed)
    table.write(torch.arange(6), rows)
    got = table.rows(torch.arange(6))
    torch.testing.assert_close(got.sum(1), rows.sum(1), atol=2e-3, rtol=0)
    largest = rows.topk(k, dim=1)
    torch.testing.assert_close(got.gather(1, largest.indices), largest.values, atol=1e-3, rtol=1e-3)
    others = got.scatter(1, largest.indices, torch.nan)
    for row in others:
        rest = row[~row.isnan()]
        torch.testing.assert_close(rest, rest[:1].expand_as(rest))


def test_topk_with_room_for_all_is_dense() -> None:
    assert SampleTable(5, 10, memory="topk").nbytes == SampleTable(5, 10).nbytes
    assert SampleTable(5, 3, 4, 4, memory="topk:2").nbytes == SampleTable(5, 3, 4, 4).nbytes


def test_bytes_are_what_the_documentation_says() -> None:
    """At 1,280,000 samples and 1,000 classes: 5.1 GB dense; table and record in top-k form within 0.7 GB."""
    n = 1_000
    scale = 1_280_000 / n
    assert scale * SampleTable(n, 1000).nbytes == 5.12e9
    table = SampleTable(n, 1000, memory="topk")
    assert table.nbytes == n * (4 * 50 + 2)
    assert SampleTable(n, 40_000, memory="topk").nbytes == n * (6 * 50 + 2)
    record = Evidence(Classification(1000), torch.zeros(n, dtype=torch.long), "topk")
    assert scale * (table.nbytes + record.nbytes) <= 0.7e9


def test_the_file_reserves_its_space_and_vanishes(tmp_path: Path) -> None:
    table = SampleTable(1000, 10, memory=f"mmap:{tmp_path}")
    if os.name == "posix":
        assert list(tmp_path.iterdir()) == [], "unlinked: gone when the process is, however it ends"
    table.write(torch.tensor([999]), torch.ones(1, 10))
    assert table.rows(torch.tensor([999])).sum() == 10


def test_no_room_is_said_with_the_remedy() -> None:
    with pytest.raises(MemoryError, match=r"no room for 10,000,000,000 rows .*4e\+04 GB in fp32.*try memory='topk'"):
        SampleTable(10_000_000_000, 1000)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ("topkk", "unknown memory 'topkk': did you mean 'topk'\\? There are: dense, fp16, bf16, cpu, mmap, topk"),
        ("topk:0", "memory='topk:0': the number of classes to keep must be a whole number from 1"),
        ("bf16:3", "memory='bf16:3': bf16 takes no argument"),
    ],
)
def test_bad_forms_are_named(memory: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_memory(memory)
    with pytest.raises(ValueError, match=says):
        settings(memory=memory)


@pytest.mark.parametrize("memory", [f for f in FORMS if f != "dense"] + ["topk:2"])
def test_killed_and_resumed_in_every_form(memory: str, tmp_path: Path) -> None:
    data = blobs(97, 5, flips=0.2)
    how = settings(epochs=4, memory=memory)
    whole = fit(ELR(), factory(data), data, how, folder=tmp_path / "whole")
    fit(ELR(), factory(data), data, how, folder=tmp_path / "cut")
    (tmp_path / "cut" / "last.ckpt").unlink()  # back to the end of the third epoch
    again = fit(ELR(), factory(data), data, how, folder=tmp_path / "cut", resume=True)
    assert same(dict(whole.method.state_dict()), dict(again.method.state_dict()))
    assert same(dict(whole.evidence.state_dict()), dict(again.evidence.state_dict()))
    assert per_sample_bytes(whole.method) > 0


@pytest.mark.parametrize("memory", ["topk:20", "fp16", "bf16", "mmap"])
def test_the_same_list_of_wrong_labels(memory: str) -> None:
    """Two digits side by side: 100 classes of real images, 30 % of the labels wrong."""
    digits, rng = load_digits(), np.random.default_rng(0)
    i, j = rng.integers(0, len(digits.target), (2, 3000))
    x = np.concatenate([digits.data[i], digits.data[j]], axis=1).astype(np.float32)
    y = lp.noise.inject(digits.target[i] * 10 + digits.target[j], "symmetric", 0.3, seed=0).labels
    ranks = []
    for form in ("dense", memory):
        clf = lp.NoisyLabelClassifier(method="elr", epochs=12, lr=0.1, memory=form).fit(x, y)
        ranks.append(clf.find_issues().sort_index()["rank"].to_numpy())
    assert spearmanr(*ranks)[0] >= 0.99


def test_a_curve_is_restored_whatever_its_length() -> None:
    a, b = Curve(), Curve()
    for value in (0.5, 0.75):
        a.append(torch.tensor(value))
    b.append(torch.tensor(1.0))
    b.load_state_dict(a.state_dict())
    assert b.values.tolist() == [0.5, 0.75]


@pytest.mark.parametrize("memory", ["topk:", "mmap:", "cpu:", "topk:²", None])
def test_half_written_forms_are_named(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory"):
        parse_memory(memory)


def test_the_dense_table_is_never_made_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 million samples of 100,000 classes there is no room for it."""
    method = ELR()
    with kept_as("topk:1"):
        method.setup(Classification(100_000), 2_000_000, nn.Identity())
    assert method.t.memory == "topk:1"
    assert method.t.nbytes == 2_000_000 * (4 + 2 + 2)
    assert SampleTable(3, 4).memory == "dense", "outside the block it is as ever"


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"memory='mmap:.*file': no file can be made there .*give a folder"):
        SampleTable(4, 3, memory=f"mmap:{tmp_path / 'file'}")
