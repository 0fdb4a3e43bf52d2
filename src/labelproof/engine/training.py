"""`Training`: a run in progress. Networks, method, optimisers, per-sample record and clock, and their checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.schedule import parse_schedule
from labelproof.core.state import SampleParameter, SampleTable
from labelproof.core.types import Batch, Clock, Loss
from labelproof.data.seeds import generator
from labelproof.engine.compiling import compile_networks, eager, explained, uncompile
from labelproof.engine.guards import check_optimizers
from labelproof.engine.lars import LARS
from labelproof.engine.settings import Settings
from labelproof.functional.ranks import gather_rows, sum_over_ranks, world_size


class Step(nn.Module):
    """The whole loss as one module.

    Data-parallel and precision wrappers go around this and nothing else: two wrapped forward passes before one
    backward pass would break BatchNorm, and the method is free to call its networks as it likes.
    """

    def __init__(self, method: Method, nets: Nets) -> None:
        super().__init__()
        self.method, self.nets = method, nets

    def forward(self, batch: Batch, now: Clock) -> Loss:
        return self.method.loss(self.nets, batch, now)


class Training:
    """Implements `labelproof.core.method.Run`.

    Args:
        fabric: launched.
        method: set up.
        nets: its networks.
        settings: of the run.
        steps_per_epoch: batches per epoch.
    """

    def __init__(self, fabric: Fabric, method: Method, nets: Nets, settings: Settings, steps_per_epoch: int) -> None:
        self.fabric, self.method, self.nets, self.settings = fabric, method, nets, settings
        self.steps_per_epoch = steps_per_epoch
        self.factor = parse_schedule(settings.schedule)
        self.momentum_factor = parse_schedule(settings.momentum_schedule)
        if getattr(nets[0], "channels_last", False):
            nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
        self.module = Step(method, nets)
        self._exclude_per_sample_state()
        optimizers = method.optimizers(nets, self._make)
        check_optimizers(self.module, optimizers, settings.precision)
        self.step_module, *wrapped = fabric.setup(self.module, *optimizers.values())
        self.optimizers: dict[str, Any] = dict(zip(optimizers, wrapped, strict=True))
        if settings.compile:
            compile_networks(nets)
        self.due, self.group = True, 1
        self.now = self.clock(0, 0)

    def _exclude_per_sample_state(self) -> None:
        """Keep data-parallel wrappers off N rows of state: tables and parameters of samples synchronise themselves."""
        inside = [f"method.{k}" for k in self.method.state_dict(keep_vars=True)]
        learned = {f"method.{n}.weight" for n, m in self.method.named_modules() if isinstance(m, SampleParameter)}
        ours = [k for k in inside if k in learned or k not in dict(self.module.named_parameters())]
        ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
        ignore(self.module, ours)

    def _make(self, params: Iterable[Any]) -> Optimizer:
        s = self.settings
        lr, decay = float(s.lr or 0.0), float(s.weight_decay or 0.0)
        optimizer: Optimizer
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(params, lr, momentum=s.momentum, weight_decay=decay)
        elif s.optimizer == "lars":
            optimizer = LARS(params, lr, momentum=s.momentum, weight_decay=decay)
        else:
            optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer](
                params, lr, betas=(s.momentum, 0.999), weight_decay=decay
            )
        for group in optimizer.param_groups:
            group["initial_lr"] = lr  # marks the groups that follow the schedules
        return optimizer

    def clock(self, epoch: int, step: int) -> Clock:
        """The clock at a step, with the generator that belongs to it."""
        s = self.settings
        return Clock(
            epoch, s.epochs, step, self.steps_per_epoch, generator(s.seed, "method", epoch, step), s.accumulate
        )

    @property
    def lr(self) -> float:
        """The learning rate of the present step."""
        return float(self.settings.lr or 0.0) * self.factor(self.now)

    def run_batch(self, batch: Batch, epoch: int, step: int) -> Loss:
        """One batch: set the clock and what is scheduled, let the method update, move what follows the networks."""
        self.now = self.clock(epoch, step)
        every = self.settings.accumulate
        self.group = min(every, self.steps_per_epoch - step // every * every)  # the epoch's last group may be smaller
        self.due = (step + 1) % every == 0 or step + 1 == self.steps_per_epoch
        self._follow_schedules()
        with self._compiler(step):
            if world_size() == 1:
                loss = self.method.update(self, batch)
            else:
                with self.fabric.no_backward_sync(self.step_module, enabled=not self.due):
                    loss = self.method.update(self, batch)
        if self.due:
            self.method.after_step(self.nets, batch, self.now)
        return loss

    def _compiler(self, step: int) -> AbstractContextManager[Any]:
        if not self.settings.compile:
            return nullcontext()
        return eager(self.nets) if 0 < step == self.steps_per_epoch - 1 else explained()

    def plain_nets(self) -> Nets:
        """The networks in evaluation mode, no longer compiled."""
        return uncompile(self.nets).eval()

    def _follow_schedules(self) -> None:
        factor, changing = self.factor(self.now), self.settings.momentum_schedule != "constant"
        momentum = self.settings.momentum * self.momentum_factor(self.now) if changing else 0.0
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                if "initial_lr" not in group:  # a method's own, such as SOP's u and v
                    continue
                group["lr"] = group["initial_lr"] * factor
                if changing and "betas" in group:
                    group["betas"] = (momentum, group["betas"][1])
                elif changing:
                    group["momentum"] = momentum

    def forward(self, batch: Batch) -> Loss:
        loss: Loss = self.step_module(batch, self.now)
        return loss

    def backward(self, value: Tensor) -> None:
        self.fabric.backward(value / self.group if self.group > 1 else value)

    def step(self, *names: str) -> None:
        if not self.due:
            return
        stepped = [self.optimizers[name] for name in names or self.optimizers]
        if self.settings.clip is not None:
            for optimizer in stepped:
                self.fabric.strategy.precision.unscale_gradients(optimizer.optimizer)
                mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
                for net in self.nets:  # each on its own: one network's burst must not shrink the other's step
                    nn.utils.clip_grad_norm_([p for p in net.parameters() if id(p) in mine], self.settings.clip)
        for optimizer in stepped:
            optimizer.step()
            optimizer.zero_grad()

    def weights(self) -> dict[str, Tensor]:
        """What predictions are made with: networks and whatever copies of them the method holds, no rows of samples."""
        rows = (SampleTable, SampleParameter)
        kept = tuple(f"method.{name}." for name, m in self.method.named_modules() if isinstance(m, rows))
        return {name: value for name, value in self.module.state_dict().items() if not name.startswith(kept)}

    def share_buffers(self) -> None:
        """Average BatchNorm's running statistics over ranks, each of which has seen its part of the batches."""
        if world_size() > 1:
            for buffer in self.nets.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(sum_over_ranks(buffer) / world_size())

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on. A collective call: every rank must make it."""
        cuda = self.fabric.device.type == "cuda"
        return {
            "step": self.module.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "torch_rng": gather_rows(torch.get_rng_state()[None].to(self.fabric.device)).cpu(),
            "cuda_rng": gather_rows(torch.cuda.get_rng_state()[None].to(self.fabric.device)).cpu() if cuda else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`, on the same number of ranks."""
        self.module.load_state_dict(state["step"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        rank = self.fabric.global_rank
        if len(state["torch_rng"]) != world_size():
            raise ValueError(f"cannot resume on {world_size()} processes a run of {len(state['torch_rng'])}")
        torch.set_rng_state(state["torch_rng"][rank].clone())  # a view of a row would be read past its end
        if state["cuda_rng"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"][rank].clone())


@torch.no_grad()
def scan(
    nets: Nets, f: Callable[[Batch], Tensor], feed: Any, batch_size: int, rows: NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor]:
    """`f` over samples of a feed in evaluation mode, on every rank.

    Args:
        nets: switched to evaluation mode meanwhile.
        f: from a batch to `(B, ...)`.
        feed: where the samples come from.
        batch_size: samples per call of `f`.
        rows: which samples; all if `None`.

    Returns:
        `(n,)` ids and `(n, ...)` outputs, in the order of the feed's rows.
    """
    was = nets.training
    nets.eval()
    with eager(nets):
        index, out = zip(*[(b.index, f(b)) for b in feed.ordered(batch_size, rows)], strict=True)
    nets.train(was)
    ids, values = torch.cat(index), torch.cat(out)
    if world_size() == 1:
        return ids, values
    n, world = len(feed.rows if rows is None else rows), world_size()
    size = -(-n // world)  # ranks differ by at most one row: pad to the longest, gather, drop the padding
    pad = size - len(ids)
    ids, values = (gather_rows(torch.cat([t, t[-1:].expand(pad, *t.shape[1:])])) for t in (ids, values))
    real = torch.cat([torch.arange(size) < len(part) for part in torch.arange(n).tensor_split(world)])
    return ids[real.to(ids.device)], values[real.to(values.device)]
