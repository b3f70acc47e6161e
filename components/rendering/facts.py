"""Labelled values, as pages show them, and figures written for people."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["DASH", "MINUS", "LabelledValue", "compact", "number", "with_unit"]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_SHARES = ("false alarms", "forgetting", "old score shift", "decision flips")
"""Rules, as they begin, whose figures are shares."""


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


def with_unit(rule: str, value: float | None) -> str:
    """A rule's figure with its unit: ``500 MB``, ``12.3 ms``, ``4.5 %``, ``188 images``; a metric has none."""
    if value is None or not math.isfinite(value):
        return DASH
    if rule == "package size":
        text = f"{value / 1e6:.4g} MB"
    elif rule == "latency":
        text = f"{value:.4g} ms"
    elif rule.startswith(_SHARES):
        text = f"{100 * value:.3g} %"
    elif rule.startswith("enough ") or rule in ("golden set size", "leakage"):
        text = f"{value:.0f} image{'' if value == 1 else 's'}"
    else:
        return compact(value)
    return text.replace("-", MINUS)
