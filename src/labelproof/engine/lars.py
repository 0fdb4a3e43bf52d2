"""LARS, layer-wise adaptive rates for large batches, as SimCLR pre-training uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class LARS(Optimizer):
    r"""SGD with momentum whose step is proportional to the norm of each weight tensor.

    You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017, in the variant of Chen et al.
    (SimCLR, ICML 2020, appendix B.1). For each tensor w of two or more dimensions with gradient g, per step:

    (1) $d = g + \beta w$;
    (2) $\lambda = \eta \lVert w \rVert / \lVert d \rVert$, 1 where either norm is 0;
    (3) $v \leftarrow m v + \gamma \lambda d$, from v = 0;
    (4) $w \leftarrow w - v$.

    Biases and the parameters of norms (tensors of fewer than two dimensions) have $d = g$ and $\lambda = 1$.

    The momentum holds the rate at which each gradient came, so a schedule of the rate does not rescale the past.
    Deviation from the paper: it has $\lVert g \rVert + \beta \lVert w \rVert$ under the fraction in (2).

    Args:
        params: tensors or groups of them.
        lr: global rate $\gamma$, non-negative.
        momentum: m, in [0, 1).
        weight_decay: $\beta$, non-negative.
        trust: $\eta$, positive.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> w.sum().backward()
        >>> LARS([w], lr=1.0, weight_decay=0.0, trust=0.1).step()
        >>> w.data  # moved by a tenth of its length, 5
        tensor([[2.6464, 3.6464]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
    ) -> None:
        for name, value, good, allowed in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1"),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            ("trust", trust, trust > 0, "above 0"),
        ):
            if not good:
                raise ValueError(f"{name}={value} must be {allowed}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients at hand; parameters without one stay. Never waits for the device.

        Args:
            closure: computes the loss and its gradients anew; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            self._move([p for p in held if p.ndim > 1], group, adapt=True)
            self._move([p for p in held if p.ndim <= 1], group, adapt=False)
        return loss

    def _move(self, params: list[Tensor], group: dict[str, Any], *, adapt: bool) -> None:
        if not params:
            return
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        velocity = [self.state[p]["momentum_buffer"] for p in params]
        change: Any = [p.grad for p in params]
        if adapt:
            change = torch._foreach_add(change, params, alpha=group["weight_decay"])
            torch._foreach_mul_(change, _ratios(params, change, group["trust"]))
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, change, alpha=group["lr"])
        torch._foreach_sub_(params, velocity)


def _ratios(params: list[Tensor], change: list[Tensor], trust: float) -> tuple[Tensor, ...]:
    """Local rate of each tensor, scalars on the device."""
    above, below = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, change))
    return torch.where((above > 0) & (below > 0), trust * above / below, 1.0).unbind()
