"""Adapters: one outside system each, behind small Protocols."""
