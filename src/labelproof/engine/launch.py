"""Lightning Fabric for a run's settings."""

from __future__ import annotations

import ctypes
import inspect
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from labelproof.core.method import Method
from labelproof.engine.settings import Settings


def launch(settings: Settings, method: Method) -> Fabric:
    """Fabric for the settings: the device, and one process per device if there are several."""
    strategy: Any = "auto"
    if settings.devices > 1:
        # rows of per-sample state are synchronised where they are written: a broadcast would overwrite them
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # renamed in torch 2.13
        options: dict[str, Any] = {name: False, "find_unused_parameters": method.partial_graph}
        strategy = DDPStrategy(**options)
    precision: Any = settings.precision
    fabric = Fabric(accelerator=settings.device, devices=settings.devices, strategy=strategy, precision=precision)
    if settings.devices > 1:
        fabric.launch()
    if fabric.device.type == "cpu":
        _keep_memory()
    return fabric


def _keep_memory() -> None:
    """Tell glibc to keep freed blocks of up to 256 MB for this process, where it is the C library.

    It would hand the graphs of two networks, which live side by side, back to the system at the end of each step, and
    get them again in the next, page by page: 5 to 10 % of the time of a step. Larger blocks (data sets) still go back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return
    if mallopt(-3, 2**28):  # M_MMAP_THRESHOLD; old versions refuse, and the next would make them slower
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
