"""ELR and SOP as drop-ins: the papers, the slips of their released code, and a user's own loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from labelproof.data.indexed import with_index
from labelproof.losses import ELRLoss, SOPLoss
from tests.losses.oracles import sop
from tests.reference.oracles import elr
from tests.toy import blobs, mlp


def draw(rng: np.random.Generator, n: int = 20, k: int = 4, b: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.from_numpy(3 * rng.normal(size=(b, k))).float().requires_grad_()
    return z, torch.from_numpy(rng.integers(0, k, b)), torch.from_numpy(rng.permutation(n)[:b])


@pytest.mark.parametrize("memory", ["dense", "cpu", "mmap", "fp16"])
def test_elr_equals_the_paper_over_several_visits(memory: str) -> None:
    rng = np.random.default_rng(0)
    criterion, t = ELRLoss(20, 4, lam=3.0, beta=0.7, memory=memory, check_index=False), np.zeros((20, 4))
    for _ in range(4):
        z, y, i = draw(rng)
        want, t[i] = elr(z.detach().double().numpy(), y.numpy(), t[i], 3.0, 0.7)
        assert criterion(z, y, i).item() == pytest.approx(want, rel=1e-2 if memory == "fp16" else 1e-5)
        np.testing.assert_allclose(criterion.t.values.float(), t, atol=1e-3 if memory == "fp16" else 1e-6)


def test_elr_top_k_remembers_what_matters() -> None:
    torch.manual_seed(0)
    dense, short = ELRLoss(30, 60), ELRLoss(30, 60, memory="topk:10")
    z, y, i = (6 * torch.randn(30, 60)).requires_grad_(), torch.arange(30) % 60, torch.arange(30)
    for _ in range(3):
        a, b = dense(z, y, i), short(z, y, i)
    assert b.item() == pytest.approx(a.item(), rel=1e-2)
    assert torch.equal(dense.belief().argmax(1), short.belief().argmax(1))


def test_sop_equals_the_paper_and_has_its_gradient_pattern() -> None:
    """S7: cross-entropy trains the network and u, the squared error u and v."""
    rng = np.random.default_rng(0)
    criterion = SOPLoss(20, 4, check_index=False)
    for parameter in criterion.parameters():
        nn.init.normal_(parameter, std=0.8)
    z, y, i = draw(rng)
    loss = criterion(z, y, i)
    u, v = (p.detach().double().numpy()[i] for p in (criterion.u.weight, criterion.v.weight))
    at, label = z.detach().double().numpy(), y.numpy()
    ce, mse = sop(at, label, u, v)
    assert loss.item() == pytest.approx((ce + mse).mean(), rel=1e-5)
    assert float(criterion.parts["ce"]) == pytest.approx(ce.mean(), rel=1e-5)
    assert float(criterion.parts["mse"]) == pytest.approx(mse.mean(), rel=1e-5)
    loss.backward()
    assert sorted(criterion.v.weight.grad.coalesce().indices()[0].tolist()) == sorted(i.tolist())
    for row, column in ((0, 0), (3, 2), (6, 3)):  # v: of mse alone, by finite differences
        nudge = np.zeros_like(v)
        nudge[row, column] = 1e-6
        slope = (sop(at, label, u, v + nudge)[1] - sop(at, label, u, v - nudge)[1]).sum() / 2e-6
        assert float(criterion.v.weight.grad.to_dense()[i[row], column]) == pytest.approx(slope / 7, abs=1e-5)
    for row in (1, 5):  # u: of both
        nudge = np.zeros_like(u)
        nudge[row] = 1e-6
        slope = (sum(sop(at, label, u + nudge, v)) - sum(sop(at, label, u - nudge, v))).sum() / 2e-6
        assert float(criterion.u.weight.grad.to_dense()[i[row], 0]) == pytest.approx(slope / 7, abs=1e-5)


def test_sop_starts_as_cross_entropy_and_u_moves_from_1e_8() -> None:
    """S5: values of 1e-8 are 0 in fp16 and could never move; they stay fp32, whatever the module is cast to."""
    torch.manual_seed(0)
    criterion = SOPLoss(6, 3)
    z, y, i = torch.randn(6, 3).requires_grad_(), torch.arange(6) % 3, torch.arange(6)
    criterion(z, y, i).backward()
    torch.testing.assert_close(criterion.parts["ce"], F.cross_entropy(z.detach(), y), atol=1e-3, rtol=1e-3)
    before = criterion.u.weight.detach().clone()
    errors = criterion.optimizer(lr_u=10.0, lr_v=10.0)
    errors.step()
    assert 0 < float(before.abs().max()) < 1e-6
    assert bool((criterion.u.weight != before).all())


def test_sop_optimiser_is_plain_sgd_with_two_rates() -> None:
    """S4: a helper makes it, and u and v are saved with everything else."""
    criterion = SOPLoss(6, 3)
    errors = criterion.optimizer(lr_u=1.0, lr_v=100.0)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in errors.param_groups] == [(1.0, 0, 0), (100.0, 0, 0)]
    assert list(criterion.state_dict()) == ["u.weight", "v.weight"]
    with pytest.raises(ValueError, match=r"lr_u=0 must lie in \(0, inf\)"):
        criterion.optimizer(lr_u=0)


def test_sop_notices_that_nobody_steps_u_and_v() -> None:
    criterion, z = SOPLoss(64, 3), torch.zeros(32, 3, requires_grad=True)
    errors = criterion.optimizer()

    def epochs(n: int, *, step: bool) -> None:
        for _ in range(n):
            for i in torch.arange(64).split(32):
                loss = criterion(z, i % 3, i)
                errors.zero_grad()
                loss.backward()
                if step:
                    errors.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epochs(40, step=True)
    with pytest.warns(UserWarning, match=r"u and v have not been stepped .* errors = criterion.optimizer\(\)") as said:
        epochs(40, step=False)
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("kind", [ELRLoss, SOPLoss])
def test_evaluation_is_cross_entropy_and_remembers_nothing(kind: type[ELRLoss] | type[SOPLoss]) -> None:
    criterion = kind(9, 4)
    before = {k: v.clone() for k, v in criterion.state_dict().items()}
    z, y, i = draw(np.random.default_rng(0), n=9)
    with torch.no_grad():
        torch.testing.assert_close(criterion(z, y, i), F.cross_entropy(z, y))
    torch.testing.assert_close(criterion.eval()(z, y), F.cross_entropy(z, y))
    assert all(torch.equal(v, before[k]) for k, v in criterion.state_dict().items())


def test_elr_parts_are_apart() -> None:
    """E12: the loss is negative by design; what is logged is cross-entropy and regulariser."""
    criterion = ELRLoss(3, 3, lam=7.0, beta=0.0)
    z, y = (30 * torch.eye(3)).requires_grad_(), torch.arange(3)
    loss = criterion(z, y, y)
    assert loss.item() == pytest.approx(7 * np.log(1 - (1 - 1e-4) ** 2), rel=0.05)
    assert loss.item() < 0 <= float(criterion.parts["ce"])
    assert loss.item() == pytest.approx(float(criterion.parts["ce"] + 7 * criterion.parts["elr"]))


def test_ignored_pixels_leave_the_targets_alone() -> None:
    criterion = ELRLoss(4, 3, spatial=(2, 2), beta=0.5)
    y = torch.zeros(1, 2, 2, dtype=torch.long)
    y[0, 0, 1] = -100
    criterion(torch.zeros(1, 3, 2, 2, requires_grad=True), y, torch.tensor([2]))
    got = criterion.t.values
    assert float(got[2, 0, 1].abs().max()) == 0
    assert float(got[2, 0, 0].sum()) == pytest.approx(0.5)
    assert float(got[[0, 1, 3]].abs().max()) == 0
    assert criterion.belief().shape == (4, 2, 2, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"logits": torch.zeros(2, 5)}, r"logits have shape \(2, 5\) and must have \(B, 3\)"),
        ({"logits": torch.zeros(2, 3, 4), "target": torch.zeros(2, 4).long()}, r"must have \(B, 3\): .* spatial=\(\)"),
        ({"index": None}, r"needs its row number: criterion\(logits, target, index\).*lp.with_index.*criterion.eval"),
        ({"index": torch.zeros(2)}, "index is torch.float32 and must be a tensor of integers"),
        ({"index": [0, 1]}, "index is list and must be a tensor of integers"),
        ({"index": torch.tensor([True, False])}, "index is torch.bool and must be"),
        ({"index": torch.tensor([[0], [1]])}, r"index has shape \(2, 1\) and must be \(2,\): one id per sample"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], text: str) -> None:
    given = {"logits": torch.zeros(2, 3), "target": torch.zeros(2).long(), "index": torch.arange(2), **change}
    with pytest.raises(ValueError, match=text):
        ELRLoss(9, 3)(*given.values())


@pytest.mark.parametrize("kind", [ELRLoss, SOPLoss])
def test_an_id_out_of_range_is_an_error(kind: type[ELRLoss] | type[SOPLoss]) -> None:
    """E2: the size of a batch given for that of the data set."""
    with pytest.raises(IndexError, match=r"sample id 17 is not in \[0, 4\): .* num_samples=4 must be its size"):
        kind(4, 3)(torch.zeros(4, 3), torch.zeros(4).long(), torch.tensor([0, 17, 30, 2]))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes=0 must be a whole number from 1"):
        SOPLoss(4, 0)
    with pytest.raises(ValueError, match=r"spatial=\(0, 2\) must be positive"):
        ELRLoss(4, 2, spatial=(0, 2))
    with pytest.raises(ValueError, match=r"memory='topk' keeps a row of classes; with spatial=\(2, 2\)"):
        ELRLoss(4, 90, spatial=(2, 2), memory="topk")


# --- in a user's own loop -----------------------------------------------------------------------------------------


def train(criterion: nn.Module, train_set: Dataset[object], epochs: int) -> nn.Module:
    """A plain loop. Three lines are not cross-entropy's: the criterion, the index in the batch, and in the call."""
    torch.manual_seed(0)
    model = mlp(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, y, index in DataLoader(train_set, batch_size=32, shuffle=True):
            loss = criterion(model(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def toy() -> tuple[TensorDataset, np.ndarray]:
    data = blobs(300, flips=0.3)
    return TensorDataset(torch.from_numpy(np.asarray(data.x)), torch.from_numpy(data.y)), np.asarray(data.truth)


def test_three_changed_lines_train_and_find_the_wrong_labels(tmp_path: Path) -> None:
    data, truth = toy()
    given = data.tensors[1].numpy()
    criterion = ELRLoss(num_samples=len(data), num_classes=3)
    model = train(criterion, with_index(data), epochs=20)
    assert float((model(data.tensors[0]).argmax(1).numpy() == truth).mean()) > 0.9
    belief = criterion.belief()
    torch.testing.assert_close(belief.sum(1), torch.ones(300))
    flagged = belief.argmax(1).numpy() != given
    assert ((given != truth) == flagged).mean() > 0.9

    torch.save({"model": model.state_dict(), "criterion": criterion.state_dict()}, tmp_path / "run.pt")
    again = ELRLoss(num_samples=len(data), num_classes=3)
    again.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True)["criterion"])
    assert torch.equal(again.belief(), belief)


def test_the_memory_follows_the_module() -> None:
    """E9: the released code's table is a plain attribute on the GPU."""
    criterion = ELRLoss(5, 3).to("meta")
    assert criterion.t.values.is_meta


def halves(data: Dataset[object]) -> Dataset[object]:
    whole = with_index(data)
    return ConcatDataset([Subset(whole, range(0, 48, 2)), Subset(whole, range(1, 48, 2))])


def orders(data: Dataset[object]) -> Iterator[list[DataLoader[object]]]:
    """Loaders, each list of which shows every sample once."""
    g = torch.Generator().manual_seed(3)
    whole = with_index(data)
    yield [DataLoader(whole, batch_size=8)]
    yield [DataLoader(whole, batch_size=16, shuffle=True, generator=g)]
    yield [DataLoader(halves(data), batch_size=6, shuffle=True, generator=g)]
    yield [DataLoader(Subset(whole, torch.randperm(48, generator=g).tolist()), batch_size=5)]
    once = WeightedRandomSampler(torch.rand(48, generator=g) + 0.1, 48, replacement=False, generator=g)
    yield [DataLoader(whole, batch_size=8, sampler=once)]
    yield [
        DataLoader(whole, batch_size=8, sampler=DistributedSampler(whole, 2, rank, shuffle=True)) for rank in range(2)
    ]


def test_any_sampler_gives_the_same_state_per_id() -> None:
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(48, 3, generator=g), torch.randint(0, 3, (48,), generator=g))
    states = []
    for loaders in orders(data):
        criterion = ELRLoss(48, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                for loader in loaders:
                    for z, y, index in loader:
                        criterion(z.requires_grad_(), y, index)
        states.append(criterion.t.values)
    assert len(states) == 6
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integer_labels(dtype: torch.dtype) -> None:
    z, index = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.tensor([7, 1, 3])
    for kind in (ELRLoss, SOPLoss):
        got, want = (kind(9, 4)(z, torch.tensor([0, 3, 1]).to(d), index) for d in (dtype, torch.int64))
        torch.testing.assert_close(got, want)


def test_double_precision_models() -> None:
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    for kind in (ELRLoss, SOPLoss):
        kind(9, 4)(z, torch.tensor([0, 3, 1]), torch.tensor([7, 1, 3])).backward()
        assert z.grad is not None
        assert z.grad.dtype == torch.float64
