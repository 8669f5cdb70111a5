"""The worker server: one fork a job."""

__all__ = ["server", "task_cache"]
