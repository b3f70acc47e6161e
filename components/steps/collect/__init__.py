"""Step ``collect``; its face is ``step.py``."""
