"""Regression rules of the gate: alarms, forgotten nights, other decisions than the champion's."""

import datetime as dt
import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from components.config import GateSettings
from components.core.contracts import Reason, Verdict
from components.steps.gate.absolute_limits import share_surely_above
from components.steps.gate.evidence import Evidence, HeldOutEvidence
from components.steps.gate.non_inferiority import Comparer
from stlm.errors import MetricUndefinedError
from stlm.metrics import ImageMeasurement, paired_bounds, resample_counts

__all__ = ["behaviour"]

_AT_RECALL = "false_alarm_rate_at_recall"


def behaviour(
    comparer: Comparer, evidence: Evidence, settings: GateSettings, *, night: str, candidate_key: str
) -> Iterator[Reason]:
    """Rules that stop a candidate which surely changes too much against the champion.

    Args:
        comparer: Resamples of the golden set.
        evidence: The models.
        settings: The limits.
        night: The night that the candidate was trained on.
        candidate_key: Seeds the resamples of the held-out normals.

    Yields:
        One reason per rule; none without a champion.
    """
    champion, held_out = evidence.champion, evidence.held_out
    if champion is None:
        return
    yield _alarms_at_recall(comparer, evidence, settings)
    theirs = held_out.champion_scores
    finite = np.isfinite(held_out.candidate_scores).all() and (theirs is None or np.isfinite(theirs).all())
    if theirs is None or len(theirs) == 0 or not finite:
        detail = "Scores of held-out normals are missing or not finite."
        for rule in ("forgetting", "old score shift", "decision flips"):
            yield Reason(rule=rule, verdict=Verdict.ERROR, detail=detail)
        return
    now = held_out.candidate_scores > evidence.candidate.images.threshold
    before = theirs > champion.images.threshold
    old = held_out.nights != night
    seed = int.from_bytes(hashlib.sha256(f"normals {candidate_key}".encode()).digest()[:8], "big")
    if not old.any():
        yield from _nothing_old(held_out)
    else:
        yield _forgetting(now[old], before[old], held_out.nights[old], settings, seed)
        yield _old_shift(held_out, theirs, old, settings, seed)
    first = (dt.date.fromisoformat(night) - dt.timedelta(days=6)).isoformat()
    last_week = (held_out.nights >= first) & (held_out.nights <= night)
    yield _flips(now, before, last_week, settings)


def _alarms_at_recall(comparer: Comparer, evidence: Evidence, settings: GateSettings) -> Reason:
    rule, limit = "false alarms at recall", settings.max_false_alarm_rise
    assert evidence.champion is not None
    try:
        found = comparer.gain(evidence.champion, _AT_RECALL)
    except MetricUndefinedError as error:
        return Reason(rule=rule, verdict=Verdict.ERROR, detail=f"{_AT_RECALL} is undefined: {error}", limit=limit)
    surely = -found.bounds.high
    return Reason(
        rule=rule,
        verdict=Verdict.REJECT if surely > limit else Verdict.PROMOTE,
        detail=(
            f"Where {evidence.candidate.images.recall:.0%} of the defective golden images are found, {found.value:.1%} "
            f"of the good ones raise an alarm, with the champion {found.before:.1%}: a rise of {-found.gain:+.1%}, "
            f"surely at least {surely:+.1%}; the limit is {limit:.1%}. The smallest rise that these images show in "
            f"80 % of all cases is {found.bounds.detectable:.1%}."
        ),
        value=-found.gain,
        limit=limit,
        detectable=found.bounds.detectable if np.isfinite(found.bounds.detectable) else None,
    )


def _nothing_old(held_out: HeldOutEvidence) -> Iterator[Reason]:
    missing = ", ".join(held_out.expected_nights)
    verdict = Verdict.ERROR if missing else Verdict.PROMOTE
    detail = (
        f"The champion carries held-out normals of {missing}, the candidate was measured on none of them."
        if missing
        else "The champion knows no other night, so there is none to forget."
    )
    for rule in ("forgetting", "old score shift"):
        yield Reason(rule=rule, verdict=verdict, detail=detail)


