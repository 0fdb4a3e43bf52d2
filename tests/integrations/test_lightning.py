"""Lightning: the module keeps its training_step, the callback keeps the per-sample state right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from labelproof.data.indexed import with_index
from labelproof.losses import ELRLoss, SOPLoss

pytest.importorskip("lightning", reason="lightning is not installed: pip install 'labelproof[lightning]'")

from labelproof.integrations.lightning import NoisyLabels
from tests.integrations.lightning_worker import EveryOther, N, Net, digits, loader, run, trainer
from tests.integrations.losses import REMEMBERING, BoldSOP, errors_of

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


def same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, **tolerance or {"atol": 0, "rtol": 0})


def test_three_lines() -> None:
    train, valid = digits()
    net, t = Net(ELRLoss(N, 10)), trainer(max_epochs=30)
    t.fit(net, loader(train, shuffle=True), DataLoader(valid, batch_size=64))
    assert net.met == {i: int(y) for i, (_, y) in enumerate(train)}
    assert (net.criterion.t.values.sum(1) > 0).all()
    assert t.callback_metrics["val_acc"] > 0.5  # validation: no ids, plain cross-entropy


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_equals_a_loop_of_ones_own(name: str) -> None:
    train, _ = digits()
    got = run(name, 0, loader(train))
    torch.manual_seed(0)
    criterion = REMEMBERING[name](N, 10)
    own = Net(criterion).net
    optimizers = [torch.optim.SGD(own.parameters(), 0.1), *errors_of(criterion)]
    for _ in range(2):
        for x, y, index in loader(train):
            criterion(own(x), y, index).backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
    same(dict(own.state_dict()), got["net"], atol=1e-6, rtol=1e-5)
    same(dict(criterion.state_dict()), got["state"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    train, _ = digits()
    whole = run(name, 0, loader(train), max_epochs=3)
    t, net = trainer(max_epochs=1), Net(REMEMBERING[name](N, 10))
    torch.manual_seed(0)
    net.criterion = REMEMBERING[name](N, 10)
    t.fit(net, loader(train))
    t.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    again = Net(REMEMBERING[name](N, 10))
    trainer(max_epochs=3).fit(again, loader(train), ckpt_path=tmp_path / "half.ckpt")
    same(whole["net"], dict(again.net.state_dict()))
    same(whole["state"], dict(again.criterion.state_dict()))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_learned_rows_have_their_own_sgd(optimizer: Any) -> None:
    train, _ = digits()
    learned = {}
    for lr_u in (1.0, 10.0):
        torch.manual_seed(0)
        net = Net(BoldSOP(N, 10), optimizer)  # its configure_optimizers returns all of self.parameters()
        start = net.criterion.u.weight.detach().clone()
        sop = NoisyLabels(errors={"lr_u": lr_u, "lr_v": 1.0})
        trainer(callbacks=[sop], max_epochs=1, gradient_clip_val=0.5, accumulate_grad_batches=2).fit(net, loader(train))
        learned[lr_u] = net.criterion.u.weight.detach() - start
        assert (learned[lr_u] != 0).float().mean() > 0.9
    torch.testing.assert_close(learned[10.0], 10 * learned[1.0], rtol=1e-3, atol=1e-6)  # one step each


def test_two_processes_agree_and_equal_one(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    worker = str(REPO / "tests" / "integrations" / "lightning_worker.py")
    done = subprocess.run(
        [sys.executable, worker, str(tmp_path)], env=env, cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    train, _ = digits()
    for name in REMEMBERING:
        one = run(name, 0, loader(train, 32))
        for two in ranks:
            same(one["state"], two[name]["state"], atol=1e-5, rtol=1e-4)
            same(one["net"], two[name]["net"], atol=1e-5, rtol=1e-4)
    # Lightning replaces a sampler of the user's own: the ids come from the data set and stay right
    both = [r["sampler"]["met"] for r in ranks]
    assert {**both[0], **both[1]} == {i: int(y) for i, (_, y) in enumerate(train)}
    same(ranks[0]["sampler"]["state"], ranks[1]["sampler"]["state"])


def test_subsets_and_samplers_keep_ids() -> None:
    train, _ = digits()
    rows = list(range(N - 1, 100, -3))
    net = Net(ELRLoss(N, 10))
    trainer().fit(net, DataLoader(Subset(with_index(train), rows), batch_size=16, shuffle=True))
    assert net.met == {i: int(train[i][1]) for i in rows}
    net = Net(ELRLoss(N, 10))
    trainer(max_epochs=1).fit(net, loader(train, sampler=EveryOther()))
    assert list(net.met) == list(EveryOther())


def test_batches_without_ids() -> None:
    train, _ = digits()
    with pytest.raises(ValueError, match=r"a loss of Net needs the id of each sample.*lp\.with_index"):
        trainer().fit(Net(ELRLoss(N, 10)), DataLoader(train, batch_size=16))


def test_training_set_larger_than_the_loss() -> None:
    train, _ = digits()
    with pytest.raises(ValueError, match=r"the training set has 256 samples.*num_samples=32: make it with"):
        trainer().fit(Net(ELRLoss(32, 10)), loader(train))


def test_a_loss_made_for_a_subset() -> None:
    train, _ = digits()
    net = Net(ELRLoss(100, 10))
    with pytest.raises(ValueError, match=rf"num_samples=100: make it with num_samples={N}"):
        trainer().fit(net, DataLoader(Subset(with_index(train), range(100, 200)), batch_size=16))
    assert not net.met  # before the first step


def test_errors_must_fit_the_loss() -> None:
    train, _ = digits()
    with pytest.raises(ValueError, match=r"errors has an unknown key 'lru': did you mean 'lr_u'"):
        trainer(callbacks=[NoisyLabels(errors={"lru": 1})]).fit(Net(SOPLoss(N, 10)), loader(train))
    with pytest.raises(ValueError, match=r"errors has lr_u, but only a loss with learned rows"):
        trainer(callbacks=[NoisyLabels(errors={"lr_u": 1})]).fit(Net(ELRLoss(N, 10)), loader(train))


def test_double_precision_trains_learned_rows() -> None:
    train, _ = digits()
    net = Net(BoldSOP(N, 10))
    start = net.criterion.u.weight.detach().clone()
    trainer(precision="64-true", max_epochs=1).fit(net, loader(train))
    assert net.criterion.u.weight.dtype == torch.float64
    assert (net.criterion.u.weight - start != 0).any()


def test_dict_batches() -> None:
    class Dicts(Net):
        def training_step(self, batch: Any, i: int) -> Tensor:
            return super().training_step((batch["x"], batch["y"], batch["index"]), i)

    train, _ = digits()
    items = [{"x": x, "y": y} for x, y in train]
    net = Dicts(ELRLoss(N, 10))
    trainer().fit(net, loader(items))
    assert len(net.met) == N
    with pytest.raises(ValueError, match="dicts with an 'index'"):
        trainer().fit(Dicts(ELRLoss(N, 10)), DataLoader(items, batch_size=16))


def test_fp16_and_sharding_are_refused_for_learned_rows() -> None:
    t, net = trainer(), Net(SOPLoss(N, 10))
    for precision in ("16-mixed", "16-true", "bf16-true"):
        half = SimpleNamespace(precision=precision, strategy=t.strategy)
        with pytest.raises(ValueError, match=r'need fp32.*precision="bf16-mixed"'):
            NoisyLabels().setup(half, net, "fit")
    sharded = SimpleNamespace(precision="32-true", strategy=type("FSDPStrategy", (), {})())
    with pytest.raises(ValueError, match=r'FSDPStrategy: use Trainer\(strategy="ddp"\)'):
        NoisyLabels().setup(sharded, net, "fit")


def test_losses_without_state_are_left_alone() -> None:
    class Plain(Net):
        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.criterion(self.net(batch[0]), batch[1])

    train, _ = digits()
    trainer().fit(Plain(nn.CrossEntropyLoss()), DataLoader(train, batch_size=16))
