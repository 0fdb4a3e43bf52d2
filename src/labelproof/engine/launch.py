"""Lightning Fabric for a run's settings."""

from __future__ import annotations

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
    return fabric
