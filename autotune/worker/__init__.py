"""All that imports torch: jobs in, answers out."""
