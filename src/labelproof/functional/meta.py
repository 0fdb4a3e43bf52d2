r"""How weights of samples change a loss on other samples, one gradient step later.

With $\theta' = \theta - \alpha \sum_i c_i(v) \nabla \ell_i(\theta)$ and $M(\theta')$ measured elsewhere, the chain rule
leaves one derivative per sample, along one direction: $\partial M / \partial c_i = -\alpha \langle \nabla M(\theta'),
\nabla \ell_i(\theta) \rangle$. All of them are one forward-mode pass over the batch. Differentiating the step itself
(double backward) gives the same numbers; for convolutions on a CPU it takes many times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

#: How weighted losses become one: divided by their number, not at all, or by the sum of the weights.
Reduction = Literal["mean", "sum", "normalised"]


def shares(weight: Tensor, reduction: Reduction) -> Tensor:
    """What each sample's loss is multiplied with before they are added up.

    Args:
        weight: `(B,)` v, non-negative.
        reduction: `"mean"`: v / B; `"sum"`: v; `"normalised"`: v / sum of v, and 0 if all are 0.

    Returns:
        `(B,)`, differentiable in the weights.

    >>> v = torch.tensor([1.0, 0.5, 0.5, 0.0])
    >>> [shares(v, r).tolist() for r in ("mean", "sum", "normalised")]
    [[0.25, 0.125, 0.125, 0.0], [1.0, 0.5, 0.5, 0.0], [0.5, 0.25, 0.25, 0.0]]
    """
    if reduction == "sum":
        return weight
    if reduction == "mean":
        return weight / len(weight)
    total = weight.sum()
    return weight / torch.where(total > 0, total, torch.ones_like(total))


def meta_gradient(
    each: Tensor,
    weight: Tensor,
    params: Mapping[str, Tensor],
    *,
    rate: float,
    reduction: Reduction,
    meta_loss: Callable[[dict[str, Tensor]], Tensor],
    losses: Callable[[dict[str, Tensor]], Tensor],
) -> tuple[Tensor, Tensor]:
    """The meta loss after one step of gradient descent, and its gradient in the weights of the samples.

    The graph of `each` is kept, for the real step.

    Args:
        each: `(B,)` losses, with a graph that reaches `params`.
        weight: `(B,)` v.
        params: what takes the step, by name.
        rate: alpha, its learning rate.
        reduction: of the weighted losses, see `shares`.
        meta_loss: from stepped parameters to the scalar M.
        losses: from parameters to `each` once more, called in forward mode.

    Returns:
        M, and dM/dv `(B,)`, without gradients.
    """
    free = weight.detach().requires_grad_()
    share = shares(free, reduction)
    start = list(params.values())
    down = torch.autograd.grad((share.detach() * each).sum(), start, retain_graph=True, materialize_grads=True)
    moved = torch._foreach_add([p.detach() for p in start], down, alpha=-rate)
    stepped = {name: p.requires_grad_() for name, p in zip(params, moved, strict=True)}
    meta = meta_loss(stepped)
    uphill = torch.autograd.grad(meta, moved, materialize_grads=True)
    (gradient,) = torch.autograd.grad(share, free, -rate * derivative(losses, params, uphill))
    return meta.detach(), gradient


def derivative(f: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor], along: Sequence[Tensor]) -> Tensor:
    """The derivative of `f` along one direction, in forward mode.

    Args:
        f: from parameters by name to a tensor.
        at: the parameters.
        along: the direction, in the same order.

    >>> w = {"w": torch.tensor([1.0, 2.0])}
    >>> derivative(lambda p: p["w"] ** 2, w, [torch.tensor([1.0, 10.0])])
    tensor([ 2., 40.])
    """
    with torch.no_grad(), forward_ad.dual_level():
        dual = {name: _dual(p.detach(), d) for (name, p), d in zip(at.items(), along, strict=True)}
        out = f(dual)
        tangent = _parts(out)[1]
        return torch.zeros_like(out) if tangent is None else tangent.clone()


class Tape:
    """Remembers what the costly layers of a forward pass came to, so that its derivative need not compute it again.

    Convolutions, linear layers, BatchNorm that normalises by the batch, ReLU and max-pooling are remembered. Everything
    else is computed once more, with the random numbers of the first time. If the network has overwritten a remembered
    tensor in place, all is computed once more.

    Args:
        device: the one the pass runs on.

    >>> x, net = torch.ones(1, 2), torch.nn.Linear(2, 1, bias=False)
    >>> tape = Tape(x.device)
    >>> with tape.recording():
    ...     out = net(x)
    >>> with tape.replaying():
    ...     d = derivative(lambda p: torch.func.functional_call(net, p, (x,)), {"weight": net.weight}, [2 * x])
    >>> d
    tensor([[4.]])
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: list[tuple[Tensor, ...]] = []
        self.versions: list[int] = []
        self.random: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """For the forward pass itself."""
        cuda = self.device.type == "cuda"
        self.random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if cuda else [])]
        with _Recorder(self.kept, self.versions):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """For the same pass again, in forward mode, with the same inputs."""
        whole = all(kept[0]._version == version for kept, version in zip(self.kept, self.versions, strict=True))
        with torch.random.fork_rng(devices=[self.device] if len(self.random) > 1 else []):
            torch.set_rng_state(self.random[0])
            if len(self.random) > 1:
                torch.cuda.set_rng_state(self.random[1], self.device)
            with _Replayer(self.kept) if whole else nullcontext():
                yield


