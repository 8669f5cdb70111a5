"""The user's file: run, its names, its search space, and errors that say how to fix it."""

__all__ = ["errors", "names", "run", "search_space"]
