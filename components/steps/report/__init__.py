"""Step ``report``; its face is ``step.py``."""
