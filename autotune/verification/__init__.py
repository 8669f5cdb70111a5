"""Finalists are launched anew and judged; one is chosen."""

__all__ = [
    "explain",
    "launches",
    "previous_plan",
    "recorded_io",
    "reverify",
    "select",
    "time_needed",
]
