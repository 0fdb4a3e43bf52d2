"""Networks of all kinds of layers, and the norms of their gradients sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from labelproof.functional.gradnorm import gradient_norms

B, K = 5, 3
Make = Callable[[], nn.Module]


class Net(nn.Module):
    """Named parts and a function that joins them."""

    def __init__(self, join: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


class Prompt(nn.Module):
    """A parameter that no layer of torch's holds."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.shift


class Language(nn.Module):
    """A token embedding whose weights are those of the last layer too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(K, 6), nn.Linear(6, 6), nn.Linear(6, K)
        if tied:
            self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.hidden(self.embed(x).mean(1)).tanh())
        return out


def sums(*layers: nn.Module) -> nn.Module:
    """Layers, then the mean over positions of `(B, T, K)`."""
    return Net(lambda s, x: s.body(x).mean(1), body=nn.Sequential(*layers))


def conv(d: int, *, after: nn.Module | None = None, **how: Any) -> Make:
    """Two convolutions over d dimensions; `how` is of the second."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    out, size = how.pop("out", 6), {1: 11, 2: 9, 3: 6}[d]

    def make() -> nn.Module:
        body = [kind(2, 4, 3, padding=1), nn.Tanh(), kind(4, out, how.get("kernel", 3), **options), nn.Tanh()]
        flat = nn.Sequential(*body, *([deepcopy(after)] if after else []), nn.Flatten())
        return nn.Sequential(flat, nn.Linear(flat(torch.zeros(1, 2, *[size] * d)).shape[1], K))

    options = {name: value for name, value in how.items() if name != "kernel"}
    return make


def rows(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def images(d: int) -> Callable[[int], Tensor]:
    return rows(2, *[{1: 11, 2: 9, 3: 6}[d]] * d)


def tokens(t: int, kinds: int = K) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, kinds, (n, t))


def frozen(net: nn.Module, *names: str) -> nn.Module:
    for name, parameter in net.named_parameters():
        if any(name.startswith(part) for part in names):
            parameter.requires_grad_(False)
    return net


def text(**how: Any) -> Make:
    def make() -> nn.Module:
        net = Net(lambda s, x: s.head(s.embed(x).tanh().mean(1)), embed=nn.Embedding(7, 6, **how), head=nn.Linear(6, K))
        if "padding_idx" in how:
            nn.init.normal_(net.embed.weight)  # so that the padding says something, and its row is still not trained
        return net

    return make


def deep(*middle: nn.Module, width: int = 8) -> Make:
    return lambda: nn.Sequential(nn.Linear(4, width), *deepcopy(middle), nn.Linear(width, K))


def sequence(*middle: nn.Module) -> Make:
    return lambda: sums(nn.Linear(4, 8), *deepcopy(middle), nn.Linear(8, K))


def shared() -> nn.Module:
    return Net(lambda s, x: s.head(s.twice(s.twice(x).tanh()).tanh()), twice=nn.Linear(4, 4), head=nn.Linear(4, K))


def residual() -> nn.Module:
    def join(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        out: Tensor = s.head(h + s.b(h.relu()) * s.c(x))
        return out

    return Net(join, a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(4, 6), head=nn.Linear(6, K))


def weird_backbone(how: str) -> Make:
    def join(s: Any, x: Tensor) -> Tensor:
        h = s.body(x)
        out: Tensor = s.head(h.detach() if how == "detached" else h)
        return out

    def make() -> nn.Module:
        net = Net(join, body=nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6)), head=nn.Linear(6, K))
        return frozen(net, "body") if how == "frozen" else net

    return make


