"""The command line: arguments in, text out."""

__all__ = ["main"]
