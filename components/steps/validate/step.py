"""Validate: the night's images -> those that may be learnt from, and why the others may not.

Five Great Expectations suites, each over what the one before has left: the *lots* (key, name, date, files), the
*content* of each picture, its *identity* (doubles within the night, of history, of the golden set), the *screening* for
defective parts among the supposed normals (with CLIP's *second opinion*, where that is switched on), and the *counts*
of each lot. A broken per-image expectation (severity warning) quarantines the image; a broken per-lot one (critical)
rejects the lot, and the night goes on with the others.

The step folder keeps::

    images.parquet           one row per image: facts, doubles, scores, ``accepted`` and ``reasons``
    data_docs/index.html     Great Expectations' pages
    quarantine/<lot>/<name>  the quarantined files, and quarantine/quarantine.csv
"""

import datetime as dt
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from components.adapters.data_repository import DataRepository
from components.adapters.mlflow.registry import open_registry
from components.config import MlflowSettings, ValidateSettings
from components.config.zero_shot import ZeroShotSettings
from components.core.contracts import (
    ANCHOR_ALIAS,
    Contract,
    DatasetRef,
    ModelRef,
    Parent,
    RunRef,
    ValidationRef,
    digest_of,
)
from components.core.errors import InputError
from components.core.step_runner import run_once
from components.image_index import golden_index, history_index, write_index, write_table
from components.steps.validate.clip_check import clip_check
from components.steps.validate.duplicates import find_duplicates
from components.steps.validate.offline_docs import make_offline
from components.steps.validate.quarantine import write_quarantine
from components.steps.validate.screening import screen
from components.steps.validate.suites import (
    ValidationRun,
    Violation,
    clip_check_suite,
    content_suite,
    counts_suite,
    identity_suite,
    lots_suite,
    screening_suite,
)
from stlm.data.facts import ImageFacts, read_facts

