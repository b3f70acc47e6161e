"""The pipeline's configuration: one TOML file, read strictly into frozen dataclasses.

``infra/quickstart.toml`` carries every field with its default and a comment. Relative paths are relative to the
folder of the configuration file. Only the standard library is imported here.
"""

import datetime as dt
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from components.config_zero_shot import ZeroShotSettings
from components.contracts import ModelKey, from_json
from components.errors import InputError

__all__ = [
    "CollectSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FineTuneSettings",
    "GateSettings",
    "MlflowSettings",
    "ModelSettings",
    "Paths",
    "PipelineConfig",
    "PromoteSettings",
    "ReportSettings",
    "ScheduleSettings",
    "ValidateSettings",
    "ZeroShotSettings",
    "ledger_of",
    "load_config",
]


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """Where things lie; folders, or ``s3://bucket/prefix`` where said so."""

    work_dir: str
    """Step outputs, checkpoints, caches; a folder that every worker sees."""
    landing: str
    """Landing zone: ``<landing>/<product>/<line>/<camera>/<lot>/``; a folder or ``s3://``."""
    data_repo: str
    """The data repository (git + DVC); created on first use."""
    dvc_remote: str
    """Where DVC keeps the images; a folder or ``s3://``."""
    s3_endpoint_url: str = ""
    """For an S3 server that is not AWS; empty for AWS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowSettings:
    """The tracking server and registry."""

    tracking_uri: str
    """``sqlite:///…``, ``postgresql+psycopg2://…`` or ``http://…``."""
    artifact_root: str
    """Where new experiments keep artifacts; a folder or ``s3://``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """When a night starts."""

    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    start_date: str = "2026-01-01"
    retries: int = 2
    """How often a step is tried again after an error that may pass."""
    retry_delay_s: float = 60.0
    lease_s: float = 900.0
    """A key belongs to one run at a time, nightly or backfill. A run that died, or that waits so long for a machine
    between two steps, is given up after this time."""
    lease_wait_s: float = 1800.0
    """How long a run waits for the one that holds its key; then a nightly run is skipped, a backfill's fails."""

    def __post_init__(self) -> None:
        _check(self.lease_s > 0, f"lease_s must be positive, got {self.lease_s}")
        _check(self.lease_wait_s >= 0, f"lease_wait_s must not be negative, got {self.lease_wait_s}")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"timezone must be one like 'Europe/Berlin', got {self.timezone!r}") from None
        dt.date.fromisoformat(self.start_date)
        _check(len(self.cron.split()) == 5, f"cron needs five fields, got {self.cron!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """One model key: a registered model, a champion, a golden set."""

    product: str
    line: str
    camera: str
    golden: str
    """Golden set in MVTec layout: ``test/good``, ``test/<defect>`` and, if there are, ``ground_truth/<defect>``."""
    recipe: str = "lite"
    """A recipe of ``stlm.recipes``."""
    approvers: tuple[str, ...] = ()
    """Who may let a candidate in, by their ids in Airflow (with its simple auth manager: names); empty: the verdict
    alone lets it in."""
    approval_hours: float = 24.0
    """How long a night waits for one of them; no answer is a no."""
    shadow_nights: int = 0
    """A candidate that passed the gate is first scored beside the champion on so many nights' new normals; 0: none."""
    shadow_min_agreement: float = 0.9
    """Least share of these nights' normals and of the golden set that both must decide alike."""
    shadow_alarm_rate: float = 0.1
    """Largest share of these nights' normals that it may call anomalous."""

    @property
    def key(self) -> ModelKey:
        """The checked key."""
        return ModelKey(product=self.product, line=self.line, camera=self.camera)

    def __post_init__(self) -> None:
        ModelKey(product=self.product, line=self.line, camera=self.camera)
        _check(all(name.strip() for name in self.approvers), f"approvers must have names, got {self.approvers}")
        _check(
            not set(":,") & set("".join(self.approvers)), f"approvers: no name holds ':' or ',', got {self.approvers}"
        )
        _check(
            len(set(self.approvers)) == len(self.approvers), f"approvers: a name stands there twice: {self.approvers}"
        )
        _check(self.approval_hours > 0, f"approval_hours must be positive, got {self.approval_hours}")
        _check(self.shadow_nights >= 0, f"shadow_nights must not be negative, got {self.shadow_nights}")
        for name in ("shadow_min_agreement", "shadow_alarm_rate"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} must be within [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """What counts as a complete batch."""

    manifest_name: str = "manifest.json"


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
    """An image whose anomaly score lies this many robust standard deviations above the night's median is
    quarantined; where there is a champion, only if it also lies above the champion's calibrated threshold. 1.6: in
    batches of 240 good and 4 to 12 defective ELPV cells, drawn 16 times, it finds 73 % of the defective ones and loses
    3 % of the good ones (1.3: 81 % and 6 %; 2.0: 65 % and 1.5 %); on magnetic tiles, which lie anyhow, 2.0 loses 3 to
    4 %. See ``tests/benchmarks/bench_screening.py``."""
    screen_drift_share: float = 0.2
    """Where the champion finds a larger share of the night anomalous, the light has changed, not the parts: the
    night is searched for outliers instead."""

    def __post_init__(self) -> None:
        for name in ("max_quarantined_share", "screen_drift_share", "min_sharpness"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} must be within [0, 1], got {value}")
        _check(self.screen_deviations > 0, f"screen_deviations must be positive, got {self.screen_deviations}")
        _check(
            0 <= self.near_duplicate_bits < 64,
            f"near_duplicate_bits must be within [0, 64) of 256 bits, got {self.near_duplicate_bits}",
        )
        low, high = self.mean_brightness
        _check(0 <= low < high <= 1, f"mean_brightness must be a range within [0, 1], got {self.mean_brightness}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneSettings:
    """How a night trains."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    replay_images: int = 100
    """Bound of the replay memory: images of earlier nights that are learnt again."""
    held_out_share: float = 0.15
    """Share of the accepted normals kept from training, for calibration."""
    max_seconds: float = 3600.0
    """Training stops at the next checkpoint after this time."""
    checkpoint_seconds: float = 20.0
    """At most this much work is repeated after a kill."""
    num_threads: int = 0
    """Torch threads; 0 leaves torch's own choice."""
    teacher_checkpoint: str = ""
    """Path or URL of a SAM, MobileSAM or MAE checkpoint, for recipes that want one."""
    teacher_sha256: str = ""
    student_checkpoint: str = ""
    """Path or URL of the MobileSAM checkpoint that a recipe with ``student_init = "mobile_sam"`` starts from."""
    student_sha256: str = ""
    textures: str = ""
    """Folder of texture photographs (such as DTD) for pseudo-anomalies; empty takes the three embedded ones."""

    def __post_init__(self) -> None:
        _check(0 < self.held_out_share < 1, f"held_out_share must be within (0, 1), got {self.held_out_share}")
        _check(self.replay_images >= 0, f"replay_images must not be negative, got {self.replay_images}")


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
            _check(0 < value < 1, f"{name} must be within (0, 1), got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What the exported file must prove."""

    parity_images: int = 32
    max_score_difference: float = 1e-3
    probe_images: int = 8
    """Golden images that travel with the package: before it serves, it must give them the scores of the verdict again,
    within ``max_score_difference``."""

    def __post_init__(self) -> None:
        _check(self.probe_images >= 1, f"probe_images must be at least 1, got {self.probe_images}")
        _check(self.max_score_difference > 0, f"max_score_difference must be positive, got {self.max_score_difference}")


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
        _check(0 < self.alpha < 0.5, f"alpha must be within (0, 0.5), got {self.alpha}")
        _check(
            self.mode == "non_inferiority" or self.superior_metric in self.margins,
            f"superior_metric {self.superior_metric!r} has no margin in gate.margins",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteSettings:
    """Who may move the alias."""

    alias: str = "champion"
    require_approval: bool = False
    ledger: str = ""
    """Who was champion when, and why: a folder or ``s3://``; empty: ``<work_dir>/ledger``."""
    ledger_endpoint_url: str = ""
    """S3 server of the ledger; empty: ``paths.s3_endpoint_url``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """How much the page shows."""

    max_pictures: int = 8


def ledger_of(work_dir: str, settings: PromoteSettings) -> str:
    """Where ledger and leases are kept."""
    return settings.ledger or str(Path(work_dir) / "ledger")


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    """Everything the DAGs and the command line need to know."""

    paths: Paths
    mlflow: MlflowSettings
    models: tuple[ModelSettings, ...]
    schedule: ScheduleSettings = ScheduleSettings()
    collect: CollectSettings = CollectSettings()
    validate: ValidateSettings = ValidateSettings()
    fine_tune: FineTuneSettings = FineTuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    gate: GateSettings = field(default_factory=GateSettings)
    promote: PromoteSettings = PromoteSettings()
    report: ReportSettings = ReportSettings()
    zero_shot: ZeroShotSettings = field(default_factory=ZeroShotSettings)

    def __post_init__(self) -> None:
        slugs = [model.key.slug for model in self.models]
        _check(bool(slugs), "models: at least one [[models]] entry is needed")
        twice = sorted({slug for slug in slugs if slugs.count(slug) > 1})
        _check(not twice, f"models: {', '.join(twice)} stands there twice")

    def model(self, slug: str) -> ModelSettings:
        """Settings of the key ``product.line.camera``; raises ``InputError`` naming the known ones."""
        for model in self.models:
            if model.key.slug == slug:
                return model
        known = ", ".join(model.key.slug for model in self.models)
        raise InputError(f"unknown model key {slug!r}; configured: {known}")


def _absolute(value: str, base: Path) -> str:
    if "://" in value:
        scheme, _, rest = value.partition(":///")
        if scheme == "sqlite" and not rest.startswith("/"):
            return f"sqlite:///{(base / rest).resolve()}"
        return value
    return str((base / value).resolve())


def _absolute_zero_shot(settings: ZeroShotSettings, base: Path) -> ZeroShotSettings:
    def place(value: str) -> str:
        return _absolute(value, base) if value else ""

    return replace(
        settings,
        clip_model=place(settings.clip_model) if settings.clip_model.endswith(".json") else settings.clip_model,
        clip_checkpoint=place(settings.clip_checkpoint),
        sam_checkpoint=place(settings.sam_checkpoint),
        intake=place(settings.intake),
        prompts={product: place(file) for product, file in settings.prompts.items()},
    )


def load_config(path: str | Path) -> PipelineConfig:
    """Read and check a configuration file.

    Args:
        path: The TOML file; relative paths in it are relative to its folder.

    Returns:
        The configuration with absolute paths.

    Raises:
        InputError: The file is missing, is no TOML, or a field does not fit; the message names it.
    """
    path = Path(path).resolve()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        config = from_json(PipelineConfig, raw, where=path.name)
    except FileNotFoundError:
        raise InputError(f"configuration file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise InputError(f"configuration file {path}: {error}") from error
    base = path.parent
    paths = config.paths
    return replace(
        config,
        paths=replace(
            paths,
            work_dir=_absolute(paths.work_dir, base),
            landing=_absolute(paths.landing, base),
            data_repo=_absolute(paths.data_repo, base),
            dvc_remote=_absolute(paths.dvc_remote, base),
        ),
        mlflow=replace(
            config.mlflow,
            tracking_uri=_absolute(config.mlflow.tracking_uri, base),
            artifact_root=_absolute(config.mlflow.artifact_root, base),
        ),
        promote=replace(
            config.promote,
            ledger=_absolute(config.promote.ledger, base) if config.promote.ledger else "",
            ledger_endpoint_url=config.promote.ledger_endpoint_url or paths.s3_endpoint_url,
        ),
        models=tuple(replace(model, golden=_absolute(model.golden, base)) for model in config.models),
        zero_shot=_absolute_zero_shot(config.zero_shot, base),
    )