#: By the rules: name -> network, inputs.
RULES: dict[str, tuple[Make, Callable[[int], Tensor]]] = {
    "one linear": (lambda: nn.Linear(4, K), rows(4)),
    "mlp": (deep(nn.ReLU()), rows(4)),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, K, bias=False)), rows(4)),
    "frozen weight": (lambda: frozen(deep(nn.Tanh())(), "0.weight", "2.weight"), rows(4)),
    "frozen bias": (lambda: frozen(deep(nn.Tanh())(), "0.bias", "2.bias"), rows(4)),
    "frozen first layer": (lambda: frozen(deep(nn.Tanh())(), "0"), rows(4)),
    "frozen last layer": (lambda: frozen(deep(nn.Tanh())(), "2"), rows(4)),
    "frozen middle": (lambda: frozen(deep(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())(), "2"), rows(4)),
    "frozen backbone": (weird_backbone("frozen"), rows(4)),
    "detached backbone": (weird_backbone("detached"), rows(4)),
    "few positions": (sequence(nn.Tanh()), rows(3, 4)),
    "many positions": (sequence(nn.Tanh()), rows(40, 4)),
    "positions in two dimensions": (
        lambda: Net(lambda s, x: s.b(s.a(x).tanh()).mean((1, 2)), a=nn.Linear(4, 8), b=nn.Linear(8, K)), rows(3, 2, 4)
    ),
    "conv1d": (conv(1), images(1)),
    "conv2d": (conv(2), images(2)),
    "conv3d": (conv(3), images(3)),
    "conv1d, stride, padding, dilation": (conv(1, stride=2, padding=3, dilation=2), images(1)),
    "conv2d, stride and padding": (conv(2, stride=2, padding=1), images(2)),
    "conv2d, a stride that leaves columns over": (conv(2, stride=4, kernel=2), images(2)),
    "conv2d, all different": (
        conv(2, kernel=(3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2), images(2)
    ),
    "conv2d, depthwise": (conv(2, groups=4, out=8), images(2)),
    "conv3d, groups and dilation": (conv(3, groups=2, dilation=(1, 2, 1)), images(3)),
    "conv2d, no bias": (conv(2, bias=False), images(2)),
    "conv2d, 1x1": (conv(2, kernel=1), images(2)),
    "conv2d, frozen weight": (lambda: frozen(conv(2)(), "0.0.weight"), images(2)),
    "conv2d, frozen bias": (lambda: frozen(conv(2)(), "0.0.bias", "0.2.bias"), images(2)),
    "in-place ReLU after a convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(196, K)), images(2)
    ),
    "in-place ReLU after a linear layer": (deep(nn.ReLU(inplace=True)), rows(4)),
    "GroupNorm of rows": (deep(nn.GroupNorm(2, 8), nn.Tanh()), rows(4)),
    "GroupNorm of images": (conv(2, after=nn.GroupNorm(3, 6)), images(2)),
    "GroupNorm of sequences": (conv(1, after=nn.GroupNorm(2, 6)), images(1)),
    "GroupNorm first": (lambda: nn.Sequential(nn.GroupNorm(1, 4), nn.Linear(4, K)), rows(4)),
    "GroupNorm, affine=False": (deep(nn.GroupNorm(2, 8, affine=False)), rows(4)),
    "GroupNorm, frozen bias": (lambda: frozen(deep(nn.GroupNorm(2, 8, eps=0.3))(), "1.bias"), rows(4)),
    "GroupNorm, frozen weight": (lambda: frozen(deep(nn.GroupNorm(2, 8))(), "1.weight"), rows(4)),
    "LayerNorm": (deep(nn.LayerNorm(8), nn.Tanh()), rows(4)),
    "LayerNorm of sequences": (sequence(nn.LayerNorm(8, eps=0.1)), rows(7, 4)),
    "LayerNorm over two dimensions": (sequence(nn.LayerNorm((7, 8))), rows(7, 4)),
    "LayerNorm, no affine": (deep(nn.LayerNorm(8, elementwise_affine=False)), rows(4)),
    "LayerNorm, no bias": (deep(nn.LayerNorm(8, bias=False)), rows(4)),
    "Embedding, repeated tokens": (text(), tokens(12, 7)),
    "Embedding, one token each": (
        lambda: nn.Sequential(nn.Embedding(7, 6), nn.Tanh(), nn.Linear(6, K)), lambda n: torch.arange(n) % 7
    ),
    "Embedding, padding": (text(padding_idx=0), tokens(12, 3)),
    "Embedding, padding from the end": (text(padding_idx=-1), tokens(12, 7)),
    "Embedding, frozen": (lambda: frozen(text()(), "embed"), tokens(12, 7)),
    "text": (lambda: Language(tied=False), tokens(4)),
    "an unused layer": (
        lambda: Net(lambda s, x: s.head(x), head=nn.Linear(4, K), unused=nn.Linear(4, 9)), rows(4)
    ),
    "residual and branches": (residual, rows(4)),
}  # fmt: skip

