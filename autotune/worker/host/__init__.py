"""What the operating system says of this machine; torch-free."""

__all__ = ["interference", "linux", "topology"]
