"""Time one artifact in a new interpreter; torch-free but for torch artifacts."""

__all__ = ["measure"]