__all__ = ["ValidateInputs", "validate"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateInputs(Contract):
    """The night, and what it is held against."""

    run: RunRef
    dataset: DatasetRef
    dvc_remote: str
    """A folder or ``s3://bucket/prefix``."""
    golden: str
    """Golden set in MVTec layout: none of its images may be learnt from."""
    mlflow: MlflowSettings
    s3_endpoint_url: str = ""
    settings: ValidateSettings = field(default_factory=ValidateSettings)
    zero_shot: ZeroShotSettings = field(default_factory=ZeroShotSettings)
    """Asked for a second opinion, where that is switched on."""
    parent: Parent | None = None
    """Of a replayed night: what it builds on. The registry is not asked then."""


def validate(inputs: ValidateInputs) -> ValidationRef:
    """Check the night's images one by one and lot by lot; quarantine, reject, and pin the champion.

    Args:
        inputs: The night.

    Returns:
        The table with its decisions; a re-run with the same inputs gives the same.

    Raises:
        InputError: No image is left, or the golden set is unreadable; all findings are listed.
        TransientError: The DVC remote or MLflow cannot be reached.
    """
    return run_once("validate", inputs, ValidationRef, _validate)


def _validate(inputs: ValidateInputs, folder: Path) -> ValidationRef:
    settings, run = inputs.settings, inputs.run
    champion, anchor = _pinned(inputs)
    fetched = folder / "fetched"
    repository = DataRepository(Path(inputs.dataset.repo), inputs.dvc_remote, inputs.s3_endpoint_url)
    repository.fetch(inputs.dataset.revision, [inputs.dataset.path], fetched)
    night = NightTables.read(fetched / inputs.dataset.path, inputs)
    docs = folder / "data_docs"
    shutil.rmtree(docs, ignore_errors=True)
    inspection = ValidationRun(docs, run.partition)

    night.add_lot_violations(inspection.check("lots", night.lots, lots_suite(run.key.slug, settings)))
    night.add_image_violations(
        inspection.check("content", night.images, content_suite(night.sizes(settings), settings))
    )
    history = history_index(run)
    golden = golden_index(run, inputs.golden, max_pixels=settings.max_pixels)
    doubles = find_duplicates(night.eligible(), history, golden, max_bits=settings.near_duplicate_bits)
    night.images = night.images.join(doubles)
    night.add_image_violations(inspection.check("identity", night.images, identity_suite()))
    night.images = night.images.join(screen(night.eligible(), night.folder, champion, settings))
    night.add_image_violations(inspection.check("screening", night.images, screening_suite()))
    if inputs.zero_shot.second_opinion:
        night.images = night.images.join(clip_check(night.eligible(), night.folder, run, inputs.zero_shot))
        night.add_image_violations(inspection.check("second opinion", night.images, clip_check_suite()))
    night.add_lot_violations(inspection.check("counts", night.count(), counts_suite(settings)))
    make_offline(docs)
    validation = _write(inputs, folder, night, champion, inspection.index_page)
    return replace(validation, anchor=anchor)


def _pinned(inputs: ValidateInputs) -> tuple[ModelRef | None, ModelRef | None]:
    """What the night builds on, and the anchor."""
    if inputs.parent is not None:
        return inputs.parent.model, None
    registry = open_registry(inputs.mlflow, inputs.run)
    key = inputs.run.key
    return registry.champion(key), registry.champion(key, ANCHOR_ALIAS)


class NightTables:
    """The tables under judgement; ``row`` is the name of a row in both."""

    def __init__(self, *, folder: Path, lots: pd.DataFrame, images: pd.DataFrame) -> None:
        self.folder = folder
        self.lots = lots
        self.images = images
        self.image_findings: dict[int, list[str]] = {row: [] for row in images["row"]}
        self.lot_findings: dict[int, list[str]] = {row: [] for row in lots["row"]}

    @classmethod
    def read(cls, folder: Path, inputs: ValidateInputs) -> "NightTables":
        """The batch manifest, and the facts of every file that it lists."""
        path = folder / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            listed = [
                (
                    str(lot["lot"]),
                    str(lot["date"]),
                    bool(lot["late"]),
                    str(image["name"]),
                    str(image.get("part", "")),
                )
                for lot in manifest["lots"]
                for image in lot["images"]
            ]
            lots = [(str(lot["lot"]), str(lot["date"]), len(lot["images"])) for lot in manifest["lots"]]
            night = dt.date.fromisoformat(inputs.run.partition)
            ages = [(night - dt.date.fromisoformat(date)).days for _, date, _ in lots]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"batch manifest {path} cannot be read: {error!r}") from error
        listed.sort(key=lambda item: (item[1], item[0], item[3]))
        files = [folder / lot / name for lot, _, _, name, _ in listed]
        facts = read_facts(files, max_pixels=inputs.settings.max_pixels)
        images = _image_table(listed, facts, night)
        missing = Counter(lot for (lot, *_), file in zip(listed, files, strict=True) if not file.exists())
        table = pd.DataFrame(
            {
                "row": range(len(lots)),
                "lot": [lot or None for lot, _, _ in lots],
                "key": manifest.get("key"),
                "date": [date for _, date, _ in lots],
                "age_days": ages,
                "num_listed": [num for _, _, num in lots],
                "num_missing": [missing[lot] for lot, _, _ in lots],
            }
        )
        return cls(folder=folder, lots=table, images=images)

    def sizes(self, settings: ValidateSettings) -> list[str]:
        """Accepted sizes as they stand in the table; none where any will do."""
        if settings.any_size:
            return []
        if settings.sizes:
            return [f"{height} x {width}" for height, width in settings.sizes]
        # The smaller one of two equally frequent sizes: the same on every machine.
        return sorted(self.images["size"].dropna().mode())[:1]

    def add_image_violations(self, findings: Iterable[Violation]) -> None:
        """Note the findings of a per-image suite."""
        for finding in findings:
            for row in finding.rows:
                self.image_findings[row].append(finding.reason)

    def add_lot_violations(self, findings: Iterable[Violation]) -> None:
        """Note the findings of a per-lot suite; one without a row concerns all lots."""
        for finding in findings:
            for row in finding.rows or self.lot_findings:
                self.lot_findings[row].append(finding.reason)

    def _rejected(self) -> dict[str, str]:
        """Rejected lots and why."""
        names = dict(zip(self.lots["row"], self.lots["lot"], strict=True))
        return {str(names[row]): ", ".join(found) for row, found in self.lot_findings.items() if found}

    def eligible(self) -> pd.DataFrame:
        """Images with no finding so far, in lots with none."""
        clean = ~self.images["row"].map(self.image_findings).astype(bool)
        return self.images[clean & ~self.images["lot"].isin(list(self._rejected()))]

    def count(self) -> pd.DataFrame:
        """The table of lots with what is left of each; lots already rejected are not counted again."""
        found = self.images["row"].map(self.image_findings).astype(bool)
        quarantined = found.groupby(self.images["lot"]).sum()
        table = self.lots.copy()
        table["num_quarantined"] = table["lot"].map(quarantined).fillna(0).astype(int)
        table["num_accepted"] = table["num_listed"] - table["num_quarantined"]
        table["quarantined_share"] = table["num_quarantined"] / table["num_listed"].clip(lower=1)
        return table[~table["lot"].isin(list(self._rejected()))]

    def decide(self) -> tuple[pd.DataFrame, dict[str, str]]:
        """The table of images with ``accepted``, ``rejected`` and ``reasons``; and the rejected lots with theirs."""
        rejected = self._rejected()
        table = self.images.drop(columns="row")
        table["rejected"] = table["lot"].isin(list(rejected))
        own = self.images["row"].map(self.image_findings)
        whole = self.images["lot"].map(lambda lot: [f"lot rejected: {rejected[lot]}"] if lot in rejected else [])
        table["reasons"] = [";".join([*mine, *lots]) for mine, lots in zip(own, whole, strict=True)]
        table["accepted"] = table["reasons"] == ""
        return table, rejected