#: Linear in the input and in the weight each; called with input, weight, bias and options of the shape.
_PRODUCTS = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)
_RELUS = (F.relu, torch.relu, Tensor.relu)


class _Recorder(TorchFunctionMode):
    """Runs functions as they are, and keeps outputs."""

    def __init__(self, kept: list[tuple[Tensor, ...]], versions: list[int]) -> None:
        super().__init__()
        self.kept, self.versions = kept, versions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and (call := _batch_norm(*args, **kwargs))["training"]:
            x, stats = call["x"], (call["running_mean"], call["running_var"])
            out, *known = torch.native_batch_norm(
                x, call["weight"], call["bias"], *stats, True, call["momentum"], call["eps"]
            )
        elif func is F.max_pool2d and _one_output(*args, **kwargs):
            out, *known = func(*args, **{**kwargs, "return_indices": True})
        elif func in _PRODUCTS or func in _RELUS:
            out, known = func(*args, **kwargs), []
        else:
            return func(*args, **kwargs)
        self.kept.append((out.detach(), *known))
        self.versions.append(out._version)
        return out


class _Replayer(TorchFunctionMode):
    """Gives functions their kept outputs back, and computes the derivatives alone."""

    def __init__(self, kept: list[tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.kept = iter(kept)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            return self._dual(_product(func, *args, **kwargs))
        if func in _RELUS:
            slope = _parts(args[0])[1]
            return self._dual(lambda out: None if slope is None else torch.ops.aten.threshold_backward(slope, out, 0))
        if func is F.batch_norm and (call := _batch_norm(*args, **kwargs))["training"]:
            return self._dual(_normalised(**call))
        if func is F.max_pool2d and _one_output(*args, **kwargs):
            return self._dual(_pooled(args[0]))
        return func(*args, **kwargs)

    def _dual(self, derivative_of: Callable[..., Tensor | None]) -> Tensor:
        out, *known = next(self.kept)
        d = derivative_of(out, *known)
        return out if d is None else _dual(out, d)


def _dual(value: Tensor, derivative: Tensor) -> Tensor:
    """A value that carries its derivative."""
    dual: Tensor = forward_ad.make_dual(value, derivative)  # type: ignore[no-untyped-call]
    return dual


def _parts(t: Tensor | None) -> tuple[Any, Tensor | None]:
    """A value and its derivative, `None` for 0."""
    return (None, None) if t is None else tuple(forward_ad.unpack_dual(t))  # type: ignore[no-untyped-call]


def _product(
    func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *shape: Any, **named: Any
) -> Callable[[Tensor], Tensor | None]:
    r"""$(w * x + b)\dot{} = \dot w * x + \dot b + w * \dot x$."""
    (x, dx), (w, dw), (_, db) = _parts(input), _parts(weight), _parts(bias)

    def d(out: Tensor) -> Tensor | None:
        inner = None if dw is None else func(x, dw, db, *shape, **named)
        if dx is None:
            return inner
        outer: Tensor = func(dx, w, None, *shape, **named)
        return outer if inner is None else outer.add_(inner)

    return d


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    """The arguments of `F.batch_norm` by name."""
    stats = {"running_mean": running_mean, "running_var": running_var}
    return {"x": input, "weight": weight, "bias": bias, "training": training, "momentum": momentum, "eps": eps, **stats}


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **_: Any) -> Any:
    r"""Of $\gamma \hat x + \beta$: per channel, a multiple of x and one of its derivative, and a constant."""
    (x, dx), (w, dw), (_b, db) = _parts(x), _parts(weight), _parts(bias)

    def d(out: Tensor, mean: Tensor, inverse: Tensor) -> Tensor | None:
        shape, n = [1, -1] + [1] * (out.ndim - 2), out.numel() / out.shape[1]
        slope = torch.zeros_like(inverse) if dw is None else dw * inverse
        shift = torch.zeros_like(inverse) if db is None else db
        if dx is None:
            return torch.addcmul((shift - slope * mean).view(shape), x, slope.view(shape))
        known = (x, w, None, None, mean, inverse, True, eps, [False, True, True])
        _, along, total = torch.ops.aten.native_batch_norm_backward(dx, *known)  # sums of dx * x-hat, and of dx
        scale = inverse if w is None else w * inverse
        slope = slope - scale * inverse * along / n
        shift = shift - scale * total / n - slope * mean
        d: Tensor = torch.addcmul(shift.view(shape), dx, scale.view(shape)).addcmul_(x, slope.view(shape))
        return d

    return d


def _one_output(input: Tensor, *how: Any, return_indices: bool = False, **named: Any) -> bool:
    """Whether max-pooling is asked for values alone, and all but the size of its window by name or not at all."""
    return not return_indices and len(how) == 1


def _pooled(input: Tensor) -> Callable[[Tensor, Tensor], Tensor | None]:
    """The derivatives of the largest."""
    dx = _parts(input)[1]

    def d(out: Tensor, index: Tensor) -> Tensor | None:
        if dx is None or not dx.is_contiguous(memory_format=torch.channels_last):
            return None if dx is None else dx.flatten(-2).gather(-1, index.flatten(-2)).view_as(out)
        planes, at = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (dx, index))  # as it lies in memory
        rows: Tensor = planes.gather(1, at).view(out.permute(0, 2, 3, 1).shape)
        return rows.permute(0, 3, 1, 2)

    return d
