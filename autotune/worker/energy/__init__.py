"""Energy windows: the meter process, its client, and the guard of power limits."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.worker.energy.meter_client import MeterClient

__all__ = ["MeterClient"]

__getattr__ = lazy(__name__, {"MeterClient": "meter_client"})
