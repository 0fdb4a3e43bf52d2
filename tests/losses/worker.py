"""A user's own loop on each process of a gloo group: a DDP-wrapped model and a loss that remembers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labelproof.losses import ELRLoss, SmallLoss, SOPLoss
from tests.toy import mlp

N, K, B = 48, 3, 16
CASES: dict[str, Any] = {
    "elr": lambda: ELRLoss(N, K),
    "elr topk": lambda: ELRLoss(N, K, memory="topk:2"),
    "sop": lambda: SOPLoss(N, K),
    "small": lambda: SmallLoss(noise_rate=0.3),
}


def train(name: str, rank: int, world: int) -> dict[str, Tensor]:
    """Three epochs of joint batches of 16, of which each rank has its part."""
    torch.manual_seed(0)
    data = torch.Generator().manual_seed(1)
    x, y = torch.randn(N, 8, generator=data), torch.randint(0, K, (N,), generator=data)
    model = mlp(8, K)
    torch.manual_seed(rank)  # as in life: u and v are drawn differently on each rank
    criterion = CASES[name]()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizers = [torch.optim.SGD(model.parameters(), 0.2)]
    if name == "sop":
        optimizers.append(criterion.optimizer(lr_u=5.0, lr_v=5.0))
    for _ in range(3):
        for joint in torch.randperm(N, generator=data).split(B):
            rows = joint.chunk(world)[rank]
            for optimizer in optimizers:
                optimizer.zero_grad()
            criterion(wrapped(x[rows]), y[rows], rows).backward()
            for optimizer in optimizers:
                optimizer.step()
    return {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"criterion.{k}": v for k, v in criterion.state_dict().items()
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.save({name: train(name, rank, world) for name in CASES}, out / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
