r"""Norms of each sample's own gradient, $\lVert \partial \ell_i / \partial \theta \rVert$, from one backward pass.

With a layer's input a (of one sample, T positions) and the gradient g of the sample's loss with respect to its output:

    Linear      $\lVert \sum_t g_t a_t^\top \rVert^2 = \sum_{t,s} \langle a_t, a_s \rangle \langle g_t, g_s \rangle$
    bias        $\lVert \sum_t g_t \rVert^2$
    Embedding   $\lVert \sum_t e_{v_t} g_t^\top \rVert^2 = \sum_{t,s} [v_t = v_s] \langle g_t, g_s \rangle$
    *Norm       $\lVert \sum_t g_t \odot \hat a_t \rVert^2$, with $\hat a$ the normalised input
    Conv        as Linear, with patches for a; or the weight's gradient of some samples at a time, as one convolution
                with these as its groups, where there are so many positions that this is less work

(T = 1: Goodfellow, "Efficient per-example gradient computations", 2015; the double sum: Li et al., "Large language
models can be strong differentially private learners", ICLR 2022.) What the backward pass needs anyway is used as soon
as it is there and dropped again, and the parameters' own gradients are never made: it takes no more memory than a plain
backward pass, and 0.8 to 1.4 times its time (`benchmarks/gradnorm.py`). Networks of other layers go through
`torch.func` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

#: Numbers that the gradients of some samples for one convolution's weight may fill: 5 MB, which a CPU's caches hold.
#: (Weights larger than that have few positions in the networks of practice, and take the other rule.)
_AT_ONCE = 1_250_000

Losses = Callable[[Tensor], Tensor]


def gradient_norms(network: nn.Module, x: Tensor, loss: Losses) -> tuple[Tensor, Tensor]:
    """Each sample's norm of the gradient with respect to all trainable parameters, and the outputs.

    Nothing is left behind: no gradient in any parameter, no graph. Dropout draws its masks as in any pass. Networks of
    the layers above cost a backward pass; others, and those that use a layer or its weights twice, several times that.

    Args:
        network: from `(B, ...)` inputs to outputs whose first dimension is B; it treats samples by themselves.
        x: `(B, ...)` inputs; B may be 0.
        loss: from the outputs to `(B,)` losses, each of one sample's output alone.

    Returns:
        `(B,)` fp32 norms and the detached outputs.

    Raises:
        ValueError: BatchNorm mixes the samples, or a layer cannot be differentiated per sample.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> gradient_norms(net, x, lambda out: 2 * out.sum(1))[0]
    tensor([10.,  0.])
    """
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise _refusal(network, f"{type(layer).__name__} mixes the samples of a batch", "GroupNorm, or ")
    x = x.detach()
    with torch.enable_grad():
        found = _from_layers(network, x, loss)
        if found is None:
            with torch.autocast(x.device.type, enabled=False):
                found = _by_vmap(network, x, loss)
    torch.clear_autocast_cache()
    return found[0].sqrt(), found[1]


def _refusal(network: nn.Module, reason: str, remedy: str) -> ValueError:
    return ValueError(
        f"{type(network).__name__}: gradients of single samples cannot be taken through this network ({reason}); "
        f"use {remedy}a method that looks at outputs alone, such as prl-l"
    )


def _from_layers(network: nn.Module, x: Tensor, loss: Losses) -> tuple[Tensor, Tensor] | None:
    """Squared norms by the rules above, or None where they do not cover the network."""
    layers = [m for m in network.modules() if _trainable(m)]
    if not all(map(_has_rule, layers)) or not _samples_first(network, layers, x):
        return None
    square = torch.zeros(len(x), device=x.device)
    first: list[Tensor] = []
    outs: dict[nn.Module, tuple[Any, Tensor, int]] = {}
    covered = [True]

    def seen(layer: nn.Module, a: Tensor, out: Tensor) -> None:
        covered[0] &= layer not in outs and out.requires_grad and len(a) == len(out) == len(x)
        if not covered[0]:
            return
        outs[layer] = out.grad_fn, out, out._version
        if not a.requires_grad:  # nothing before it is trained: the backward pass ends here
            first.append(min(_trainable(layer), key=Tensor.numel))
        held = [a.detach().float() if a.is_floating_point() else a]  # emptied on the way back, as memory should be

        def back(g: Tensor) -> None:
            square.add_(_RULES[type(layer)](layer, held.pop(), g.float()))

        out.register_hook(back)  # type: ignore[no-untyped-call]

    with _watched(layers, seen):
        out = network(x)
        each = loss(out)
    changed_views = any(out._is_view() and out._version != then for _, out, then in outs.values())  # lose their hooks
    ends = {node for node, _, _ in outs.values()}
    ways = {id(p): int(m in outs) for m in layers for p in _trainable(m)}
    outs.clear()  # or they would outlive the backward pass
    if not covered[0] or changed_views or not _used_by_layers(ways, each, ends):
        return None
    if first and len(x):
        with torch.autocast(x.device.type, enabled=False):  # the rules
            torch.autograd.grad(each.sum(), first, allow_unused=True)
    return square, out.detach()


@contextmanager
def _watched(layers: Sequence[nn.Module], seen: Callable[[nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `seen` with each layer, its input and its output, before other hooks, which may change the output."""

    def hook(layer: nn.Module, inputs: Sequence[Any], named: dict[str, Any], out: Tensor) -> None:
        seen(layer, inputs[0] if inputs else named["input"], out)

    hooks = [layer.register_forward_hook(hook, prepend=True, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _trainable(layer: nn.Module) -> list[Tensor]:
    return [p for p in layer.parameters(recurse=False) if p.requires_grad]


def _has_rule(layer: nn.Module) -> bool:
    """Whether the layer is of a known kind, and used as its rule takes it to be."""
    if type(layer) not in _RULES or not set(layer._parameters) <= {"weight", "bias"}:  # pruned, say
        return False
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(layer, "padding", 0), str)


def _samples_first(network: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether the first dimension of what the layers see is that of the samples: it is as long with fewer of them."""
    few = x[:2] if len(x) > 2 else x.repeat(2, *[1] * (x.ndim - 1))  # never 1, which some networks squeeze away
    lengths: list[int] = []

    def seen(_: nn.Module, a: Tensor, out: Tensor) -> None:
        lengths.extend((len(a), len(out)))

    with _watched(layers, seen), torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        network(few)
    torch.clear_autocast_cache()  # before torch 2.11 it hands weights cast without gradient to the next pass
    return all(length == len(few) for length in lengths)


def _used_by_layers(ways: dict[int, int], each: Tensor, ends: set[Any]) -> bool:
    """Whether the graph has no more ways into each parameter than told, however it is cast or turned on the way.

    Args:
        ways: 1 for the parameters (by `id`) of layers that were called, 0 for others.
        each: losses.
        ends: nodes at which the way out of a layer is at an end.
    """
    parents: dict[Any, list[Any]] = {each.grad_fn: []}
    todo = [each.grad_fn]
    while todo:
        node = todo.pop()
        for below, _ in node.next_functions if node is not None else ():
            if below is not None and below not in parents:
                todo.append(below)
            parents.setdefault(below, []).append(node)
    for leaf in [n for n in parents if id(getattr(n, "variable", None)) in ways]:
        node = leaf if ways[id(leaf.variable)] else None
        while node is not None and len(parents[node]) == 1:
            node = parents[node][0]
            if node in ends or len(node.next_functions) > 1:
                break
        else:
            return False
    return True


def _by_vmap(network: nn.Module, x: Tensor, loss: Losses) -> tuple[Tensor, Tensor]:
    """Squared norms from the gradients of some samples at a time, each with respect to all parameters."""
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def of_one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        one: Tensor = functional_call(network, weights, (sample.unsqueeze(0),))
        return one.squeeze(0)

    def square(sample: Tensor, g: Tensor) -> Tensor:
        gradients: dict[str, Tensor] = grad(lambda weights: (of_one(weights, sample) * g).sum())(trained)
        return torch.stack([each.float().square().sum() for each in gradients.values()]).sum()

    if len(x) == 0 or not trained:
        with torch.no_grad():
            return torch.zeros(len(x), device=x.device), network(x)
    how: dict[str, Any] = {"randomness": "different"}
    how["chunk_size"] = max(1, 40 * _AT_ONCE // sum(p.numel() for p in trained.values()))

    def tried(f: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        try:
            found: Tensor = vmap(f, **how)(*rows)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _refusal(network, str(error).strip().split("\n")[0], "") from error
        return found

    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():  # masks are drawn twice, alike
        out = tried(lambda sample: of_one(trained, sample), x)
    leaf = out.detach().requires_grad_()
    (by_output,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return tried(square, x, by_output), out


def _of_linear(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    a, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (a, g))
    square = torch.zeros(len(a), device=a.device)
    if layer.weight.requires_grad:
        if a.shape[1] == 1:
            square = a.square().sum((1, 2)) * g.square().sum((1, 2))
        elif a.shape[1] ** 2 < a.shape[2] * g.shape[2]:
            square = ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp(min=0)
        else:
            square = (g.mT @ a).square().sum((1, 2))
    return square + _of_bias(layer, g.sum(1))


def _of_bias(layer: Any, g: Tensor) -> Tensor:
    """`g`: `(B, O)`, summed over positions."""
    if layer.bias is None or not layer.bias.requires_grad:
        return torch.zeros(len(g), device=g.device)
    return g.square().sum(1)


def _of_conv(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    square = _of_bias(layer, g.flatten(2).sum(2))
    if not layer.weight.requires_grad:
        return square
    patch, outputs, positions = layer.weight[0].numel(), len(layer.weight), g[0, 0].numel()
    if a.ndim == 4 and layer.groups == 1 and positions * (patch + outputs) < patch * outputs:
        patches = nn.functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        g = g.flatten(2)
        return square + ((patches.mT @ patches) * (g.mT @ g)).sum((1, 2)).clamp(min=0)
    gradient: Any = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}[a.ndim - 2]
    parts = -(-len(a) // max(1, min(32, _AT_ONCE // layer.weight.numel()))) or 1
    shape, of_weight = layer.weight.shape, []
    for some_a, some_g in zip(a.tensor_split(parts), g.tensor_split(parts), strict=True):
        b = len(some_a)
        joined = [t.reshape(1, -1, *t.shape[2:]) for t in (some_a, some_g)]  # samples stand where groups are expected
        w = gradient(
            joined[0], (b * shape[0], *shape[1:]), joined[1],
            layer.stride, layer.padding, layer.dilation, b * layer.groups,
        )  # fmt: skip
        of_weight.append(w.reshape(b, -1).square().sum(1))
    return square + torch.cat(of_weight)


def _of_group_norm(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    normal = nn.functional.group_norm(a, layer.num_groups, eps=layer.eps)
    positions = tuple(range(2, a.ndim))
    by_weight, by_bias = ((g * normal).sum(positions), g.sum(positions)) if positions else (g * normal, g)
    return _of_scaled(layer, by_weight, by_bias)


def _of_layer_norm(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    shape = layer.normalized_shape
    normal = nn.functional.layer_norm(a, shape, eps=layer.eps)
    by_weight, by_bias = (t.reshape(len(t), -1, math.prod(shape)).sum(1) for t in (g * normal, g))
    return _of_scaled(layer, by_weight, by_bias)


def _of_scaled(layer: Any, by_weight: Tensor, by_bias: Tensor) -> Tensor:
    weight = by_weight.square().sum(1) if layer.weight.requires_grad else by_bias.new_zeros(len(by_bias))
    return weight + _of_bias(layer, by_bias)


def _of_embedding(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    token, g = a.reshape(len(a), -1), g.reshape(len(a), -1, g.shape[-1])
    if layer.padding_idx is not None:
        g = g * (token != layer.padding_idx).unsqueeze(2)
    return ((token.unsqueeze(1) == token.unsqueeze(2)) * (g @ g.mT)).sum((1, 2)).clamp(min=0)


_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Linear: _of_linear,
    nn.Conv1d: _of_conv,
    nn.Conv2d: _of_conv,
    nn.Conv3d: _of_conv,
    nn.GroupNorm: _of_group_norm,
    nn.LayerNorm: _of_layer_norm,
    nn.Embedding: _of_embedding,
}
