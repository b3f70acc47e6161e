"""Rescoring of old candidates and the champion on today's golden set, beside the figures of their own night.

``<work_dir>/evaluations/<key>/<digest>/`` keeps ``scores.json`` and ``scores.html``; the digest is over the packages,
the golden set and the settings, so that the same question is answered at once.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment

from components.adapters.mlflow.registry import open_registry
from components.backfill.chain import data_repository, has_registry
from components.config import EvaluateSettings, ModelSettings, PipelineConfig
from components.core.atomic_files import write_file, write_json
from components.core.contracts import Contract, RunRef, digest_of, from_json
from components.core.errors import InputError
from components.core.run_records import nights, read_night
from components.steps.evaluate.held_out import seed_of
from components.steps.evaluate.measuring import golden_record, load_package, measure, stored_calibration
from stlm.comparison import Resamples, compare
from stlm.data.layout import GoldenSet, read_golden_set
from stlm.data.pixel_set import PixelSet, golden_pixels
from stlm.errors import StlmError
from stlm.metrics import resample_counts, units_of
from stlm.serving.package import verify_package

__all__ = ["METRICS", "Estimate", "OldScore", "OldScores", "rescore"]

logger = logging.getLogger(__name__)

METRICS = {
    "image_auroc": "image AUROC",
    "false_alarm_rate_at_recall": "false alarms at recall",
    "false_alarm_rate": "false alarms",
    "recall": "recall",
    "pixel_auroc": "pixel AUROC",
    "pro": "PRO",
}
"""Metric -> its name for people; the columns of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate(Contract):
    """A metric today; all ``None`` where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OldScore(Contract):
    """One night's candidate."""

    night: str
    """The night; of the last row, where there is a champion, ``champion v<version>``."""
    package_dir: str
    digest: str
    """Of the package."""
    verdict_then: str
    image_auroc_then: float | None
    same_golden_set: bool
    """Whether it was judged on today's golden set then."""
    metrics: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class OldScores(Contract):
    """The table."""

    key: str
    golden_digest: str
    num_good: int
    num_defective: int
    rows: tuple[OldScore, ...]
    missing: tuple[str, ...]
    """Sentences on nights without a candidate to score."""
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    night: str
    package: Path
    digest: str
    image_size: tuple[int, int]
    verdict: str = ""
    image_auroc: float | None = None


