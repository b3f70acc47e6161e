"""Contracts between the steps: small, frozen, strictly checked, and JSON on the wire.

Only the standard library and its like, ``stlm.strict_json``, are imported here, so that a DAG file or a command line
starts at once.
"""

import datetime as dt
import enum
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stlm.strict_json import canonical_json, digest_of, from_json, to_json

__all__ = [
    "ANCHOR_ALIAS",
    "CHAMPION_ALIAS",
    "Approval",
    "BatchRef",
    "CandidateRef",
    "Contract",
    "DatasetRef",
    "EvaluationRef",
    "Fence",
    "GateDecision",
    "ModelKey",
    "ModelRef",
    "NightStatus",
    "PackageRef",
    "Parent",
    "PromotionRef",
    "Reason",
    "ReportRef",
    "RollbackRef",
    "RunRef",
    "ShadowRef",
    "ValidationRef",
    "Verdict",
    "canonical_json",
    "digest_of",
    "from_json",
    "to_json",
]

CHAMPION_ALIAS = "champion"
"""Alias of the version that serves."""
ANCHOR_ALIAS = "anchor"
"""Alias of the best version that was ever approved."""
_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Contract:
    """Mix-in with nothing but the wire form; the dataclasses below say what is in it."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object of this contract."""
        return typing.cast("dict[str, Any]", to_json(self))

    @classmethod
    def from_json(cls, value: Any) -> typing.Self:
        """Checked inverse of :meth:`to_json`; raises ``ValueError`` naming the field."""
        return from_json(cls, value)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class ModelKey(Contract):
    """Whose model it is: one registered model, champion, threshold and golden set per key."""

    product: str
    line: str
    camera: str

    def __post_init__(self) -> None:
        for name in ("product", "line", "camera"):
            value = getattr(self, name)
            if not _SLUG.fullmatch(value):
                raise ValueError(f"{name} must be lower-case letters, digits, '-' or '_', got {value!r}")

    @property
    def slug(self) -> str:
        """``product.line.camera``: file-system, DAG-id and tag safe."""
        return f"{self.product}.{self.line}.{self.camera}"

    @property
    def path(self) -> str:
        """``product/line/camera``: the folder of this key in the landing zone and the data repository."""
        return f"{self.product}/{self.line}/{self.camera}"

    @property
    def registered_model(self) -> str:
        """Name of the registered model in MLflow."""
        return f"stlm.{self.slug}"

    @classmethod
    def parse(cls, slug: str) -> "ModelKey":
        """Inverse of :attr:`slug`; raises ``ValueError`` for anything else."""
        parts = slug.split(".")
        if len(parts) != 3:
            raise ValueError(f"a model key is product.line.camera, got {slug!r}")
        return cls(product=parts[0], line=parts[1], camera=parts[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef(Contract):
    """One night of one model key. Nothing in a step depends on the wall clock, only on this."""

    key: ModelKey
    partition: str
    """The night, ``YYYY-MM-DD``."""
    work_dir: str
    """Folder that every worker sees: step outputs, checkpoints and caches live below it."""
    backfill: str = ""
    """Name of the backfill that replays this night; empty for the night itself."""

    def __post_init__(self) -> None:
        if self.backfill and not _SLUG.fullmatch(self.backfill):
            raise ValueError(f"a backfill is named with lower-case letters, digits, '-' or '_', got {self.backfill!r}")
        if dt.date.fromisoformat(self.partition).isoformat() != self.partition:
            raise ValueError(f"partition must be YYYY-MM-DD, got {self.partition!r}")

    @property
    def state_dir(self) -> Path:
        """Where the nights of one lineage keep what they know: ``work_dir``, or a backfill's own folder below it."""
        return Path(self.work_dir, "backfill", self.key.slug, self.backfill) if self.backfill else Path(self.work_dir)

    @property
    def run_dir(self) -> Path:
        """``state_dir/runs/<key>/<partition>``."""
        return self.state_dir / "runs" / self.key.slug / self.partition


class Fence(typing.Protocol):
    """What a writer of a lineage shows before it writes."""

    @property
    def number(self) -> int:
        """Higher than that of everyone who held the lineage before."""
        ...

    def check_token(self, seen: int, where: str) -> None:
        """Return if the lineage is still held and ``where`` has seen no higher number than ``seen``, ours at most."""
        ...


class NightStatus(enum.Enum):
    """How collecting ended."""

    NEW_IMAGES = "NEW_IMAGES"
    NOTHING_NEW = "NOTHING_NEW"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRef(Contract):
    """A night's complete lots, copied and checked byte for byte.

    ``manifest_path`` is JSON: ``{"partition", "key", "lots": [{"lot", "date", "late", "images":
    [{"name", "bytes", "sha256"}]}]}``; the files lie at ``image_dir/<lot>/<name>``.
    """

    manifest_path: str
    image_dir: str
    digest: str
    """Digest of the manifest: the same images give the same digest on any machine."""
    num_lots: int
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRef(Contract):
    """The night's partition in the data repository."""

    repo: str
    revision: str
    """Full git commit of the data repository."""
    tag: str
    dvc_md5: str
    """md5 of the tracked ``data/`` folder at that commit, as in ``data.dvc``."""
    path: str
    """Folder of the partition inside the repository: ``data/<key.path>/<partition>``; lots are its sub-folders, and
    ``manifest.json`` beside them is the batch manifest."""
    digest: str
    """The batch digest that was versioned."""
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef(Contract):
    """A registered model version."""

    name: str
    version: int
    candidate_key: str
    package_dir: str
    """Local folder with the version's package (read-only)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent(Contract):
    """What a replayed night builds on, in place of the champion."""

    model: ModelRef | None
    """``None``: nothing, the first of a lineage from scratch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationRef(Contract):
    """Which images of the night may be learnt from, and why the others may not."""

    table_path: str
    """Parquet, one row per image; ``accepted`` (bool) and ``reasons`` (string, ``;``-separated) decide."""
    docs_path: str
    """Index page of Great Expectations' data docs."""
    digest: str
    num_accepted: int
    num_quarantined: int
    num_rejected: int
    """Images of lots that failed as a whole."""
    rejected_lots: tuple[str, ...]
    reasons: dict[str, int]
    """Reason -> number of images."""
    champion: ModelRef | None
    """The champion this night builds on, pinned here so that a re-run has the same parent; of a replayed night, the
    candidate of the night before."""
    anchor: ModelRef | None = None
    """The best version that was ever approved, pinned likewise; ``None`` before there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRef(Contract):
    """A trained model that nobody has judged yet."""

    package_dir: str
    """Holds ``model.safetensors``, ``config.json``, ``lineage.json`` and ``replay.json``."""
    candidate_key: str
    """sha256 over weights, data, code and configuration: the identity of the candidate."""
    weights_sha256: str
    parent_version: int | None
    num_steps: int
    num_new_images: int
    num_replay_images: int
    training_seconds: float
    curves_path: str
    """JSON: ``{"<stage>": [{"step", "<loss name>", ...}]}``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRef(Contract):
    """Champion and candidate measured in one run on one golden set."""

    report_path: str
    """JSON metrics with intervals, per model and stratum; layout in ``components/steps/evaluate/step.py``."""
    scores_path: str
    """``.npz`` with per-image scores and labels of both models; layout in ``components/steps/evaluate/step.py``."""
    digest: str
    """Digest of the report."""
    golden_digest: str
    candidate_key: str
    champion_version: int | None
    synthetic_pixels: bool
    """True where pixel metrics come from synthetic defects, because the golden set has no masks."""
    metrics: dict[str, float | None]
    """The candidate's point estimates, for people; ``None`` where undefined."""
    champion_metrics: dict[str, float | None]
    anchor_version: int | None = None
    """The anchor that was measured as well; may be the champion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageRef(Contract):
    """The candidate as it would be served."""

    package_dir: str
    """Adds ``model.onnx``, ``calibration.json`` and ``manifest.json`` (sha256 of every file)."""
    digest: str
    candidate_key: str
    max_score_difference: float
    num_decision_flips: int
    num_parity_images: int
    onnx_ms_per_image: float
    """Median over the parity images, taken in turns with the champion's."""
    size_bytes: int
    champion_ms_per_image: float | None = None
    """The same of the champion's file, in the same run; ``None`` where there is none to measure."""
    error: str = ""
    """Why there is no exported file, for the gate to refuse; the comparison is then over 0 images."""


class Verdict(enum.Enum):
    """What the gate says; only PROMOTE opens the way."""

    PROMOTE = "PROMOTE"
    REJECT = "REJECT"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason(Contract):
    """One rule of the gate and what it found."""

    rule: str
    verdict: Verdict
    """What this rule alone would say."""
    detail: str
    """A sentence with the numbers."""
    value: float | None = None
    limit: float | None = None
    detectable: float | None = None
    """Of a comparison: the smallest true difference that these images show in 80 % of all cases."""
    warning: bool = False
    """The rule is met, yet somebody should read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateDecision(Contract):
    """The verdict, with one reason per rule; bound to the candidate and to the champion it was judged against."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    candidate_key: str
    champion_version: int | None
    bootstrap: bool
    """True for the first model of a key, judged by floors alone."""
    evaluation_digest: str
    package_digest: str
    becomes_anchor: bool = False
    """True where the candidate is the best that was ever approved, for later candidates to be measured against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval(Contract):
    """What people said of one candidate, and of no other."""

    answer: typing.Literal["APPROVED", "REJECTED", "TIMED_OUT", "NOT_ASKED"]
    """``NOT_ASKED`` where the gate left nothing to decide."""
    candidate_key: str
    package_digest: str
    """Digest of the package that was asked about."""
    by: str = ""
    """Who answered, by the id in Airflow; empty where nobody did."""
    at: str = ""
    """ISO 8601."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionRef(Contract):
    """What the registry looks like afterwards."""

    outcome: typing.Literal[
        "PROMOTED", "ALREADY_PROMOTED", "REFUSED", "STALE_DECISION", "FROZEN", "CHALLENGER", "REPLAYED"
    ]
    """``CHALLENGER``: it passed, and is now scored beside the champion for some nights. ``REPLAYED``: a night of a
    backfill, whose candidate is registered and nothing else."""
    name: str
    version: int | None
    """The candidate's version, ``None`` when it was refused and not registered."""
    champion_version: int | None
    previous_version: int | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowRef(Contract):
    """What a night showed of the challenger."""

    outcome: typing.Literal["NO_CHALLENGER", "SCORED", "PROMOTED", "DROPPED", "HELD"]
    """``HELD``: it stood the test, but promotion is frozen."""
    challenger: int | None
    champion: int | None
    num_nights: int = 0
    """Nights on which it has been scored so far."""
    agreement: float | None = None
    """Share of all their images, and of the golden set, that both decided alike."""
    alarm_rate: float | None = None
    """Share of their normals that it called anomalous."""
    champion_alarm_rate: float | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RollbackRef(Contract):
    """What taking a model back came to."""

    outcome: typing.Literal["ROLLED_BACK", "ALREADY_THERE"]
    name: str
    champion_version: int
    from_version: int | None
    """The champion before; ``None`` where nothing was moved."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportRef(Contract):
    """The page a person reads in the morning."""

    page_path: str
    artifact_uri: str
    summary: dict[str, Any] = field(default_factory=dict)
