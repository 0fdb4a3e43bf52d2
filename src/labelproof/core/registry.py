"""Looking things up by name, with "did you mean" for typos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of `table` under `name`.

    Args:
        kind: what the names stand for, for the message ("method", "network", ...).
        name: what was asked for.
        table: what there is.

    Raises:
        ValueError: there is no such entry; the message names the closest ones and all others.

    >>> lookup("method", "erl", {"ce": 1, "elr": 2})
    Traceback (most recent call last):
    ...
    ValueError: unknown method 'erl': did you mean 'elr'? There are: ce, elr
    """
    if name in table:
        return table[name]
    raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, table)} There are: {', '.join(sorted(table))}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`": did you mean 'x'?"` for the closest known name, `";"` where nothing is close."""
    close = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else ";"
