"""Parts of the step ``evaluate``."""
