"""Random numbers as pure functions of (seed, purpose, epoch, step).

Nothing has to be saved and restored for a resumed run to draw what the uninterrupted one would have drawn, and every
rank can draw what belongs to the joint batch.
"""

from __future__ import annotations

import hashlib

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
