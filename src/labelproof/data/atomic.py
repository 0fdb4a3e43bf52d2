"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make the file beside `path`, then move it there: a reader, or a kill, never meets half of it.

    Args:
        path: where the file goes; what is there before stays until the new one is complete.
        write: given the place to write to, which has the ending of `path`.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # the folder itself may be what cannot be written
            partial.unlink(missing_ok=True)
    return path
