"""Build an artifact: compress, export, write."""

__all__ = ["build"]
