"""Checks of settings: each raises ``ValueError`` with what was got and what is expected."""

import re
from collections.abc import Iterable
from typing import Any

from stlm.constants import IMAGE_METRICS, LOWER_IS_BETTER, PIXEL_METRICS

__all__ = ["check", "check_at_least", "check_metrics", "check_sha256", "check_share"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check(ok: bool, message: str) -> None:
    """Raise ``ValueError`` with the message, unless ``ok``."""
    if not ok:
        raise ValueError(message)


def check_at_least(settings: Any, low: float, *names: str) -> None:
    """Each of these numbers is finite and not below ``low``."""
    for name in names:
        value = getattr(settings, name)
        check(low <= value < float("inf"), f"{name} must be at least {low:g}, got {value}")


def check_share(settings: Any, *names: str) -> None:
    """Each of these numbers lies within [0, 1]."""
    for name in names:
        value = getattr(settings, name)
        check(0 <= value <= 1, f"{name} must be within [0, 1], got {value}")


def check_sha256(name: str, value: str) -> None:
    """The value is a sha256 in lower-case hex."""
    check(bool(_SHA256.fullmatch(value)), f"{name} must be 64 lower-case hex digits, got {value!r}")


def check_metrics(name: str, metrics: Iterable[str], *, can_be_lower: bool = True) -> None:
    """Each of these is a metric of the evaluation.

    Args:
        name: Of the setting that names them.
        metrics: The names.
        can_be_lower: Whether a metric of which less is better may be among them.
    """
    known = [m for m in (*IMAGE_METRICS, *PIXEL_METRICS) if can_be_lower or m not in LOWER_IS_BETTER]
    for metric in metrics:
        check(metric in known, f"{name}: {metric!r} cannot be one, expected {', '.join(known)}")
