"""Hugging Face: ids reach the loss and nothing else, and its state is in every checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from labelproof.data.indexed import with_index
from labelproof.losses import ELRLoss, SOPLoss

pytest.importorskip("transformers", reason="not installed: pip install 'labelproof[huggingface]'")
pytest.importorskip("accelerate", reason="not installed: pip install 'labelproof[huggingface]'")

from transformers import BertForSequenceClassification, Trainer, default_data_collator

from labelproof.integrations.huggingface import NoisyLabelTrainer
from tests.integrations.losses import REMEMBERING, BoldSOP, errors_of
from tests.integrations.news import N, News, arguments, bert, run

REPO = Path(__file__).resolve().parents[2]


class Spy(ELRLoss):
    """Remembers which label it met under which id."""

    def __init__(self, num_samples: int = N) -> None:
        super().__init__(num_samples, 4)
        self.met: dict[int, int] = {}
        self.visits = torch.zeros(num_samples, dtype=torch.int64)

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        self.met |= dict(zip(index.tolist(), target.tolist(), strict=True))
        self.visits[index] += 1
        return super().forward(logits, target, index)


@pytest.fixture(scope="module")
def news(data_dir: Path) -> tuple[News, News]:
    return News(data_dir, slice(0, N)), News(data_dir, slice(N, N + 64), rate=0)


def train(criterion: nn.Module, data: Any, out: Path, **kwargs: Any) -> Any:
    kinds = {k: kwargs.pop(k) for k in ("eval_dataset", "data_collator", "compute_metrics") if k in kwargs}
    resume, model = kwargs.pop("resume", None), kwargs.pop("model", None) or bert()
    trainer = NoisyLabelTrainer(model, arguments(out, **kwargs), train_dataset=data, criterion=criterion, **kinds)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, **tolerance or {"atol": 0, "rtol": 0})


class Strict(BertForSequenceClassification):
    """Takes what it knows and nothing else; `BertForSequenceClassification` itself swallows an `index`."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return super().forward(input_ids, attention_mask, labels=labels)


