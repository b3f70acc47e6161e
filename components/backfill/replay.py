"""Replay of old nights, started by a person: their plan, the nights, or their candidates on today's golden set.

A *replay* rebuilds a lineage from an ancestor, night by night, each from the candidate of the night before. It lives
beside the real one: in a branch of the data repository (``backfill/<key>/<name>``), in registered versions with the
tag ``stlm.backfill`` and the alias ``backfill-<name>``, and in a work folder of its own. It never moves ``champion``.
An *evaluation* trains nothing and registers nothing.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from components.adapters.lease import LeaseHeldError, holder_name
from components.adapters.mlflow.registry import open_registry
from components.adapters.run_lock import FencingToken, open_run_lock
from components.backfill.chain import (
    FROM_SCRATCH,
    BaseVersion,
    PlannedRun,
    Replay,
    Replayed,
    begin_chain,
    check_night,
    data_repository,
    find_ancestor,
    has_registry,
    plan_runs,
    read_chain,
    run_of,
)
from components.backfill.night_run import BadNightError, replay_night
from components.backfill.night_start import skip_run
from components.backfill.rescoring import OldScores, rescore
from components.config import ModelSettings, PipelineConfig
from components.core.atomic_files import write_json
from components.core.contracts import CHAMPION_ALIAS, Contract, ModelKey, RunRef
from components.core.errors import InputError, TransientError
from components.core.run_records import nights, read_night

__all__ = [
    "BackfillInputs",
    "BackfillPlan",
    "BackfillResult",
    "PlannedNight",
    "evaluate_again",
    "plan",
    "replay",
]

logger = logging.getLogger(__name__)

_LEASE_S = 60.0
"""At most: between two steps of this process there is nothing to wait for, so its death shows soon."""
_NAME = "backfill"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackfillInputs(Contract):
    """Which nights of which key."""

    config: PipelineConfig
    key: ModelKey
    first: str
    last: str
    ancestor: str = ""
    """A night that registered a version, or ``none`` for a lineage from scratch; empty: the night whose version was
    champion last before ``first``."""
    skip_bad: bool = False
    """Whether a night whose images cannot be used is left out; otherwise the chain stops there."""

    def __post_init__(self) -> None:
        self.config.model(self.key.slug)
        check_night(self.first, "first")
        check_night(self.last, "last")
        if self.ancestor not in ("", FROM_SCRATCH):
            check_night(self.ancestor, "ancestor")
        if self.first > self.last:
            raise InputError(f"the first night, {self.first}, is after the last, {self.last}: nights run forwards only")

    @property
    def model(self) -> ModelSettings:
        """The key's entry in the configuration."""
        return self.config.model(self.key.slug)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedNight(Contract):
    """One line of a plan."""

    night: str
    num_images: int
    num_lots: int
    revision: int
    original: str
    """What became of the night itself: a verdict, ``FAILED``, or empty where no record is left."""
    replayed: str
    """What the backfill has of it: a verdict, ``gap``, ``outdated`` or nothing yet."""
    action: Literal["keep", "replay"]
    expected_s: float | None
    """``None`` where there is no record to tell from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackfillPlan(Contract):
    """What a replay would do."""

    name: str
    ancestor: str
    """In words."""
    nights: tuple[PlannedNight, ...]
    expected_s: float | None
    without_data: tuple[str, ...]
    """Other nights of the key within the range that have begun, but never reached the data repository."""
    left_out: tuple[str, ...]
    """Nights of the data repository between the ancestor and the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackfillResult(Contract):
    """What a replay came to."""

    name: str
    nights: tuple[Replayed, ...]
    num_run: int
    """How many of them were run now; the others were done before."""
    champion_version: int | None
    """Untouched."""
    summary_path: str


