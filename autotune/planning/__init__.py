"""Predicted plans for machines that are not here."""

__all__ = ["plan", "text"]
