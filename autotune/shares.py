"""What a run's time is spent on, as shares of it; the rest is surveying and verification."""

TRAIN_SHARE = 0.30
FINAL_SHARE, FINAL_MOST = 0.08, 0.16  # the more where the share holds few epochs
DEPLOY_SHARE = 0.70  # of what is left after training
