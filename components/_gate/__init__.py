"""Parts of the step ``gate``."""
