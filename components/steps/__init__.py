"""Steps of a night: one folder each, whose ``step.py`` is a function from typed inputs to typed outputs."""
