"""Data modules: tokenised once, split four ways (train, calibration, validation, test), batched reproducibly."""
