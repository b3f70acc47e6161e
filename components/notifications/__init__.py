"""Notifications: what operators are told of nights, and how it reaches them."""
