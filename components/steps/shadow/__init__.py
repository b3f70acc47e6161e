"""Step ``shadow``; its face is ``step.py``."""
