"""One run, from the survey to the report."""

__all__ = ["cost_preview", "pipeline", "survey"]
