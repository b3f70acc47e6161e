"""Errors by what a caller can do: the same inputs will fail again, or another try may help."""

from collections.abc import Sequence

__all__ = ["EXIT_INPUT_ERROR", "EXIT_TRANSIENT_ERROR", "InputError", "TransientError", "shorten"]

EXIT_INPUT_ERROR = 65
EXIT_TRANSIENT_ERROR = 75


class InputError(ValueError):
    """The same inputs will fail again: the message says what, where, expected and got."""


class TransientError(RuntimeError):
    """The world was not ready (a lock, a server, a network): the same inputs may succeed later."""


def shorten(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
