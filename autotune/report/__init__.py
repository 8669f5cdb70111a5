"""The report: its folder, its tables, its texts, and plans and verdicts in words."""

__all__ = ["describe", "plain_text", "run_folder", "text", "trial_table"]
