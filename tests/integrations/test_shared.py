"""What the adapters share, and what they say where their library is missing."""

from __future__ import annotations

import importlib
import sys

import pytest
from torch import nn
from torch.utils.data import Subset

from labelproof.data.indexed import with_index
from labelproof.integrations import shared
from labelproof.losses import ELRLoss, GCELoss, SOPLoss


@pytest.mark.parametrize(
    ("module", "library"),
    [("lightning", "lightning"), ("huggingface", "transformers"), ("huggingface", "accelerate"), ("skorch", "skorch")],
)
def test_a_missing_library_is_named_with_its_extra(module: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"labelproof.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"{library}.*not installed: pip install 'labelproof\[{module}\]'"):
        importlib.import_module(f"labelproof.integrations.{module}")


def test_data_parallel_wrappers_leave_all_that_belongs_to_a_remembering_loss() -> None:
    net = nn.ModuleDict({"net": nn.BatchNorm1d(3), "elr": ELRLoss(5, 2), "sop": SOPLoss(5, 2), "gce": GCELoss()})
    names = set(shared.data_parallel_ignores(net))
    everything = {*dict(net.named_parameters()), *dict(net.named_buffers())}
    assert names == {name for name in everything if name.startswith(("elr.", "sop."))}
    assert {f"sop.{k}.weight" for k in "uv"} <= names
    assert "u.weight" in shared.data_parallel_ignores(SOPLoss(5, 2))


def test_sizes() -> None:
    shared.check_size(nn.Sequential(ELRLoss(5, 2)), range(5))
    shared.check_size(ELRLoss(5, 2), iter(()))  # a stream has no size
    with pytest.raises(ValueError, match=r"6 samples.*num_samples=5: make it with num_samples=6"):
        shared.check_size(nn.Sequential(ELRLoss(9, 2), SOPLoss(5, 2)), range(6))


def test_a_part_of_an_indexed_set_counts_as_the_whole() -> None:
    part = Subset(Subset(with_index(range(300)), range(50, 250)), range(100, 200))
    shared.check_size(ELRLoss(300, 2), part)
    with pytest.raises(ValueError, match=r"part of an indexed set, which has 300 samples.*=100: make it with .*=300"):
        shared.check_size(ELRLoss(100, 2), part)
    shared.check_size(ELRLoss(100, 2), with_index(Subset(range(300), range(100, 200))))  # ids 0 to 99: wrapped last


def test_errors_that_no_loss_knows() -> None:
    assert shared.row_optimizers(ELRLoss(5, 2), {}) == []
    rates = [g["lr"] for g in shared.row_optimizers(SOPLoss(5, 2), {"lr_u": 1, "lr_v": 2})[0].param_groups]
    assert rates == [1, 2]
    with pytest.raises(ValueError, match=r"errors.*'lru': did you mean 'lr_u'\? allowed are: lr_u, lr_v"):
        shared.row_optimizers(nn.Sequential(SOPLoss(5, 2)), {"lru": 1})
    with pytest.raises(
        ValueError, match=r"errors has lr_u, but only a loss with learned rows \(SOPLoss\).*leave errors"
    ):
        shared.row_optimizers(ELRLoss(5, 2), {"lr_u": 1})
