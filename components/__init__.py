"""Pipeline of the nights: its steps, and everything around the models."""

from components.core.telemetry import switch_off

switch_off()