def _forgetting(
    now: npt.NDArray[np.bool_],
    before: npt.NDArray[np.bool_],
    nights: npt.NDArray[np.str_],
    settings: GateSettings,
    seed: int,
) -> Reason:
    limit = settings.max_forgetting
    difference = now.astype(np.float64) - before
    counts = resample_counts(nights.tolist(), num_samples=settings.bootstrap_samples, seed=seed)
    rise = float(difference.mean())
    bounds = paired_bounds(rise, counts @ difference / len(now), alpha=settings.alpha, num_units=len(now))
    return Reason(
        rule="forgetting",
        verdict=Verdict.REJECT if bounds.low > limit else Verdict.PROMOTE,
        detail=(
            f"On {len(now)} held-out normals of {len(np.unique(nights))} other nights the candidate raises "
            f"{int(now.sum())} alarms, the champion {int(before.sum())}, each at its threshold: a rise of {rise:+.1%}, "
            f"surely at least {bounds.low:+.1%}; the limit is {limit:.1%}."
        ),
        value=rise,
        limit=limit,
    )


def _old_shift(
    held_out: HeldOutEvidence,
    champion_scores: npt.NDArray[np.float32],
    old: npt.NDArray[np.bool_],
    settings: GateSettings,
    seed: int,
) -> Reason:
    """How often an old normal outscores a new one: without units, so that two models compare."""
    rule, limit = "old score shift", settings.max_old_shift
    if old.all():
        return Reason(rule=rule, verdict=Verdict.PROMOTE, detail="There is no held-out normal of this night.")
    groups = ["old" if is_old else "new" for is_old in old]
    counts = resample_counts(groups, num_samples=settings.bootstrap_samples, seed=seed)

    def outscores(scores: npt.NDArray[np.float32]) -> tuple[float, npt.NDArray[np.float64]]:
        images = ImageMeasurement(scores=scores, labels=old, threshold=0.0, recall=0.5)
        return images.value("image_auroc"), images.samples("image_auroc", counts)

    (ours, our_samples), (theirs, their_samples) = outscores(held_out.candidate_scores), outscores(champion_scores)
    # A champion that never saw the new light scores new normals high: only what lies above chance is forgotten.
    shift = ours - max(theirs, 0.5)
    num_units = min(int(old.sum()), int((~old).sum()))
    samples = our_samples - np.maximum(their_samples, 0.5)
    bounds = paired_bounds(shift, samples, alpha=settings.alpha, num_units=num_units)
    return Reason(
        rule=rule,
        verdict=Verdict.REJECT if bounds.low > limit else Verdict.PROMOTE,
        detail=(
            f"A held-out normal of another night outscores one of this night in {ours:.0%} of all pairs, with the "
            f"champion in {theirs:.0%} (chance is 50 %): a shift of {shift:+.1%}, surely at least "
            f"{max(bounds.low, -1.0):+.1%}; the limit is {limit:.1%}."
        ),
        value=shift,
        limit=limit,
    )


def _flips(
    now: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_], last_week: npt.NDArray[np.bool_], settings: GateSettings
) -> Reason:
    num, total, limit = int((now != before).sum()), len(now), settings.max_flip_rate
    low = share_surely_above(num, total, settings.alpha)
    return Reason(
        rule="decision flips",
        verdict=Verdict.REJECT if low > limit else Verdict.PROMOTE,
        detail=(
            f"Of {total} held-out normals {num} are decided differently than by the champion ({num / total:.1%}, "
            f"surely at least {low:.1%}; the limit is {limit:.1%}): {int((now & ~before).sum())} new alarms, "
            f"{int((~now & before).sum())} alarms fewer. Of the {int(last_week.sum())} of the last seven days "
            f"{int((now != before)[last_week].sum())} are."
        ),
        value=num / total,
        limit=limit,
    )
