"""What every detector returns."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["AnomalyOutput"]


class AnomalyOutput(NamedTuple):
    """Scores and maps of a batch; larger is more anomalous."""

    score: Tensor
    """``(B,)`` float32."""
    anomaly_map: Tensor
    """``(B, H, W)`` float32 at the model's image size."""
