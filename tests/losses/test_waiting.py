"""On a GPU, reading a number from a tensor makes the host wait: a loss never does in a step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from labelproof.losses import ELRLoss, SOPLoss


@pytest.mark.parametrize("kind", [ELRLoss, SOPLoss])
@pytest.mark.parametrize("checked", [False, True])
def test_no_step_waits_for_the_device(
    kind: type[ELRLoss] | type[SOPLoss], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU stands in for it, told that it is none; with the check of ids, findings are read after 16 batches."""
    monkeypatch.setattr("labelproof.functional.device._is_host", lambda x: False)
    criterion = kind(1000, 4, check_index=checked)
    z, reads = torch.randn(8, 4).requires_grad_(), Counter[str]()

    def counting(which: str) -> None:
        real = getattr(Tensor, which)

        def spy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            reads[which] += 1
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, which, spy)

    for which in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        counting(which)
    for step in range(15):
        ids = torch.arange(8 * step, 8 * step + 8)
        criterion(z, ids % 4, ids).backward()
    assert not reads
    criterion(z, ids % 4, ids + 8).backward()
    assert reads == ({"tolist": 1} if checked else {})
