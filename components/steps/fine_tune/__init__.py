"""Step ``fine_tune``; its face is ``step.py``."""
