"""Norms of single samples' gradients, for any convolution and any number of positions."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labelproof.functional.gradnorm import gradient_norms
from tests.functional.samplewise import check, crooked


@st.composite
def convolutions(draw: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution after a layer that is trained too, and the shape of an input that it takes."""
    d, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    per = st.integers(1, 3)
    kernel, dilation, stride, padding, more = (
        [draw(st.integers(low, high)) for _ in range(d)] for low, high in ((1, 3), (1, 2), (1, 3), (0, 2), (0, 3))
    )
    size = [
        max(1, k + (k - 1) * (s - 1) - 2 * p) + m for k, s, p, m in zip(kernel, dilation, padding, more, strict=True)
    ]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    inner = groups * draw(per)
    options = {"groups": groups, "bias": draw(st.booleans())}
    layer = kind(inner, groups * draw(per), kernel, stride, padding, dilation, **options)
    return nn.Sequential(kind(2, inner, 1), nn.Tanh(), layer, nn.Flatten()), (2, *size)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(1, 4))
def test_any_convolution(made: tuple[nn.Module, tuple[int, ...]], n: int) -> None:
    torch.manual_seed(0)
    net, shape = made
    x = torch.randn(n, *shape)
    check(net, x, torch.randn_like(net(x).detach()))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_any_number_of_positions(n: int, positions: int, inputs: int, outputs: int, bias: bool) -> None:
    """Few positions of wide layers and many of narrow ones are added up in different ways."""
    torch.manual_seed(0)
    if positions == n:
        positions += 1
    net = nn.Sequential(nn.Linear(inputs, outputs, bias), nn.LayerNorm(outputs), nn.Linear(outputs, 3, bias))
    x = torch.randn(n, positions, inputs)
    check(net, x, torch.randn(n, positions, 3))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.sampled_from([None, 2])
)
def test_any_text(tokens: list[list[int]], padding: int | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(4, 5, padding_idx=padding), nn.Tanh(), nn.Linear(5, 2))
    x = torch.tensor(tokens)
    check(net, x, torch.randn(len(x), 6, 2))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.sampled_from([1, 3, 5]))
def test_neither_order_nor_company_matter(order: list[int], split: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3))
    x, target = torch.randn(6, 2, 7), torch.randn(6, 3)
    want = gradient_norms(net, x, crooked(target))[0]
    got = gradient_norms(net, x[order], crooked(target[order]))[0]
    torch.testing.assert_close(got, want[order], rtol=1e-5, atol=1e-6)
    parts = [gradient_norms(net, x[i], crooked(target[i]))[0] for i in (slice(split), slice(split, 6))]
    torch.testing.assert_close(torch.cat(parts), want, rtol=1e-5, atol=1e-6)
