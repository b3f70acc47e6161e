"""Shadow: a challenger that passed the gate is scored beside the champion on new nights before it may serve.

What a night showed is an entry of the ledger, so that nothing else needs to be kept: the challenger, its nights and
their figures are what the ledger says since the entry that made it one. After enough nights it is promoted if both
models decided alike on a large enough share of all images (the nights' accepted normals, and the golden set once) and
it alarmed on a small enough share of the normals; otherwise it is dropped, with the reason. It is dropped as well
where another champion came meanwhile, against which it was not judged.

The normals were accepted by the validation, which screens with the champion: its own alarms among them are fewer than
on the line. The limit is therefore on the challenger's rate, not on the difference.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.adapters.data_repository import DataRepository
from components.adapters.lease import Clock, utc_now
from components.adapters.ledger import Entry
from components.config import MlflowSettings, PromoteSettings
from components.core.contracts import DatasetRef, RunRef, ShadowRef, ValidationRef
from components.core.errors import InputError
from components.promotion.alias_transaction import AliasManager, open_alias_manager
from components.promotion.champion_state import ChampionState, replay_ledger, version_label
from components.promotion.registration import check_version
from components.promotion.takeover import promote_version
from stlm.data.layout import read_golden_set
from stlm.errors import DataError, WeightsError
from stlm.serving.predictor import OnnxPredictor, predict_files

__all__ = ["ShadowInputs", "shadow"]

logger = logging.getLogger(__name__)

_WHO = "shadow"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowInputs:
    """A night's new normals, and the limits."""

    run: RunRef
    dataset: DatasetRef
    validation: ValidationRef
    dvc_remote: str
    s3_endpoint_url: str
    golden: str
    mlflow: MlflowSettings
    settings: PromoteSettings
    nights: int
    """After so many nights it is decided."""
    min_agreement: float
    max_alarm_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Figures:
    """Counts; they add up over the nights."""

    num_normals: int = 0
    num_agreed: int = 0
    num_alarms: int = 0
    num_champion_alarms: int = 0
    num_golden: int = 0
    num_golden_agreed: int = 0


def shadow(inputs: ShadowInputs, *, clock: Clock = utc_now) -> ShadowRef:
    """Score the challenger on this night, once, and decide after the last one.

    Args:
        inputs: The night and the limits.
        clock: The clock of the lease and of the ledger's entries.

    Returns:
        What became of the challenger; run again, the same.

    Raises:
        InputError: The challenger or the champion does not load, an image cannot be read, or the ledger is broken.
        TransientError: MLflow, the ledger or the images cannot be reached.
    """
    run, settings = inputs.run, inputs.settings
    manager = open_alias_manager(run.key, work_dir=run.work_dir, mlflow=inputs.mlflow, settings=settings, clock=clock)
    entries = manager.snapshot()[0].entries
    state = replay_ledger(entries)
    if state.challenger is None:
        return _ended(entries, state, run.partition)
    result = _night(inputs, manager, state, state.challenger)
    logger.info("step=shadow outcome=%s challenger=%s %s", result.outcome, result.challenger, result.detail)
    return result


def _ended(entries: Sequence[Entry], state: ChampionState, partition: str) -> ShadowRef:
    """What became of the challenger that this night was the last one of, if it was: the night may be run again."""
    nothing = ShadowRef(outcome="NO_CHALLENGER", challenger=None, champion=state.champion)
    scored = [entry for entry in entries if entry.kind == "shadow" and entry.body["partition"] == partition]
    if not scored:
        return nothing
    version = int(scored[-1].body["version"])
    commit, dropped = state.commits.get(version), state.dropped.get(version)
    if commit is not None and commit.body["record"].get("shadow", {}).get("nights", [])[-1:] == [partition]:
        figures = dict(commit.body["record"]["shadow"])
        return ShadowRef(
            outcome="PROMOTED",
            challenger=version,
            champion=state.champion,
            num_nights=len(figures.pop("nights")),
            detail=str(commit.body["reason"]),
            **figures,
        )
    if dropped is not None:
        detail = f"version {version} is challenger no more: {dropped.body['reason']}"
        return replace(nothing, outcome="DROPPED", challenger=version, detail=detail)
    return nothing


def _night(inputs: ShadowInputs, manager: AliasManager, state: ChampionState, version: int) -> ShadowRef:
    assert state.challenge is not None
    judged_against = state.challenge.body["judged_against"]
    if state.champion != judged_against:
        against = (
            f"it was judged against {version_label(judged_against)}, the champion is {version_label(state.champion)}"
        )
        return _drop(manager, state, version, against)
    began = str(state.challenge.body["record"]["partition"])
    known = {entry.body["partition"] for entry in state.shadows}
    # The night that made it challenger taught it; a night that is run again was counted.
    if inputs.run.partition > began and inputs.run.partition not in known:
        figures = _score(inputs, manager, version, judged_against)
        state = _note(manager, state, version, inputs.run.partition, figures)
    if state.challenger != version or len(state.shadows) < inputs.nights:
        return _ref("SCORED", state, version)
    return _decide(inputs, manager, state, version)


