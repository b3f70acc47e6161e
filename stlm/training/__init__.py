"""Training: stages, replay, checkpoints."""
