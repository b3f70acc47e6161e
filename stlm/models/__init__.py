"""The detectors and how they are built, saved and loaded."""
