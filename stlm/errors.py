"""The error tree of the library.

StlmError
├── ConfigError (ValueError)            a configuration that cannot work
├── DataError (ValueError)              an image, mask or folder that breaks its contract
├── MetricUndefinedError (ValueError)   the figure does not exist for this input
├── WeightsError (ValueError)           a checkpoint that is missing, altered or of another architecture
├── TrainingDivergedError (ArithmeticError)   the loss is not finite
└── ExportError (RuntimeError)          the exported file does not behave like the model
"""

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "MetricUndefinedError",
    "StlmError",
    "TrainingDivergedError",
    "WeightsError",
]


class StlmError(Exception):
    """Root of everything this library raises on purpose."""


class ConfigError(StlmError, ValueError):
    """A configuration that cannot work; the message names the field, the value and what is allowed."""


class DataError(StlmError, ValueError):
    """An image, mask or folder that breaks its contract; the message names the file."""


class MetricUndefinedError(StlmError, ValueError):
    """The figure does not exist for this input, for example an AUROC without a defective image."""


class WeightsError(StlmError, ValueError):
    """A checkpoint that is missing, altered, or made for another architecture."""


class TrainingDivergedError(StlmError, ArithmeticError):
    """The loss became NaN or infinite; no candidate may come of it."""


class ExportError(StlmError, RuntimeError):
    """The exported file does not behave like the model it was made from."""
