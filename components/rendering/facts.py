"""Labelled values, as pages show them, and figures written for people."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["DASH", "MINUS", "LabelledValue", "compact", "number"]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledValue:
    """A labelled value."""

    label: str
    value: str
    note: str = ""


def number(value: Any, digits: int = 3) -> str:
    """A figure for people: fixed digits, or a dash where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}".replace("-", MINUS)


def compact(value: float | None) -> str:
    """A figure of unknown size for people: four digits that count."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4g}".replace("-", MINUS)
