"""Random numbers as pure functions of (seed, purpose, epoch, step).

Nothing has to be saved and restored for a resumed run to draw what the uninterrupted one would have drawn, and every
rank can draw what belongs to the joint batch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed from a base seed, a name and counters; the same on every platform.

    >>> derive(0, "shuffle", 3) == derive(0, "shuffle", 3) != derive(0, "shuffle", 4)
    True
    """
    text = f"{seed}/{purpose}/" + "/".join(map(str, counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator seeded with `derive(...)`."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


@contextmanager
def seeded(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """Run other people's code, which draws from global generators, under a seed of its own.

    Covers torch on the CPU, NumPy's global generator and `random`; the caller's states come back.
    """
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    value = derive(seed, purpose, *counters)
    torch.default_generator.manual_seed(value)  # torch.manual_seed would reseed the GPUs too
    np.random.seed(value % 2**32)  # noqa: NPY002
    random.seed(value)
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
