"""Configuration of the pipeline: one TOML file, read strictly into frozen dataclasses.

``infra/quickstart.toml`` carries every field with its default and a comment. Relative paths are relative to the
folder of the configuration file. Nothing heavy is imported here.
"""

import datetime as dt
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from components.config.checks import check, check_at_least, check_share
from components.config.notifications import AlertSettings, NotifySettings
from components.config.steps import (
    EvaluateSettings,
    ExportSettings,
    FineTuneSettings,
    GateSettings,
    ValidateSettings,
)
from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import ModelKey, from_json
from components.core.errors import InputError
from stlm.recipes import RECIPES

__all__ = [
    "AlertSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FineTuneSettings",
    "GateSettings",
    "MlflowSettings",
    "ModelSettings",
    "NotifySettings",
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


_GONE = {
    "promote.alias": "the champion's alias is `champion` for all; take the line away",
    "promote.require_approval": "name who decides in `approvers` of the model, and take the line away",
    "collect.manifest_name": "a lot's manifest is `manifest.json` for all; take the line away",
}
"""Settings of before, which were honoured in some places only -> what to do."""
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


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
        check_at_least(self, 0, "retries", "retry_delay_s")
        check(self.lease_s > 0, f"lease_s must be positive, got {self.lease_s}")
        check(self.lease_wait_s >= 0, f"lease_wait_s must not be negative, got {self.lease_wait_s}")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"timezone must be one like 'Europe/Berlin', got {self.timezone!r}") from None
        dt.date.fromisoformat(self.start_date)
        check(len(self.cron.split()) == 5, f"cron needs five fields, got {self.cron!r}")

    @property
    def start(self) -> dt.datetime:
        """Midnight of ``start_date`` where the factory is."""
        return dt.datetime.fromisoformat(self.start_date).replace(tzinfo=ZoneInfo(self.timezone))


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
        check(all(name.strip() for name in self.approvers), f"approvers must have names, got {self.approvers}")
        check(
            not set(":,") & set("".join(self.approvers)), f"approvers: no name holds ':' or ',', got {self.approvers}"
        )
        check(
            len(set(self.approvers)) == len(self.approvers), f"approvers: a name stands there twice: {self.approvers}"
        )
        check(self.approval_hours > 0, f"approval_hours must be positive, got {self.approval_hours}")
        check(self.shadow_nights >= 0, f"shadow_nights must not be negative, got {self.shadow_nights}")
        check_share(self, "shadow_min_agreement", "shadow_alarm_rate")
        check(self.recipe in RECIPES, f"recipe must be one of {', '.join(RECIPES)}, got {self.recipe!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteSettings:
    """Where the ledger is, and whose signature counts."""

    ledger: str = ""
    """Who was champion when, and why: a folder or ``s3://``; empty: ``<work_dir>/ledger``."""
    ledger_endpoint_url: str = ""
    """S3 server of the ledger; empty: ``paths.s3_endpoint_url``."""
    signing_key: str = ""
    """PEM file of the Ed25519 key that vouches for what is let in; empty: one made on first use below ``work_dir``."""
    trusted_keys: tuple[str, ...] = ()
    """PEM files of the public keys whose word counts; empty: the signing key's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """How much the page shows."""

    max_pictures: int = 8

    def __post_init__(self) -> None:
        check_at_least(self, 0, "max_pictures")


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
    validate: ValidateSettings = field(default_factory=ValidateSettings)
    fine_tune: FineTuneSettings = field(default_factory=FineTuneSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    promote: PromoteSettings = PromoteSettings()
    report: ReportSettings = ReportSettings()
    alerts: AlertSettings = field(default_factory=AlertSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    zero_shot: ZeroShotSettings = field(default_factory=ZeroShotSettings)

    def __post_init__(self) -> None:
        slugs = [model.key.slug for model in self.models]
        check(bool(slugs), "models: at least one [[models]] entry is needed")
        twice = sorted({slug for slug in slugs if slugs.count(slug) > 1})
        check(not twice, f"models: {', '.join(twice)} stands there twice")

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


def _is_set(raw: Mapping[str, Any], name: str) -> bool:
    table, _, field_name = name.partition(".")
    return isinstance(raw.get(table), dict) and field_name in raw[table]


def _with_password(value: Any, where: str = "") -> Iterator[str]:
    """Names of the settings whose addresses hold a password."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _with_password(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for item in value:
            yield from _with_password(item, where)
    elif isinstance(value, str) and _PASSWORD.search(value):
        yield where


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
        with_password = list(_with_password(raw))
        gone = [f"{name} is gone: {instead}" for name, instead in _GONE.items() if _is_set(raw, name)]
        check(not gone, "; ".join(gone))
        check(
            not with_password,
            f"{', '.join(with_password)}: an address with a password in it would be copied into inputs, records and "
            "logs; put it into the environment (PGPASSWORD, MLFLOW_TRACKING_PASSWORD, AWS_SECRET_ACCESS_KEY)",
        )
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
            signing_key=_absolute(config.promote.signing_key, base) if config.promote.signing_key else "",
            trusted_keys=tuple(_absolute(key, base) for key in config.promote.trusted_keys),
        ),
        models=tuple(replace(model, golden=_absolute(model.golden, base)) for model in config.models),
        zero_shot=_absolute_zero_shot(config.zero_shot, base),
    )