def test_ids_reach_the_loss_and_nothing_else(news: Any, tmp_path: Path) -> None:
    criterion = Spy()
    trainer = train(
        criterion, news[0], tmp_path, model=Strict(bert().config), eval_dataset=news[1], eval_strategy="epoch",
        compute_metrics=lambda p: {"acc": float((p.predictions.argmax(1) == p.label_ids).mean())},
    )  # fmt: skip
    assert criterion.met == dict(enumerate(news[0].labels.tolist()))
    assert criterion.visits.tolist() == [2] * N
    scores = trainer.evaluate()
    assert criterion.visits.tolist() == [2] * N  # evaluation leaves no trace in the loss
    plain = Trainer(trainer.model, arguments(tmp_path), eval_dataset=news[1])
    assert scores["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])  # the model's own cross-entropy
    assert 0 <= scores["eval_acc"] <= 1
    indexed = with_index(news[1])
    assert trainer.evaluate(indexed)["eval_loss"] == pytest.approx(scores["eval_loss"])
    nameless = [{k: v for k, v in item.items() if k != "labels"} for item in (indexed[i] for i in range(5))]
    assert trainer.predict(nameless).predictions.shape == (5, 4)


def test_it_learns_the_headlines(news: Any, tmp_path: Path) -> None:
    trainer = train(ELRLoss(N, 4), news[0], tmp_path, num_train_epochs=15, logging_strategy="epoch")
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_equals_a_loop_of_ones_own(name: str, news: Any, data_dir: Path, tmp_path: Path) -> None:
    got = run(name, 0, data_dir, tmp_path, lr_scheduler_type="constant", max_grad_norm=0)
    torch.manual_seed(0)
    criterion, model = REMEMBERING[name](N, 4), bert()
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3), *errors_of(criterion)]
    model.train()
    for _ in range(2):
        for rows in torch.arange(N).split(16):
            batch = default_data_collator([{k: v for k, v in news[0][i].items() if k != "source"} for i in rows])
            labels = batch.pop("labels")
            criterion(model(**batch).logits, labels, rows).backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
    same(dict(model.state_dict()), got["net"], atol=1e-5, rtol=1e-4)
    same(dict(criterion.state_dict()), got["state"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(REMEMBERING))
def test_resumed_equals_uninterrupted(name: str, news: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = train(REMEMBERING[name](N, 4), news[0], tmp_path / "a", save_strategy="steps", save_steps=5)
    torch.manual_seed(99)
    again = train(REMEMBERING[name](N, 4), news[0], tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-10"))
    same(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    same(dict(whole.criterion.state_dict()), dict(again.criterion.state_dict()))
    (tmp_path / "a" / "checkpoint-5" / "criterion.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-5/criterion.pt is missing.*without save_only_model"):
        train(REMEMBERING[name](N, 4), news[0], tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-5"))


def test_accumulated_batches_are_one_large_batch(news: Any, tmp_path: Path) -> None:
    def net(size: int, every: int) -> Any:
        same_step = {"per_device_train_batch_size": size, "gradient_accumulation_steps": every}
        torch.manual_seed(0)
        return train(BoldSOP(N, 4), news[0], tmp_path, optim="sgd", max_steps=6, seed=1, **same_step)

    one, four = net(32, 1), net(8, 4)
    same(dict(one.criterion.state_dict()), dict(four.criterion.state_dict()), atol=1e-5, rtol=1e-4)
    same(dict(one.model.state_dict()), dict(four.model.state_dict()), atol=1e-5, rtol=1e-4)


def test_subsets_of_a_numbered_set_keep_their_ids(news: Any, tmp_path: Path) -> None:
    rows = list(range(N - 1, 60, -3))
    criterion = Spy()
    train(criterion, Subset(with_index(news[0]), rows), tmp_path, num_train_epochs=1)
    assert criterion.met == {i: int(news[0].labels[i]) for i in rows}


def test_datasets_of_the_datasets_library(news: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    columns = datasets.Dataset.from_list([news[0][i] for i in range(N)])
    criterion = Spy()
    train(criterion, columns, tmp_path)
    assert criterion.met == dict(enumerate(news[0].labels.tolist()))
    assert "index" not in columns.column_names
    rows = list(range(40, 100, 3))
    criterion = Spy()
    train(criterion, columns.add_column("index", list(range(N))).select(rows), tmp_path)
    assert criterion.met == {i: int(news[0].labels[i]) for i in rows}


def test_trainers_of_ones_own_mix_in(news: Any, tmp_path: Path) -> None:
    class Mine(Trainer):
        def log(self, logs: dict[str, float], *args: Any) -> None:
            super().log({**logs, "mine": 1.0}, *args)

    class Both(NoisyLabelTrainer, Mine):
        pass

    trainer = Both(bert(), arguments(tmp_path, max_steps=2), train_dataset=news[0], criterion=Spy())
    trainer.train()
    assert trainer.state.log_history[-1]["mine"] == 1.0


def test_losses_without_ids(news: Any, tmp_path: Path) -> None:
    trainer = train(nn.CrossEntropyLoss(), news[0], tmp_path, max_steps=2)
    assert trainer.state.global_step == 2


class Stream(IterableDataset[Any]):
    def __init__(self, items: Any, numbered: bool) -> None:
        self.items, self.numbered = items, numbered

    def __iter__(self) -> Any:
        for i in range(len(self.items)):
            yield {**self.items[i], "index": i} if self.numbered else self.items[i]


def test_streams_number_themselves(news: Any, tmp_path: Path) -> None:
    criterion = Spy()
    train(criterion, Stream(news[0], numbered=True), tmp_path, max_steps=8)
    assert criterion.met == dict(enumerate(news[0].labels.tolist()))
    with pytest.raises(ValueError, match=r"Spy needs the id of each sample.*collator must keep the column 'index'"):
        train(Spy(), Stream(news[0], numbered=False), tmp_path, max_steps=1)


def test_wrong_uses_are_refused(news: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the training set has 128 samples.*num_samples=16: make it with"):
        train(Spy(16), news[0], tmp_path)

    def forgetful(items: list[dict[str, Any]]) -> Any:
        return default_data_collator([{k: v for k, v in item.items() if k != "index"} for item in items])

    with pytest.raises(ValueError, match=r"data collator must keep the column 'index'"):
        train(Spy(), news[0], tmp_path, data_collator=forgetful)
    nameless = [{k: v for k, v in news[0][i].items() if k != "labels"} for i in range(8)]
    with pytest.raises(ValueError, match=r"no 'labels', only .*'attention_mask'.*label_names"):
        train(Spy(), nameless, tmp_path)
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(ValueError, match=r"no fp16.*TrainingArguments\(bf16=True\)"):
        NoisyLabelTrainer(bert(), args, train_dataset=news[0], criterion=SOPLoss(N, 4))


def test_arguments_that_cannot_work(tmp_path: Path) -> None:
    def make(criterion: Any, errors: Any = None, **kwargs: Any) -> None:
        NoisyLabelTrainer(bert(), arguments(tmp_path, **kwargs), criterion=criterion, errors=errors)

    with pytest.raises(ValueError, match=r"criterion must be an instance .* ELRLoss\(\.\.\.\).*not the class ELRLoss"):
        make(ELRLoss)
    with pytest.raises(ValueError, match=r"criterion must be an instance .* lp\.losses\.ELRLoss\(\.\.\.\).*not 'elr'"):
        make("elr")
    with pytest.raises(ValueError, match=r"errors has an unknown key 'lru': did you mean 'lr_u'"):
        make(SOPLoss(N, 4), {"lru": 1})
    with pytest.raises(ValueError, match=r"errors has lr_u, but only a loss with learned rows"):
        make(ELRLoss(N, 4), {"lr_u": 1})
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 .*in evaluation only.*leave it 0"):
        make(ELRLoss(N, 4), label_smoothing_factor=0.1)


def test_a_loss_made_for_a_subset(news: Any, tmp_path: Path) -> None:
    spy = Spy(50)
    with pytest.raises(ValueError, match=rf"num_samples=50: make it with num_samples={N}"):
        train(spy, Subset(with_index(news[0]), range(50, 100)), tmp_path)
    assert not spy.met


def test_resumed_with_another_loss(news: Any, tmp_path: Path) -> None:
    train(ELRLoss(N, 4), news[0], tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=rf"criterion\.pt .*had num_samples={N}, this one has num_samples={N + 5}"):
        train(ELRLoss(N + 5, 4), news[0], tmp_path, resume=checkpoint)
    with pytest.raises(ValueError, match=rf"criterion\.pt .* of ELRLoss is \({N}, 4\) there and \({N}, 7\) here"):
        train(ELRLoss(N, 7), news[0], tmp_path, resume=checkpoint)
    with pytest.raises(
        ValueError, match=r"criterion\.pt .*another loss \(t\..*\) than SOPLoss \(u\.weight, v\.weight\)"
    ):
        train(SOPLoss(N, 4), news[0], tmp_path, resume=checkpoint)


def test_two_processes_agree_and_equal_one(data_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(REPO / "tests" / "integrations" / "news.py"), str(data_dir), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *worker], env=env, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in REMEMBERING:
        one = run(name, 0, data_dir, tmp_path)
        for rank in range(2):
            two = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)[name]
            same(one["state"], two["state"], atol=1e-5, rtol=1e-4)
            same(one["net"], two["net"], atol=1e-5, rtol=1e-4)
