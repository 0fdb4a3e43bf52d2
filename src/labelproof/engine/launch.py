"""Lightning Fabric for a run's settings."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from labelproof.engine.settings import Settings


def launch(settings: Settings) -> Fabric:
    """Fabric for the settings: the device, and one process per device if there are several."""
    strategy: Any = "auto"
    if settings.devices > 1:
        # rows of per-sample state are synchronised where they are written: a broadcast would overwrite them
        strategy = DDPStrategy(broadcast_buffers=False, process_group_backend=None)
    precision: Any = settings.precision
    fabric = Fabric(accelerator=settings.device, devices=settings.devices, strategy=strategy, precision=precision)
    if settings.devices > 1:
        fabric.launch()
    return fabric
