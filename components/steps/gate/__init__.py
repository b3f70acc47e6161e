"""Step ``gate``; its face is ``step.py``."""
