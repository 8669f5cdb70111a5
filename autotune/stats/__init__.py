"""Tests and intervals; pure functions of samples."""

__all__ = ["launch_ratio", "limit_tests", "non_inferiority", "paired", "quantile"]
