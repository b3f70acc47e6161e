"""Step ``evaluate``; its face is ``step.py``."""
