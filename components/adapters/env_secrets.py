"""Secrets, by the names of environment variables that the settings give."""

import os

from components.core.errors import InputError

__all__ = ["read_secret"]


def read_secret(variable: str) -> str:
    """The value of an environment variable; ``InputError``, which names it, where it is not set."""
    value = os.environ.get(variable, "")
    if not value:
        raise InputError(f"the environment variable {variable} is not set")
    return value
