"""Step ``version``; its face is ``step.py``."""
