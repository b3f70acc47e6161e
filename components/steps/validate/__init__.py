"""Step ``validate``; its face is ``step.py``."""
