"""`Batch` and `Loss` where rows of another batch are added."""

from __future__ import annotations

import torch

from labelproof.core.types import Batch, Loss


def batch(first: int, rows: int, views: int = 1, **side: Batch) -> Batch:
    index = torch.arange(first, first + rows)
    return Batch(index, tuple(index[:, None] * 10.0 + v for v in range(views)), index % 3, side)


def test_joined_batches_stand_one_after_the_other() -> None:
    one, two = batch(0, 3, views=2, clean=batch(50, 2)), batch(7, 2)
    both = one.joined(two)
    assert both.index.tolist() == [0, 1, 2, 7, 8]
    assert both.target.tolist() == [0, 1, 2, 1, 2]
    assert both.x[:, 0].tolist() == [0, 10, 20, 70, 80]
    assert len(both.views) == 1, "a side stream has the ordinary view alone"
    assert dict(both.side) == {}
    assert one.index.tolist() == [0, 1, 2]
    assert len(one.joined(batch(9, 1, views=2)).views) == 2


def test_of_first_keeps_the_record_of_these_rows() -> None:
    value = torch.ones((), requires_grad=True)
    log = {"a": torch.tensor(1.0)}
    for peers in ((), (2,)):
        out, trust = torch.randn(*peers, 5, 4), torch.rand(*peers, 5)
        first = Loss(value, out=out, trust=trust, log=log).of_first(3)
        assert first.value is value
        assert first.log is log
        torch.testing.assert_close(first.out, out[..., :3, :])
        torch.testing.assert_close(first.trust, trust[..., :3])
        assert first.out.shape == (*peers, 3, 4)
    assert Loss(value).of_first(3) == Loss(value)
