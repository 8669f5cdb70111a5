"""Quality of a model or of recorded outputs."""

__all__ = ["evaluate"]
