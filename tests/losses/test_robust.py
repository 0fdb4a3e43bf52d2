"""Every drop-in loss against its paper, and what all of them promise: shapes, ignored labels, precision, state."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelproof import losses
from labelproof.functional.losses import backward_corrected
from tests.losses import oracles

K, SIZE = 4, (3, 5)
T = np.array([[0.7, 0.3, 0, 0], [0, 0.8, 0.2, 0], [0.1, 0, 0.9, 0], [0, 0, 0.4, 0.6]])

STATELESS = {
    "gce": (lambda **o: losses.GCELoss(q=0.7, **o), lambda z, y: oracles.gce(z, y, 0.7)),
    "gce truncated": (lambda **o: losses.GCELoss(q=0.5, k=0.4, **o), lambda z, y: oracles.gce(z, y, 0.5, 0.4)),
    "mae": (losses.MAELoss, oracles.mae),
    "sce": (lambda **o: losses.SCELoss(alpha=6.0, beta=0.1, **o), lambda z, y: oracles.sce(z, y, 6.0, 0.1, -4.0)),
    "bootstrap hard": (losses.BootstrapLoss, lambda z, y: oracles.bootstrap(z, y, 0.8, hard=True)),
    "bootstrap soft": (
        partial(losses.BootstrapLoss, kind="soft"),
        lambda z, y: oracles.bootstrap(z, y, 0.95, hard=False),
    ),
    "forward": (lambda **o: losses.ForwardLoss(T, **o), lambda z, y: oracles.forward(z, y, T)),
    "backward": (lambda **o: losses.BackwardLoss(T, floor=0, **o), lambda z, y: oracles.backward(z, y, T)),
}
MAKE: dict[str, Any] = {
    **{name: make for name, (make, _) in STATELESS.items()},
    "small": lambda **o: losses.SmallLoss(noise_rate=0.0, **o),
    "elr": lambda **o: losses.ELRLoss(8, K, spatial=o.pop("spatial", ()), **o),
    "sop": lambda **o: losses.SOPLoss(8, K, spatial=o.pop("spatial", ()), **o),
}


def make(name: str, *, spatial: tuple[int, ...] = (), **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return MAKE[name](**options, **({"spatial": spatial} if name in {"elr", "sop"} and spatial else {}))


def batch(*shape: int, n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = (2 * torch.randn(n, K, *shape, generator=g)).requires_grad_()
    return z, torch.randint(0, K, (n, *shape), generator=g), torch.arange(n)


@pytest.mark.parametrize("name", STATELESS)
def test_equals_the_paper(name: str) -> None:
    z, y, i = batch(n=40)
    want = STATELESS[name][1](z.detach().double().numpy(), y.numpy())
    np.testing.assert_allclose(make(name, reduction="none")(z, y, i).detach(), want, atol=2e-5)
    assert make(name)(z, y).item() == pytest.approx(want.mean(), abs=2e-5)
    assert make(name, reduction="sum")(z, y).item() == pytest.approx(want.sum(), abs=1e-3)


@pytest.mark.parametrize("name", MAKE)
def test_pixels_equal_the_mean_over_the_flat_version(name: str) -> None:
    z, y, i = batch(*SIZE)
    y[0, 1, 2] = y[3, 0] = y[5] = -100
    each = make(name, spatial=SIZE, reduction="none")(z, y, i)
    assert each.shape == y.shape
    assert float(each.detach()[y == -100].abs().max()) == 0
    flat_z, flat_y = z.detach().movedim(1, -1).reshape(-1, K), y.reshape(-1)
    kept = flat_y != -100
    per_pixel = {"elr": losses.ELRLoss, "sop": losses.SOPLoss}
    one_row = per_pixel[name](90, K) if name in per_pixel else make(name)
    want = one_row(flat_z[kept].requires_grad_(), flat_y[kept], torch.arange(90)[kept])
    got = make(name, spatial=SIZE)(z, y, i)
    torch.testing.assert_close(got.detach(), want.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(each.sum().detach() / kept.sum(), want.detach(), atol=1e-5, rtol=1e-5)
    got.backward()
    assert float(z.grad.movedim(1, -1).reshape(-1, K)[~kept].abs().max()) == 0


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("shape", [(), SIZE])
def test_all_ignored_is_zero_and_attached(name: str, shape: tuple[int, ...]) -> None:
    z, y, i = batch(*shape)
    loss = make(name, spatial=shape, ignore_index=255)(z, torch.full_like(y, 255), i)
    loss.backward()
    assert loss.item() == 0
    assert float(z.grad.abs().max()) == 0


@pytest.mark.filterwarnings("ignore::labelproof.losses.IndexWarning")
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_fp32(name: str, dtype: torch.dtype) -> None:
    """E11, S5: certain and wrong predictions, in the dtype itself and under autocast."""
    for scale in (1.0, 60.0):
        z = (scale * torch.eye(K)[[0, 0, 1, 2]]).to(dtype).requires_grad_()
        criterion, y = make(name), torch.tensor([0, 1, 1, 3])
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = criterion(z, y, torch.arange(4))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", sorted(set(MAKE) - {"sce", "gce truncated"}))
def test_soft_labels_that_are_hard_give_the_same(name: str) -> None:
    z, y, i = batch(*SIZE)
    soft = F.one_hot(y, K).movedim(-1, 1).float()
    got, want = (make(name, spatial=SIZE)(z, target, i) for target in (soft, y))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sce", "gce truncated"])
def test_soft_labels_are_refused_where_they_make_no_sense(name: str) -> None:
    z, _, i = batch()
    with pytest.raises(ValueError, match=r"takes classes, not probabilities: give target.argmax\(1\)"):
        make(name)(z, torch.full((6, K), 1 / K), i)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("kind", [list, tuple])
def test_target_and_index_may_come_as_a_pair(name: str, kind: type) -> None:
    """As `for x, *target in loader` gives them."""
    z, y, i = batch()
    want, got = make(name)(z, y, i), make(name)(z, kind([y, i]))
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match=r"target is a \w+ of 2 and must be a tensor, or a pair of tensors"):
        make(name)(z, kind([y, i]), i)
    with pytest.raises(ValueError, match=r"target is a \w+ of 3 and must be a tensor"):
        make(name)(z, kind([y, i, i]))


def test_a_lone_target_in_a_list_is_a_target() -> None:
    z, y, _ = batch()
    assert torch.equal(make("gce")(z, [y]), make("gce")(z, y))
    with pytest.raises(ValueError, match="needs its row number"):
        make("elr")(z, [y])


@pytest.mark.parametrize("name", MAKE)
def test_copies_and_reprs(name: str) -> None:
    criterion = make(name)
    assert copy.deepcopy(criterion).load_state_dict(criterion.state_dict())
    assert repr(criterion).startswith(type(criterion).__name__)


@pytest.mark.parametrize(
    ("logits", "target", "text"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"logits are \(3,\) float32 and must be \(B, K\)"),
        (torch.zeros(3, K), torch.zeros(3, 1).long(), r"target is \(3, 1\) int64 and must be \(3,\) integers"),
        (torch.zeros(3, K), torch.zeros(3), r"target is \(3,\) float32 .* or \(3, 4\) floats"),
        (torch.zeros(3, K), torch.zeros(3).bool(), r"target is \(3,\) bool"),
        (torch.zeros(3, K), torch.tensor([0, 1, 4]), r"class 4, which is not in \[0, 4\) and not ignore_index=-100"),
        (torch.zeros(3, K), torch.tensor([0, -1, 2]), r"class -1, which is not in"),
    ],
)
def test_wrong_input_is_named(logits: Tensor, target: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        losses.MAELoss()(logits, target)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="reduction='avg' must be one of mean, sum, none"):
        losses.MAELoss(reduction="avg")
    with pytest.raises(ValueError, match=r"q=0 must lie in \(0, 1\]"):
        losses.GCELoss(q=0)
    with pytest.raises(ValueError, match="kind='firm' must be 'hard' or 'soft'"):
        losses.BootstrapLoss(kind="firm")
    with pytest.raises(ValueError, match="must sum to 1"):
        losses.ForwardLoss([[0.5, 0.4], [0.0, 1.0]])
    with pytest.raises(ValueError, match="cannot be inverted"):
        losses.BackwardLoss([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="logits have 3 classes, transition is for 2"):
        losses.ForwardLoss([[0.5, 0.5], [0.0, 1.0]])(torch.zeros(1, 3), torch.tensor([0]))


def test_truncated_gce_has_no_gradient_below_k() -> None:
    z = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]], requires_grad=True)
    losses.GCELoss(q=0.7, k=0.5)(z, torch.zeros(2, dtype=torch.long)).backward()
    assert float(z.grad[0].abs().max()) > 0
    assert float(z.grad[1].abs().max()) == 0


def test_small_loss_keeps_the_smallest_of_what_is_valid() -> None:
    z = torch.tensor([[4.0, 0], [0, 4.0], [1.0, 0], [0, 0]], requires_grad=True)
    criterion = losses.SmallLoss(noise_rate=0.5)
    loss = criterion(z, torch.tensor([0, 0, 0, -100]))  # of three, one is kept
    loss.backward()
    assert float(loss) == pytest.approx(float(F.cross_entropy(z[:1], torch.tensor([0]))))
    assert z.grad.abs().sum(1).gt(0).tolist() == [True, False, False, False]
    with torch.no_grad():
        want = F.cross_entropy(z[:3], torch.zeros(3).long())
        torch.testing.assert_close(criterion(z, torch.tensor([0, 0, 0, -100])), want)


def test_small_loss_wants_to_know_the_epoch_of_its_schedule() -> None:
    criterion = losses.SmallLoss(noise_rate=0.4, num_gradual=4)
    z, y, _ = batch()
    with pytest.raises(ValueError, match=r"num_gradual=4 needs criterion.set_epoch\(epoch\)"):
        criterion(z, y)
    kept = []
    for epoch in range(6):
        criterion.set_epoch(epoch)
        kept.append(criterion.keep)
    assert kept == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.6, 0.6])


def test_transitions_are_state() -> None:
    assert list(losses.BackwardLoss(T).state_dict()) == ["transition", "inverse"]


@pytest.mark.parametrize("name", ["elr", "ce"])
def test_a_class_can_be_the_one_to_ignore(name: str) -> None:
    """`ignore_index` inside the range of classes, as in segmentation with 0 for void: as `nn.CrossEntropyLoss`."""
    z, target = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.tensor([0, 1])
    if name == "elr":
        criterion = losses.ELRLoss(5, 4, ignore_index=0, reduction="none")
        each = criterion(z, target, torch.tensor([3, 4]))
        assert not criterion.t.rows(torch.tensor([3])).any(), "nothing is remembered of it"
    else:
        each = losses.GCELoss(ignore_index=0, reduction="none")(z, target)
    assert each[0] == 0
    assert each[1] != 0


def test_backward_has_the_floor_of_the_method() -> None:
    z, target = torch.tensor([[0.0, 30.0]]), torch.tensor([1])
    matrix = [[0.8, 0.2], [0.4, 0.6]]
    assert losses.BackwardLoss(matrix)(z, target) == backward_corrected(z, target, torch.tensor(matrix))
    assert losses.BackwardLoss(matrix, floor=0)(z, target) < -10


@pytest.mark.parametrize("matrix", [[[0.9, 0.1], [1.0]], None, 3.0, [[0.9, 0.1]]])
def test_bad_matrices_are_named(matrix: Any) -> None:
    with pytest.raises(ValueError, match="transition"):
        losses.ForwardLoss(matrix)


def test_a_matrix_may_be_a_file_or_a_table(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "t.csv", [[0.8, 0.2], [0.4, 0.6]], delimiter=",")
    want = losses.ForwardLoss([[0.8, 0.2], [0.4, 0.6]]).transition
    for given in (str(tmp_path / "t.csv"), tmp_path / "t.csv", pd.DataFrame([[0.8, 0.2], [0.4, 0.6]])):
        torch.testing.assert_close(losses.ForwardLoss(given).transition, want)
