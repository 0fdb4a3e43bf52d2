"""`torch.compile` for the networks of a run, in place, so that nothing else of the run knows.

Only full training batches go through what was compiled. Every further shape or mode would be compiled anew, which takes
longer than it saves: the last batch of an epoch, which may be ragged, and evaluation run as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from labelproof.core.nets import Nets

#: What turns the graph into code; tests take one that needs no compiler.
BACKEND = "inductor"
_REMEDY = (
    "It needs a C++ compiler (g++ or clang++, with a GPU a C compiler as well) and Python's headers: install them, or "
    "leave compile out"
)


def compile_networks(nets: Nets) -> None:
    """Compile peers and twins at their next forward pass; parameters, names and buffers stay what they are.

    `Module.compile` keeps the compiled call beside the module, not around it: `state_dict`, `deepcopy` and `pickle` do
    not see it.

    Args:
        nets: changed in place; peers of one class share what is compiled.

    Raises:
        ValueError: this Python or system has no `torch.compile`, or it would pass over the network.
    """
    for net in (*nets.peers, *nets.twins):
        if type(net).forward.__module__.startswith("torch.nn"):
            raise ValueError(
                f"compile=True would change nothing: torch.compile passes over a bare {type(net).__name__}, whose "
                "forward is torch's own. Put it into a class with a forward of its own, or leave compile out"
            )
        try:
            net.compile(backend=BACKEND, dynamic=False)
        except RuntimeError as error:  # a Python or a system that this torch cannot compile for
            raise ValueError(f"compile=True: {_first_line(error)}. Leave compile out") from error


def uncompile(nets: Nets) -> Nets:
    """The same networks as plain ones again, for whoever predicts with them."""
    for net in (*nets.peers, *nets.twins):
        net._compiled_call_impl = None
    return nets


def eager(nets: Nets) -> AbstractContextManager[Any]:
    """Forward passes in here run as if nothing were compiled."""
    if nets[0]._compiled_call_impl is None:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def explained() -> Iterator[None]:
    """Around steps: say what is missing where the compiler fails.

    Raises:
        ValueError: in place of torch's own error.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import: only where something is compiled

    try:
        yield
    except TorchDynamoException as error:
        raise ValueError(f"compile=True: torch.compile failed ({_first_line(error)}). {_REMEDY}") from error


def _first_line(error: Exception) -> str:
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (f"{first} {more[0]}" if first.endswith(":") and more else first).rstrip(".")  # "backend=... raised:", what