def _decide(inputs: ShadowInputs, manager: AliasManager, state: ChampionState, version: int) -> ShadowRef:
    assert state.challenge is not None
    found = _ref("SCORED", state, version)
    assert found.agreement is not None
    assert found.alarm_rate is not None
    wrong = []
    if found.agreement < inputs.min_agreement:
        wrong.append(
            f"it decided {found.agreement:.1%} of the images as the champion does, below {inputs.min_agreement:.1%}"
        )
    if found.alarm_rate > inputs.max_alarm_rate:
        wrong.append(f"it alarmed on {found.alarm_rate:.1%} of the normals, above {inputs.max_alarm_rate:.1%}")
    if wrong:
        return _drop(manager, state, version, "; ".join(wrong))
    check_version(manager, version, scores_needed=True)
    body = state.challenge.body
    record: dict[str, Any] = dict(body["record"])
    record["shadow"] = {
        "nights": [entry.body["partition"] for entry in state.shadows],
        "agreement": found.agreement,
        "alarm_rate": found.alarm_rate,
        "champion_alarm_rate": found.champion_alarm_rate,
    }
    outcome = promote_version(
        manager,
        version,
        judged_against=body["judged_against"],
        becomes_anchor=bool(record["verdict"]["becomes_anchor"]),
        by=str(body["by"]),
        reason=f"verdict PROMOTE, and {found.detail}",
        record=record,
    )
    if outcome.outcome == "FROZEN":
        return _ref("HELD", state, version, detail=outcome.detail)
    if outcome.outcome == "STALE_DECISION":
        return _drop(manager, state, version, outcome.detail)
    return _ref("PROMOTED", state, version, champion=outcome.champion_version)


def _ref(
    outcome: Any, state: ChampionState, version: int, *, champion: int | None = None, detail: str = ""
) -> ShadowRef:
    """The challenger's figures over its nights; the golden set counts once, as it is the same every night."""
    sums = {name: sum(int(entry.body[name]) for entry in state.shadows) for name in _Figures.__dataclass_fields__}
    num_nights, normals = len(state.shadows), sums["num_normals"]
    num_images = normals + (sums["num_golden"] // num_nights if num_nights else 0)
    agreed = sums["num_agreed"] + (sums["num_golden_agreed"] // num_nights if num_nights else 0)
    found = ShadowRef(
        outcome=outcome,
        challenger=version,
        champion=state.champion if champion is None else champion,
        num_nights=num_nights,
        agreement=agreed / num_images if num_images else None,
        alarm_rate=sums["num_alarms"] / normals if normals else None,
        champion_alarm_rate=sums["num_champion_alarms"] / normals if normals else None,
        detail=detail,
    )
    if detail or found.agreement is None or found.alarm_rate is None:
        return found
    said = (
        f"{num_nights} shadow nights: {found.agreement:.1%} of {num_images} images decided as by the champion, "
        f"alarms on {found.alarm_rate:.1%} of {normals} normals (champion {found.champion_alarm_rate:.1%})"
    )
    return replace(found, detail=said)


def _note(manager: AliasManager, seen: ChampionState, version: int, partition: str, figures: _Figures) -> ChampionState:
    """Write the night down, unless somebody did or the challenger changed meanwhile."""
    with manager.transaction(f"shadow {partition}") as transaction:
        now = transaction.state
        same = (now.challenger, now.champion) == (version, seen.champion)
        if same and partition not in {entry.body["partition"] for entry in now.shadows}:
            counts = {name: getattr(figures, name) for name in _Figures.__dataclass_fields__}
            transaction.note(
                "shadow",
                by=_WHO,
                reason=f"night {partition}: {figures.num_alarms} alarms on {figures.num_normals} normals",
                facts={"version": version, "partition": partition, **counts},
            )
        return transaction.state


def _drop(manager: AliasManager, seen: ChampionState, version: int, reason: str) -> ShadowRef:
    with manager.transaction(f"drop version {version}") as transaction:
        if transaction.state.challenger == version:
            transaction.note("drop", by=_WHO, reason=reason, facts={"version": version})
    return _ref("DROPPED", seen, version, detail=f"version {version} is challenger no more: {reason}")


def _score(inputs: ShadowInputs, manager: AliasManager, version: int, champion: int) -> _Figures:
    """Both models' exported files on the night's accepted normals and on the golden set."""
    try:
        models = [
            OnnxPredictor(manager.registry.version(manager.key, number).package_dir) for number in (version, champion)
        ]
        ours, theirs = (_labels(model, _normals(inputs)) for model in models)
        golden = [item.path for item in read_golden_set(Path(inputs.golden)).items]
        our_golden, their_golden = (_labels(model, golden) for model in models)
    except (DataError, WeightsError) as error:
        raise InputError(f"shadow of version {version}: {error}") from error
    return _Figures(
        num_normals=len(ours),
        num_agreed=int((ours == theirs).sum()),
        num_alarms=int(ours.sum()),
        num_champion_alarms=int(theirs.sum()),
        num_golden=len(our_golden),
        num_golden_agreed=int((our_golden == their_golden).sum()),
    )


def _normals(inputs: ShadowInputs) -> list[Path]:
    """The night's accepted images, brought from the data repository where they are not at hand."""
    table = pd.read_parquet(inputs.validation.table_path)
    rows = table[table["accepted"]]
    names = [f"{inputs.dataset.path}/{lot}/{name}" for lot, name in zip(rows["lot"], rows["name"], strict=True)]
    if not names:
        raise InputError(f"night {inputs.run.partition}: no image was accepted")
    into = inputs.run.run_dir / "shadow" / "images"
    missing = sorted(name for name in names if not (into / name).exists())
    if missing:
        repository = DataRepository(Path(inputs.dataset.repo), inputs.dvc_remote, inputs.s3_endpoint_url)
        repository.fetch(inputs.dataset.revision, missing, into)
    return [into / name for name in names]


def _labels(model: OnnxPredictor, paths: Sequence[Path]) -> NDArray[np.int64]:
    """1 where anomalous at the package's own threshold."""
    return np.array([found.label for found in predict_files(model, paths)], dtype=np.int64)