#: Through `torch.func`.
OTHERS: dict[str, tuple[Make, Callable[[int], Tensor]]] = {
    "circular padding": (conv(2, padding=1, padding_mode="circular"), images(2)),
    "padding='same'": (conv(2, padding="same", dilation=2), images(2)),
    "padding='valid'": (conv(1, padding="valid"), images(1)),
    "ConvTranspose2d": (conv(2, after=nn.ConvTranspose2d(6, 2, 2, stride=2)), images(2)),
    "InstanceNorm": (conv(2, after=nn.InstanceNorm2d(6, affine=True)), images(2)),
    "own parameter": (lambda: nn.Sequential(Prompt(), nn.Linear(4, K)), rows(4)),
    "PReLU": (deep(nn.PReLU()), rows(4)),
    "called twice": (shared, rows(4)),
    "tied weights": (lambda: Language(tied=True), tokens(4)),
    "transformer": (
        lambda: sums(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, K)),
        rows(7, 4),
    ),
    "positions by an embedding": (
        lambda: Net(
            lambda s, x: s.head((s.token(x) + s.place(torch.arange(x.shape[1]))).tanh().mean(1)),
            token=nn.Embedding(7, 6), place=nn.Embedding(9, 6), head=nn.Linear(6, K),
        ),
        tokens(4, 7),
    ),
    "scale_grad_by_freq": (text(scale_grad_by_freq=True), tokens(1, 7)),
    "weight_norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, K)),
        rows(4),
    ),
    "frozen beside another kind": (lambda: frozen(deep(nn.PReLU(), nn.Linear(8, 8))(), "0.weight", "2"), rows(4)),
}  # fmt: skip


def crooked(target: Tensor) -> Callable[[Tensor], Tensor]:
    """A loss of each sample that is neither linear nor quadratic in its outputs, and differs between samples."""
    return lambda out: ((out - target).square() / 2 + out.sin()).flatten(1).sum(1)


def oracle(net: nn.Module, x: Tensor, target: Tensor, loss: Any = crooked) -> Tensor:
    """Microbatches of one, in the precision of the network."""
    trained, norms = [p for p in net.parameters() if p.requires_grad], []
    for i in range(len(x)):
        found = torch.autograd.grad(loss(target[i : i + 1])(net(x[i : i + 1])).sum(), trained, allow_unused=True)
        norms.append(sum((g.double().square().sum() for g in found if g is not None), torch.zeros(1)).sqrt())
    return torch.cat(norms) if norms else torch.zeros(0)


def made(make: Make, inputs: Callable[[int], Tensor], n: int = B, outputs: int = K) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return make(), inputs(n), torch.randn(n, outputs)


def check(net: nn.Module, x: Tensor, target: Tensor, rtol: float = 1e-4) -> Tensor:
    norms, out = gradient_norms(net, x, crooked(target))
    torch.testing.assert_close(norms.double(), oracle(net, x, target).double(), rtol=rtol, atol=1e-6)
    torch.testing.assert_close(out, net(x))
    assert norms.dtype == torch.float32
    assert norms.shape == (len(x),)
    assert not norms.requires_grad
    assert not out.requires_grad
    return norms
