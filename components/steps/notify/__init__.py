"""Step ``notify``; its face is ``step.py``."""
