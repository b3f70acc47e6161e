"""Moving aliases so that it can be trusted and taken back: the only code that moves one."""
