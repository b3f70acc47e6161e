"""Metrics beside Airflow's, by Airflow's own way: StatsD or OpenTelemetry, as its section ``[metrics]`` says.

Each figure goes out twice, like Airflow's: ``stlm.<name>`` with the tags product, line and camera, and
``stlm.<product>.<line>.<camera>.<name>`` for a plain StatsD, which knows no tags.
"""

import datetime as dt
import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats

from components.config import ModelSettings, PipelineConfig
from components.core.contracts import ModelKey, RunRef
from components.core.errors import TransientError

__all__ = ["night_ended", "step_ended"]

logger = logging.getLogger(__name__)

_SWITCHES = ("statsd_on", "statsd_datadog_enabled", "otel_on")


def step_ended(run: RunRef, step: str, outcome: str, seconds: float, outputs: Mapping[str, Any] | None) -> None:
    """Tell how a step went, and what it found.

    Args:
        run: The night; a replayed one is not counted.
        step: Its name.
        outcome: SUCCEEDED, FAILED or SKIPPED.
        seconds: How long it took.
        outputs: Its outputs as JSON, if it succeeded.
    """
    if run.backfill:
        return
    _gauge(run.key, f"steps.{step}.seconds", seconds)
    _count(run.key, f"steps.{step}.{outcome.lower()}")
    if outputs is None:
        return
    for name, value in _figures(step, outputs).items():
        _gauge(run.key, name, value)
    if step == "gate":
        _count(run.key, f"verdicts.{outputs['verdict'].lower()}")


def _figures(step: str, outputs: Mapping[str, Any]) -> dict[str, float]:
    if step == "collect":
        return {"images.taken": (outputs["batch"] or {}).get("num_images", 0)}
    if step == "validate":
        counts = {name: outputs[f"num_{name}"] for name in ("accepted", "quarantined", "rejected")}
        share = counts["quarantined"] / max(1, sum(counts.values()))
        return {f"images.{name}": count for name, count in counts.items()} | {"images.quarantined_share": share}
    if step == "fine_tune":
        return {"training.seconds": outputs["training_seconds"], "training.steps": outputs["num_steps"]}
    if step == "evaluate" and outputs["metrics"].get("image_auroc") is not None:
        return {"candidate.image_auroc": outputs["metrics"]["image_auroc"]}
    return {}


def night_ended(config: PipelineConfig, model: ModelSettings, run: RunRef, outcome: str, now: dt.datetime) -> None:
    """Tell how old the champion is, and how many nights in a row failed or were skipped.

    Args:
        config: The configuration.
        model: The key's entry in it.
        run: The night.
        outcome: How it ended, in the word of its page.
        now: The time, with its zone.
    """
    if not any(conf.getboolean("metrics", switch, fallback=False) for switch in _SWITCHES):
        return  # looking it up would cost a moment for nothing
    from components.notifications.outcomes import failure_streak
    from components.promotion.alias_transaction import open_alias_manager
    from components.promotion.champion_state import replay_ledger

    try:
        _gauge(run.key, "nights.bad_in_a_row", len(failure_streak(run, outcome, config.alerts)))
        manager = open_alias_manager(model.key, work_dir=run.work_dir, mlflow=config.mlflow, settings=config.promote)
        state = replay_ledger(manager.snapshot()[0].entries)
    except (ValueError, TransientError) as error:  # a record or the ledger; the night is what it is
        logger.warning("row of bad nights or age of the champion unknown: %s", error)
        return
    since = state.commits.get(state.champion or 0)
    if since is not None:
        _gauge(run.key, "champion.age_seconds", round((now - since.time).total_seconds()))


def _gauge(key: ModelKey, name: str, value: float) -> None:
    stats.gauge(f"stlm.{name}", value, tags=_tags(key))
    stats.gauge(f"stlm.{key.slug}.{name}", value)


def _count(key: ModelKey, name: str) -> None:
    stats.incr(f"stlm.{name}", tags=_tags(key))
    stats.incr(f"stlm.{key.slug}.{name}")


def _tags(key: ModelKey) -> dict[str, str]:
    return {"product": key.product, "line": key.line, "camera": key.camera}
