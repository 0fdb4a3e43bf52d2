"""NT-Xent on two processes, wrapped by DDP, gives the loss and the gradients of one with the joint batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from labelproof.functional.contrast import nt_xent
from labelproof.functional.ranks import gather_rows_with_gradient
from tests.toy import mlp

REPO = Path(__file__).resolve().parents[2]
B = 12


def train(rank: int, world: int) -> dict[str, Tensor]:
    """Loss, gradients of the first step, and weights after three, in float64."""
    torch.manual_seed(0)
    model = mlp(8, 5).double()
    views = torch.randn(3, 2, B, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    seen: dict[str, Tensor] = {}
    for step, both in enumerate(views):
        mine = both.chunk(world, 1)[rank]
        optimizer.zero_grad()
        z1, z2 = wrapped(mine.flatten(0, 1)).chunk(2)
        loss = nt_xent(z1, z2, 0.2)
        loss.backward()
        seen[f"loss {step}"] = loss.detach()
        if step == 0:
            seen |= {
                f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
            }
        optimizer.step()
    return seen | {f"weights of {name}": p.detach() for name, p in model.named_parameters()}


def gathered(rank: int, world: int) -> dict[str, Tensor]:
    """Each rank weighs the rows of all: rows (0, 1), (2, 3), weights rank + 1 times the row's place."""
    rows = torch.arange(2.0 * rank, 2.0 * rank + 2).requires_grad_()
    every = gather_rows_with_gradient(rows)
    ((rank + 1) * every * torch.arange(2.0 * world)).sum().backward()
    assert rows.grad is not None
    return {"rows": every.detach(), "gradient": rows.grad}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.save({"train": train(rank, world), "gathered": gathered(rank, world)}, out / f"rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, __file__, str(tmp_path)], env=env, cwd=REPO, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    one = train(0, 1)
    for name, want in one.items():
        got = [r["train"][name] for r in ranks]
        # losses are each rank's mean over its own anchors
        values = [sum(got) / 2] if name.startswith("loss") else got
        for value in values:
            torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert ranks[0]["train"]["loss 0"] != ranks[1]["train"]["loss 0"]
    for rank, r in enumerate(ranks):
        assert r["gathered"]["rows"].tolist() == [0, 1, 2, 3]
        places = torch.arange(2.0 * rank, 2.0 * rank + 2)
        assert torch.equal(r["gathered"]["gradient"], 3 * places), "what both ranks make of it, 1 + 2 times its place"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
