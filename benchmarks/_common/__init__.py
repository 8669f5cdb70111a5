"""Data, models and stored rows that several benchmarks share."""