def rescore(config: PipelineConfig, model: ModelSettings, first: str, last: str) -> OldScores:
    """Score the candidates of the nights from ``first`` to ``last`` on today's golden set.

    Args:
        config: The configuration.
        model: The key's entry in it.
        first: The first night.
        last: The last night.

    Returns:
        The table.

    Raises:
        InputError: No night has a candidate, or the golden set is unreadable.
        TransientError: The registry cannot be reached.
    """
    found, missing = _candidates(config, model, first, last)
    if not found:
        why = "; ".join(missing) or "no such night has begun"
        raise InputError(f"no candidate of {model.key.slug} from {first} to {last} is left to score: {why}")
    try:
        found += _champion(config, model, last)
        golden = read_golden_set(Path(model.golden))
        settings = config.evaluate
        question = {"packages": [one.digest for one in found], "golden": golden.digest, "settings": settings}
        nights_asked = [one.night for one in found]
        digest = digest_of(question | {"nights": nights_asked, "missing": missing})[:16]
        folder = Path(config.paths.work_dir) / "evaluations" / model.key.slug / digest
        done = folder / "scores.json"
        if done.exists():
            return from_json(OldScores, json.loads(done.read_text(encoding="utf-8")), where=str(done))
        sizes = [one.image_size for one in found]
        pixel_set = golden_pixels(golden, num_synthetic=settings.num_synthetic, map_sizes=sizes)
        rows = tuple(_scored(one, golden, pixel_set, settings) for one in found)
    except StlmError as error:
        raise InputError(f"golden set {model.golden} or a package: {error}") from error
    num_defective = sum(item.defect != "good" for item in golden.items)
    scores = OldScores(
        key=model.key.slug,
        golden_digest=golden.digest,
        num_good=len(golden.items) - num_defective,
        num_defective=num_defective,
        rows=rows,
        missing=tuple(missing),
        folder=str(folder),
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_page(folder / "scores.html", scores)
    write_json(done, scores)
    return scores


def _candidates(
    config: PipelineConfig, model: ModelSettings, first: str, last: str
) -> tuple[list[_Candidate], list[str]]:
    """Sealed packages of the nights: from their records, else from the registry."""
    registered = _registered(config, model)
    begun = {run.partition for run in nights(config.paths.work_dir, model.key)}
    known = sorted(begun | set(registered) | set(data_repository(config).nights(model.key)))
    found: list[_Candidate] = []
    missing: list[str] = []
    for night in known:
        if not first <= night <= last:
            continue
        run = RunRef(key=model.key, partition=night, work_dir=config.paths.work_dir)
        records = read_night(run)
        outputs = {step: record.outputs or {} for step, record in records.items()}
        package = str(outputs.get("export", {}).get("package_dir", ""))
        try:
            if not (package and Path(package).is_dir()):
                if night not in registered:
                    missing.append(f"night {night} has no candidate")
                    continue
                package = open_registry(config.mlflow, run).version(model.key, registered[night]).package_dir
            candidate = _candidate(night, Path(package), config.evaluate)
        except (StlmError, InputError) as error:
            missing.append(f"night {night}: {error}")
            continue
        verdict = str(outputs.get("gate", {}).get("verdict", ""))
        image_auroc = outputs.get("evaluate", {}).get("metrics", {}).get("image_auroc")
        found.append(replace(candidate, verdict=verdict, image_auroc=image_auroc))
    return found, missing


def _registered(config: PipelineConfig, model: ModelSettings) -> dict[str, int]:
    """Night -> its newest version; replayed ones do not count."""
    if not has_registry(config):
        return {}
    run = RunRef(key=model.key, partition="2000-01-01", work_dir=config.paths.work_dir)
    versions = open_registry(config.mlflow, run).versions(model.key)
    return {
        tags["stlm.partition"]: number
        for number, tags in sorted(versions.items())
        if "stlm.partition" in tags and "stlm.backfill" not in tags
    }


def _champion(config: PipelineConfig, model: ModelSettings, last: str) -> list[_Candidate]:
    """What serves now, to compare with; none where nothing does."""
    if not has_registry(config):
        return []
    run = RunRef(key=model.key, partition=last, work_dir=config.paths.work_dir)
    champion = open_registry(config.mlflow, run).champion(model.key)
    if champion is None:
        return []
    return [_candidate(f"champion v{champion.version}", Path(champion.package_dir), config.evaluate)]


def _candidate(night: str, package: Path, settings: EvaluateSettings) -> _Candidate:
    image_size = load_package(package, settings).image_size
    return _Candidate(night=night, package=package, digest=verify_package(package), image_size=image_size)


def _scored(one: _Candidate, golden: GoldenSet, pixel_set: PixelSet, settings: EvaluateSettings) -> OldScore:
    calibration = stored_calibration(one.package)
    measured = measure(one.night, load_package(one.package, settings), calibration, golden, pixel_set, settings)
    # The same draws for every night, so that the rows can be compared with each other.
    figures = compare(measured.figures, None, _resamples(golden, pixel_set, settings))["candidate"]
    logger.info("evaluate-only night=%s", one.night)
    return OldScore(
        night=one.night,
        package_dir=str(one.package),
        digest=one.digest,
        verdict_then=one.verdict,
        image_auroc_then=one.image_auroc,
        same_golden_set=golden_record(one.package) == golden.digest,
        metrics={name: _estimate(figures[name]) for name in METRICS if name in figures},
    )


def _estimate(figure: dict[str, object]) -> Estimate:
    value, interval = figure.get("value"), figure.get("interval")
    low, high = interval if isinstance(interval, list | tuple) else (None, None)
    return Estimate(value=value if isinstance(value, float | int) else None, low=low, high=high)


def _resamples(golden: GoldenSet, pixel_set: PixelSet, settings: EvaluateSettings) -> Resamples:
    items, pixels = golden.items, [golden.items[image.golden_row] for image in pixel_set.images]
    images = units_of([i.stratum for i in items], [i.defect for i in items], [i.lot for i in items])
    parts = units_of([i.stratum for i in pixels], [i.image_class for i in pixel_set.images], [i.lot for i in pixels])
    seed = seed_of("evaluate-only", golden.digest)
    image_counts, pixel_counts = (
        resample_counts(units.groups, num_samples=settings.bootstrap_samples, seed=seed, units=units.numbers)
        for units in (images, parts)
    )
    return Resamples(images=image_counts, pixels=pixel_counts, confidence=settings.confidence)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Old candidates of {{ scores.key }}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:75rem}table{border-collapse:collapse}
th,td{border-bottom:1px solid #ccc;padding:.3rem .8rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}small{color:#666}</style>
<h1>Old candidates of {{ scores.key }} on today's golden set</h1>
<p>{{ scores.num_good }} good and {{ scores.num_defective }} defective images, digest {{ scores.golden_digest[:16] }}.
Nothing was trained, registered or promoted.</p>
<table><tr><th>Night<th>Verdict then<th>Image AUROC then
{%- for label in labels.values() %}<th>{{ label }}{% endfor %}</tr>
{%- for row in scores.rows %}
<tr><td>{{ row.night }}<td>{{ row.verdict_then or "unknown" }}
<td>{{ number(row.image_auroc_then) }}{% if not row.same_golden_set %} <small>other golden set</small>{% endif %}
{%- for name in labels %}{% set found = row.metrics.get(name) %}
<td>{{ number(found.value) if found else "-" }}
{%- if found and found.low is not none %} <small>[{{ number(found.low) }}, {{ number(found.high) }}]</small>{% endif %}
{%- endfor %}</tr>
{%- endfor %}
</table>
{% for sentence in scores.missing %}<p>{{ sentence }}</p>{% endfor %}
</html>
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_page(path: Path, scores: OldScores) -> None:
    template = Environment(autoescape=True).from_string(_PAGE)
    text = template.render(scores=scores, labels=METRICS, number=_number)
    write_file(path, text.encode())
