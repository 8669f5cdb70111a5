"""Rows, batches and datasets.  Importing it brings no torch."""

__all__ = ["batch_indexing", "batch_tree", "batches", "datasets", "rows", "samples", "streams"]
