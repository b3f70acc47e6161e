"""Metrics of anomaly detection, exact to the tie, with bootstrap intervals over images. NumPy and SciPy only."""

from stlm.constants import IMAGE_METRICS, LOWER_IS_BETTER, PIXEL_METRICS
from stlm.metrics.auroc import auroc
from stlm.metrics.estimates import (
    Estimate,
    ImageMeasurement,
    Measurement,
    PixelMeasurement,
    difference,
    estimate,
)
from stlm.metrics.intervals import (
    PairedBounds,
    one_sided_bounds,
    paired_bounds,
    percentile_interval,
    resample_counts,
)
from stlm.metrics.operating_point import false_alarm_rate_at_recall, rate_above
from stlm.metrics.pixels import (
    PixelMetrics,
    PixelStatistics,
    pixel_metrics,
    pixel_statistics,
)
from stlm.metrics.precision_recall import average_precision, f1_max
from stlm.metrics.pro import PRO_FPR_LIMIT, per_region_overlap
from stlm.metrics.stream import PixelStream, StreamedPixelMetrics
from stlm.metrics.units import Units, units_of

__all__ = [
    "IMAGE_METRICS",
    "LOWER_IS_BETTER",
    "PIXEL_METRICS",
    "PRO_FPR_LIMIT",
    "Estimate",
    "ImageMeasurement",
    "Measurement",
    "PairedBounds",
    "PixelMeasurement",
    "PixelMetrics",
    "PixelStatistics",
    "PixelStream",
    "StreamedPixelMetrics",
    "Units",
    "auroc",
    "average_precision",
    "difference",
    "estimate",
    "f1_max",
    "false_alarm_rate_at_recall",
    "one_sided_bounds",
    "paired_bounds",
    "per_region_overlap",
    "percentile_interval",
    "pixel_metrics",
    "pixel_statistics",
    "rate_above",
    "resample_counts",
    "units_of",
]
