"""Real headlines and a small transformer for them, without downloads; run as a script, one of two processes."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from labelproof.data.noise import inject
from labelproof.integrations.huggingface import NoisyLabelTrainer
from tests.integrations.losses import REMEMBERING

N, WORDS, LENGTH = 128, 512, 16


class News(Dataset[dict[str, Any]]):
    """Titles as hashed words, with labels of which 30 % are wrong; no ids, as people have it."""

    def __init__(self, data_dir: Path, rows: slice, rate: float = 0.3) -> None:
        table = pd.read_csv(data_dir / "ag_news" / "test.csv")[rows]
        codes = table["label"].astype("category").cat.codes.to_numpy("int64")
        self.labels = inject(codes, kind="symmetric", rate=rate, seed=0).labels if rate else codes
        self.words = [
            [1 + zlib.crc32(w.encode()) % (WORDS - 1) for w in t.lower().split()][:LENGTH] for t in table["title"]
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        words = self.words[i] + [0] * (LENGTH - len(self.words[i]))
        mask = [int(w > 0) for w in words]
        return {"input_ids": words, "attention_mask": mask, "labels": int(self.labels[i]), "source": i % 7}


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def arguments(out: Path, **kwargs: Any) -> TrainingArguments:
    common = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "learning_rate": 1e-3, "use_cpu": True}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    return TrainingArguments(output_dir=str(out), **{**common, **quiet, **kwargs})


class InOrder(NoisyLabelTrainer):
    """Does not shuffle: the same joint batches with any number of processes."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def run(name: str, seed: int, data_dir: Path, out: Path, **kwargs: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    criterion = REMEMBERING[name](N, 4)
    args = arguments(out, optim="sgd", **kwargs)
    t = InOrder(bert(), args, train_dataset=News(data_dir, slice(0, N)), criterion=criterion)
    t.train()
    return {"state": dict(criterion.state_dict()), "net": dict(t.model.state_dict())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    gloo = {"ddp_backend": "gloo", "per_device_train_batch_size": 8}
    torch.save({name: run(name, rank, data, folder, **gloo) for name in REMEMBERING}, folder / f"rank{rank}.pt")
