"""What the task and its model are, and what can be done with them."""

__all__ = ["inspect", "meta_inspect", "options"]