def _image_table(
    listed: list[tuple[str, str, bool, str, str]], facts: list[ImageFacts], night: dt.date
) -> pd.DataFrame:
    names = pd.DataFrame(listed, columns=["lot", "lot_date", "late", "name", "part"])
    measured = pd.DataFrame([asdict(fact) for fact in facts], columns=list(ImageFacts.__dataclass_fields__))
    table = pd.concat([names, measured], axis=1)
    for column in ("bit_depth", "height", "width", "brightness", "sharpness", "entropy_bits"):
        # A night of nothing but broken files would leave columns without a type.
        table[column] = table[column].astype("float64")
    table.insert(0, "row", range(len(table)))
    table.insert(1, "image", table["lot"] + "/" + table["name"])
    table["size"] = [
        None if pd.isna(height) else f"{int(height)} x {int(width)}"
        for height, width in zip(table["height"], table["width"], strict=True)
    ]
    table["shorter_side"] = table[["height", "width"]].min(axis=1)
    table["relative_sharpness"] = table["sharpness"] / table["sharpness"].median()
    table["taken_days"] = pd.Series(
        [
            (night - dt.datetime.fromisoformat(taken).date()).days if isinstance(taken, str) else None
            for taken in table["taken_at"]
        ],
        dtype="float64",
    )
    return table


def _write(
    inputs: ValidateInputs, folder: Path, night: NightTables, champion: ModelRef | None, docs: Path
) -> ValidationRef:
    """Everything a reader may want, the index of history last; then the fetched files are no longer needed."""
    table, rejected = night.decide()
    doubles = [column for column in table.columns if column.startswith(("same_in_", "near_in_"))]
    table["double_of"] = table[doubles].bfill(axis=1).iloc[:, 0] if doubles else None
    write_table(folder / "images.parquet", table)
    quarantined = table[~table["accepted"] & ~table["rejected"]]
    write_quarantine(folder / "quarantine", night.folder, quarantined)
    accepted = table[table["accepted"]]
    reasons = Counter(reason for text in table["reasons"] for reason in text.split(";") if reason)
    logger.info(
        "validate key=%s partition=%s accepted=%d quarantined=%d rejected=%d reasons=%s",
        inputs.run.key.slug, inputs.run.partition, len(accepted), len(quarantined), int(table["rejected"].sum()),
        dict(reasons),
    )  # fmt: skip
    if accepted.empty:
        raise InputError(_nothing_left(inputs, table, rejected, docs))
    write_index(inputs.run, accepted)
    shutil.rmtree(folder / "fetched")
    decisions = table[["image", "sha256", "accepted", "reasons"]].values.tolist()
    return ValidationRef(
        table_path=str(folder / "images.parquet"),
        docs_path=str(docs),
        digest=digest_of({"decisions": decisions, "champion": champion.version if champion else None}),
        num_accepted=len(accepted),
        num_quarantined=len(quarantined),
        num_rejected=int(table["rejected"].sum()),
        rejected_lots=tuple(sorted(rejected)),
        reasons=dict(sorted(reasons.items())),
        champion=champion,
    )


def _nothing_left(inputs: ValidateInputs, table: pd.DataFrame, rejected: dict[str, str], docs: Path) -> str:
    lots = []
    for lot, why in sorted(rejected.items()):
        found = Counter(
            reason
            for text in table.loc[table["lot"] == lot, "reasons"]
            for reason in text.split(";")
            if reason and not reason.startswith("lot rejected")
        )
        images = ", ".join(f"{reason} ({num})" for reason, num in sorted(found.items()))
        lots.append(f"lot {lot}: {why}" + (f"; images: {images}" if images else ""))
    return (
        f"{inputs.dataset.path} at {inputs.dataset.revision[:12]}: no image may be learnt from, expected at least "
        f"{inputs.settings.min_images} in a lot; {' | '.join(lots)}; data docs: {docs}"
    )
