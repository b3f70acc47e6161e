"""Settings of validation, training, evaluation, export and gate."""

import math
from dataclasses import dataclass, field
from typing import Literal

from components.config.checks import check, check_at_least, check_metrics, check_sha256, check_share

__all__ = ["EvaluateSettings", "ExportSettings", "FineTuneSettings", "GateSettings", "ValidateSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateSettings:
    """The image contract. ``[low, high]`` pairs are inclusive."""

    modes: tuple[str, ...] = ("L", "RGB")
    """Pillow modes that are accepted."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Accepted ``[height, width]``; empty: the most common size of the night."""
    any_size: bool = False
    """True where the parts, and so their pictures, differ in size; ``sizes`` then plays no role."""
    min_side_px: int = 32
    max_pixels: int = 50_000_000
    """Above this an image is refused before it is decoded."""
    mean_brightness: tuple[float, float] = (0.04, 0.96)
    """Accepted mean grey level in [0, 1]."""
    min_sharpness: float = 0.5
    """Lowest accepted sharpness (one minus Crete's blur), as a share of the night's median."""
    min_entropy_bits: float = 2.0
    """Lowest accepted entropy of the grey histogram."""
    near_duplicate_bits: int = 14
    """Two images whose 256-bit perceptual hashes differ in at most this many bits are near duplicates."""
    max_age_days: int = 30
    """Lots dated longer before the night than this, or after it, are rejected."""
    min_images: int = 4
    """Fewest accepted images in a lot."""
    max_quarantined_share: float = 0.35
    """A lot with a larger quarantined share is rejected whole."""
    screen_deviations: float = 1.6
    """Before there is a champion, an image is quarantined whose outlier score lies this many robust standard deviations
    above the night's median. 1.6: in batches of 240 good and 4 to 12 defective ELPV cells, drawn 16 times, it finds
    73 % of the defective ones and loses 3 % of the good ones (1.3: 81 % and 6 %; 2.0: 65 % and 1.5 %); on magnetic
    tiles, which lie anyhow, 2.0 loses 3 to 4 %. See ``tests/benchmarks/bench_screening.py``."""
    screen_champion_deviations: float = 2.0
    """The same of the champion's scores, whose upper tail is longer; the image must lie above the champion's threshold
    as well. 2.0: on polycrystalline ELPV cells four champions lose 4.8 % of the good ones, about as many as outliers at
    1.6 (4.7 %), and find 59 % of the defective ones; 1.6 loses 5.9 % and finds 62 %. Same benchmark."""
    screen_drift_share: float = 0.2
    """Where the champion finds a larger share of the night anomalous, the light has changed, not the parts: the
    night is searched for outliers instead."""

    def __post_init__(self) -> None:
        check_share(self, "max_quarantined_share", "screen_drift_share", "min_sharpness")
        check_at_least(self, 1, "min_side_px", "max_pixels", "min_images")
        check_at_least(self, 0, "min_entropy_bits", "max_age_days")
        check(bool(self.modes), "modes is empty, expected at least one")
        for size in self.sizes:
            check(min(size) >= 1, f"sizes must be [height, width] of at least 1, got {list(size)}")
        for name in ("screen_deviations", "screen_champion_deviations"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        check(
            0 <= self.near_duplicate_bits < 64,
            f"near_duplicate_bits must be within [0, 64) of 256 bits, got {self.near_duplicate_bits}",
        )
        low, high = self.mean_brightness
        check(0 <= low < high <= 1, f"mean_brightness must be a range within [0, 1], got {self.mean_brightness}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneSettings:
    """How a night trains."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    replay_images: int = 300
    """Bound of the replay memory: images of earlier nights that are learnt again."""
    held_out_share: float = 0.15
    """Share of the accepted normals kept from training, for calibration."""
    max_seconds: float = 3600.0
    """Training stops at the next checkpoint after this time."""
    checkpoint_seconds: float = 20.0
    """At most this much work is repeated after a kill."""
    num_threads: int = 0
    """Torch threads; 0 leaves torch's own choice."""
    processes: int = 1
    """How many GPUs share a training; more than one are started by ``torchrun``, on this machine."""
    precision: Literal["float32", "bf16"] = "float32"
    """``bf16``: products in bfloat16 (autocast), weights and sums in float32."""
    teacher_checkpoint: str = ""
    """Path or URL of a SAM, MobileSAM or MAE checkpoint, for recipes that want one."""
    teacher_sha256: str = ""
    student_checkpoint: str = ""
    """Path or URL of the MobileSAM checkpoint that a recipe with ``student_init = "mobile_sam"`` starts from."""
    student_sha256: str = ""
    textures: str = ""
    """Folder of texture photographs (such as DTD) for pseudo-anomalies; empty takes the three embedded ones."""

    def __post_init__(self) -> None:
        check(0 < self.held_out_share < 1, f"held_out_share must be within (0, 1), got {self.held_out_share}")
        check(self.replay_images >= 0, f"replay_images must not be negative, got {self.replay_images}")
        check_at_least(self, 1, "processes")
        check_at_least(self, 0, "seed", "num_threads", "checkpoint_seconds")
        check(self.max_seconds > 0, f"max_seconds must be positive, got {self.max_seconds}")
        for name in ("teacher", "student"):
            if getattr(self, f"{name}_checkpoint"):
                check_sha256(f"{name}_sha256", getattr(self, f"{name}_sha256"))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """How candidate and champion are measured."""

    target_false_alarm_rate: float = 0.05
    """The operating threshold lets this share of held-out normals be called anomalous."""
    recall: float = 0.9
    """``false_alarm_rate_at_recall`` is read off at this recall."""
    pro_fpr_limit: float = 0.3
    bootstrap_samples: int = 1000
    confidence: float = 0.95
    num_synthetic: int = 64
    """Synthetic defects drawn on golden normals where the golden set has no masks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("target_false_alarm_rate", "recall", "pro_fpr_limit", "confidence"):
            value = getattr(self, name)
            check(0 < value < 1, f"{name} must be within (0, 1), got {value}")
        check_at_least(self, 1, "bootstrap_samples", "num_synthetic", "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What the exported file must prove."""

    parity_images: int = 32
    max_score_difference: float = 1e-3
    probe_images: int = 8
    """Golden images that travel with the package: before it serves, it must give them the scores of the verdict again,
    within ``max_score_difference``."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "parity_images", "probe_images")
        check(self.max_score_difference > 0, f"max_score_difference must be positive, got {self.max_score_difference}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSettings:
    """Floors and margins; metric names are those of the evaluation report.

    The defaults come from ``tests/benchmarks/bench_gate.py``, which says how often they are right.
    """

    mode: Literal["non_inferiority", "superiority"] = "non_inferiority"
    """``non_inferiority``: a candidate that is surely not worse than the margin allows may take over, for it knows the
    night's normals. ``superiority``: it must surely be better in ``superior_metric``, and not inferior in the rest."""
    superior_metric: str = "image_auroc"
    """In mode superiority, the metric to be better in; in both modes, the one by which a candidate becomes the anchor:
    only if it is surely better than the anchor."""
    floors: dict[str, float] = field(default_factory=lambda: {"image_auroc": 0.7})
    """Metric -> lowest acceptable value."""
    margins: dict[str, float] = field(default_factory=lambda: {"image_auroc": 0.01, "pixel_auroc": 0.02, "pro": 0.04})
    """Metric -> how much worse than the champion still counts as not inferior."""
    anchor_margins: dict[str, float] = field(
        default_factory=lambda: {"image_auroc": 0.005, "pixel_auroc": 0.02, "pro": 0.04}
    )
    """The same against the anchor. Smaller: what may be lost to it is lost once, not every night."""
    alpha: float = 0.05
    """One-sided error of each comparison."""
    bootstrap_samples: int = 2000
    min_per_class: int = 20
    """Golden images per class below which the gate only says INCONCLUSIVE."""
    max_false_alarm_rate: float = 0.25
    """The candidate is rejected when its false-alarm rate on good golden images is surely above this."""
    max_false_alarm_rise: float = 0.05
    """... when its false-alarm rate at the fixed recall is surely higher than the champion's by more than this."""
    max_forgetting: float = 0.1
    """... when on held-out normals of other nights it surely alarms more often than the champion by more than this."""
    max_old_shift: float = 0.2
    """... when an old held-out normal outscores a new one surely more often than by chance, and more often than with
    the champion, by more than this."""
    max_flip_rate: float = 0.3
    """... when it decides surely more than this share of the held-out normals differently than the champion."""
    max_ms_per_image: float = 1000.0
    """... when the exported file takes longer than this on one thread."""
    max_latency_ratio: float = 2.0
    """... when it takes more than this many times as long as the champion's in the same run."""
    max_package_bytes: int = 500_000_000
    accepted_golden: tuple[str, ...] = ()
    """Digests of golden sets that replaced the champion's on purpose; any other change is an ERROR."""

    def __post_init__(self) -> None:
        check(0 < self.alpha < 0.5, f"alpha must be within (0, 0.5), got {self.alpha}")
        check_metrics("floors", self.floors, can_be_lower=False)
        for metric, floor in self.floors.items():
            check(0 <= floor <= 1, f"floors.{metric} must be within [0, 1], got {floor}")
        for name, margins in (("margins", self.margins), ("anchor_margins", self.anchor_margins)):
            check_metrics(name, margins)
            for metric, margin in margins.items():
                check(0 <= margin < math.inf, f"{name}.{metric} must be finite and not negative, got {margin}")
        check(
            self.mode == "non_inferiority" or self.superior_metric in self.margins,
            f"superior_metric {self.superior_metric!r} has no margin in gate.margins",
        )
        # It decides who becomes the anchor, so where it is undefined the gate has to say so.
        check(
            not self.anchor_margins or self.superior_metric in self.anchor_margins,
            f"superior_metric {self.superior_metric!r} has no margin in gate.anchor_margins; "
            f"these have: {', '.join(self.anchor_margins)}",
        )
        check_at_least(self, 1, "bootstrap_samples", "min_per_class", "max_package_bytes")
        check_share(self, "max_false_alarm_rate", "max_false_alarm_rise", "max_forgetting", "max_old_shift")
        check_share(self, "max_flip_rate")
        for name in ("max_ms_per_image", "max_latency_ratio"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for digest in self.accepted_golden:
            check_sha256("accepted_golden", digest)
