"""Promotion: the only code that moves an alias, so that a move can be trusted and taken back."""
