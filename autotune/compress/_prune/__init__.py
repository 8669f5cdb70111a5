"""Parts of ``prune``: groups of coupled channels, their importance, and the removal."""
