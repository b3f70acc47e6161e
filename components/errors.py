"""What a step's failure means to its caller: fail again for sure, or worth another try."""

__all__ = ["EXIT_INPUT_ERROR", "EXIT_TRANSIENT_ERROR", "InputError", "TransientError"]

EXIT_INPUT_ERROR = 65
EXIT_TRANSIENT_ERROR = 75


class InputError(ValueError):
    """The same inputs will fail again: the message says what, where, expected and got."""


class TransientError(RuntimeError):
    """The world was not ready (a lock, a server, a network): the same inputs may succeed later."""
