"""The outside world behind small Protocols: storage, DVC, the model registry."""
