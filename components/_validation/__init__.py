"""Parts of the step ``validate``."""
