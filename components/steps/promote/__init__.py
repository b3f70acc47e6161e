"""Step ``promote``; its face is ``step.py``."""
