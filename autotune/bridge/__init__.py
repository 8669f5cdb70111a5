"""The only door to the workers: jobs out, results in."""

from typing import TYPE_CHECKING

from autotune.faces import lazy

if TYPE_CHECKING:
    from autotune.bridge.process import ProcessBridge, meter_arguments
    from autotune.bridge.protocol import Bridge, OnReport
    from autotune.bridge.recording import Recorder, ReplayBridge, load_recording

__all__ = [
    "Bridge",
    "OnReport",
    "ProcessBridge",
    "Recorder",
    "ReplayBridge",
    "load_recording",
    "meter_arguments",
]

__getattr__ = lazy(
    __name__,
    {
        "Bridge": "protocol",
        "OnReport": "protocol",
        "ProcessBridge": "process",
        "Recorder": "recording",
        "ReplayBridge": "recording",
        "load_recording": "recording",
        "meter_arguments": "process",
    },
)
