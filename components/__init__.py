"""Pipeline of the nights: its steps, and everything around the models."""