def _chain(inputs: BackfillInputs) -> tuple[Replay, RunRef]:
    """The chain that these inputs ask for, begun or not; nothing is changed."""
    config, model = inputs.config, inputs.model
    known = data_repository(config).nights(model.key)
    if not any(inputs.first <= night <= inputs.last for night in known):
        have = f"{min(known)} to {max(known)}" if known else "none"
        raise InputError(
            f"the data repository has no night of {model.key.slug} from {inputs.first} to {inputs.last}; it has {have}"
        )
    ancestor = find_ancestor(config, model, inputs.first, inputs.ancestor)
    base = "scratch" if ancestor.version is None else f"v{ancestor.version}"
    name = f"{inputs.first.replace('-', '')}-on-{base}"
    run = run_of(config, model, name, inputs.first)
    return read_chain(run) or Replay(name=name, first=inputs.first, ancestor=ancestor), run


def plan(inputs: BackfillInputs) -> BackfillPlan:
    """Say what a replay would do; nothing is changed.

    Args:
        inputs: Which nights.

    Returns:
        The plan.

    Raises:
        InputError: There is no such night, key or ancestor.
        TransientError: A store cannot be reached.
    """
    config, model = inputs.config, inputs.model
    chain, _ = _chain(inputs)
    links = plan_runs(config, model, chain, inputs.last)
    pace = _seconds_per_image(inputs)
    rows = tuple(_planned(inputs, link, pace) for link in links)
    due = [row for row in rows if row.action == "replay"]
    times = [row.expected_s for row in due if row.expected_s is not None]
    known = data_repository(config).nights(model.key)
    begun = [run.partition for run in nights(config.paths.work_dir, model.key)]
    return BackfillPlan(
        name=chain.name,
        ancestor=_spoken(chain.ancestor),
        nights=rows,
        expected_s=round(sum(times), 1) if len(times) == len(due) else None,
        without_data=tuple(night for night in begun if inputs.first <= night <= inputs.last and night not in known),
        left_out=tuple(night for night in known if chain.ancestor.night < night < chain.first),
    )


def _spoken(ancestor: BaseVersion) -> str:
    if ancestor.version is None:
        return "none, the first night starts from the teacher alone"
    return f"version {ancestor.version}, of night {ancestor.night}"


def _planned(inputs: BackfillInputs, link: PlannedRun, pace: float | None) -> PlannedNight:
    night, replayed = link.revision.night, link.replayed
    records = read_night(RunRef(key=inputs.key, partition=night, work_dir=inputs.config.paths.work_dir))
    decision = records["gate"].outputs if "gate" in records else None
    failed = any(record.outcome == "FAILED" for record in records.values())
    now = "" if replayed is None else (replayed.gap and "gap") or replayed.verdict
    if now and link.state == "DUE":
        now = "outdated"
    if link.state != "DUE":
        expected: float | None = 0.0
    else:
        whole = sum(record.seconds for record in records.values()) if "fine_tune" in records and not failed else None
        expected = whole if whole is not None else None if pace is None else pace * link.revision.num_images
    return PlannedNight(
        night=night,
        num_images=link.revision.num_images,
        num_lots=link.revision.num_lots,
        revision=link.revision.revision,
        original="FAILED" if failed else str(decision["verdict"]) if decision else "",
        replayed=now,
        action="replay" if link.state == "DUE" else "keep",
        expected_s=None if expected is None else round(expected, 1),
    )


def _seconds_per_image(inputs: BackfillInputs) -> float | None:
    """From the nights of the key that went through to a package."""
    seconds, images = 0.0, 0
    for run in nights(inputs.config.paths.work_dir, inputs.key):
        records = read_night(run)
        batch = ((records["collect"].outputs or {}).get("batch") or {}) if "collect" in records else {}
        if "gate" in records and batch:
            seconds += sum(record.seconds for record in records.values())
            images += int(batch["num_images"])
    return seconds / images if images else None


