"""Hardware profiles, and what a machine can measure and run."""

__all__ = ["doctor", "profiles", "text"]
