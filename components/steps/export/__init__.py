"""Step ``export``; its face is ``step.py``."""