def replay(inputs: BackfillInputs) -> BackfillResult:
    """Replay what is due of the nights, oldest first; what is done stays as it is.

    Args:
        inputs: Which nights.

    Returns:
        What each night came to, and where the summary is.

    Raises:
        InputError: There is no such night, key or ancestor, or a night's images cannot be used.
        TransientError: Another run holds the key, or a store cannot be reached.
    """
    config, model = inputs.config, inputs.model
    chain, first_run = _chain(inputs)
    num_run = 0
    with _held(inputs, chain) as fence:
        if read_chain(first_run) is None:
            begin_chain(first_run, chain)
        while True:
            link = _next(inputs, chain)
            if link is None:
                break
            run = run_of(config, model, chain.name, link.revision.night)
            logger.info("backfill=%s night=%s images=%d", chain.name, run.partition, link.revision.num_images)
            try:
                replay_night(config, model, run, fence)
            except BadNightError as error:
                if not inputs.skip_bad:
                    raise InputError(
                        f"backfill {chain.name} stops at night {run.partition}, whose images cannot be used: {error}. "
                        f"Repair it and start again, or leave it out with --skip-bad"
                    ) from error
                fence.check_token(0, str(run.run_dir))
                skip_run(run, link, str(error))
            num_run += 1
        return _result(inputs, chain, first_run, num_run)


@contextlib.contextmanager
def _held(inputs: BackfillInputs, chain: Replay) -> Iterator[FencingToken]:
    """The key, for the whole chain; another backfill is not waited for, unless it may be dead."""
    config = inputs.config
    run_lock = open_run_lock(
        inputs.key, work_dir=config.paths.work_dir, promote=config.promote, schedule=config.schedule
    ).with_max_lease(_LEASE_S)
    holder = run_lock.holder()
    name = f"{_NAME} {chain.name} {holder_name('').rpartition(':')[2]}"
    if holder.startswith(_NAME):
        run_lock = run_lock.with_timeout(run_lock.seconds + 1)
    try:
        with run_lock.held(name, release=True) as fence:
            yield fence
    except LeaseHeldError as error:
        raise TransientError(
            f"locked by {run_lock.holder() or holder}: nights of {inputs.key.slug} run one at a time, a nightly run "
            f"and a backfill never together ({error})"
        ) from error


def _next(inputs: BackfillInputs, chain: Replay) -> PlannedRun | None:
    """The first night that is due; or the last one, where the champion is not the one that it was judged against."""
    links = plan_runs(inputs.config, inputs.model, chain, inputs.last)
    for link in links:
        if link.state == "DUE":
            return link
    head = [link for link in links if link.state == "DONE"][-1:]
    if not head or head[0] is not links[-1] or head[0].replayed is None:
        return None
    return head[0] if head[0].replayed.judged_against != _champion(inputs) else None


def _champion(inputs: BackfillInputs) -> int | None:
    if not has_registry(inputs.config):
        return None
    registry = open_registry(
        inputs.config.mlflow, RunRef(key=inputs.key, partition=inputs.first, work_dir=inputs.config.paths.work_dir)
    )
    posted = registry.aliases(inputs.key).read()
    return None if posted is None else posted.aliases.get(CHAMPION_ALIAS)


def _result(inputs: BackfillInputs, chain: Replay, run: RunRef, num_run: int) -> BackfillResult:
    path = run.state_dir / "summary.json"
    links = plan_runs(inputs.config, inputs.model, chain, inputs.last)
    result = BackfillResult(
        name=chain.name,
        nights=tuple(link.replayed for link in links if link.replayed is not None),
        num_run=num_run,
        champion_version=_champion(inputs),
        summary_path=str(path),
    )
    write_json(path, result)
    return result


def evaluate_again(inputs: BackfillInputs) -> OldScores:
    """Score the candidates of old nights on today's golden set; nothing is trained, registered or promoted.

    Args:
        inputs: Which nights.

    Returns:
        The figures, and where the report is; the same candidates and images again give the same, at once.

    Raises:
        InputError: No night has a candidate, or the golden set is unreadable.
        TransientError: The registry cannot be reached.
    """
    return rescore(inputs.config, inputs.model, inputs.first, inputs.last)
