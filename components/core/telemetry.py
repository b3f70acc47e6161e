"""Telemetry of the packages that nights are made of, switched off: nothing about a factory leaves it unasked.

Most of them read their variable when they are imported, so :mod:`components` calls :func:`switch_off` before anything
else; whatever process a step, a task or a command runs in, it imports that first. A variable that is set already is
left as it is.
"""

import os

__all__ = ["TELEMETRY_OFF", "switch_off"]

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
}


def switch_off() -> None:
    """Set what is not set yet, in this process and for those that it starts."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
