"""Profile this machine: rates, GPUs, interconnect, power."""

__all__ = ["profile"]
