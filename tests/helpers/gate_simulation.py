"""Nights of simulated models, judged by the product's own gate and by the rule "new is better than old"."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta

from components.config import GateSettings
from components.core.contracts import Verdict
from components.steps.gate.verdict import judge, worst_verdict
from stlm.metrics import auroc
from tests.helpers.gate_evidence import NIGHT, Golden, Scores, evidence_of

__all__ = ["DEFAULT", "Drift", "Walk", "binomial_interval", "drift", "one_night", "share_text", "tally"]

_GATE = GateSettings()
DEFAULT = replace(
    _GATE,
    margins={"image_auroc": _GATE.margins["image_auroc"]},
    anchor_margins={"image_auroc": _GATE.anchor_margins["image_auroc"]},
    bootstrap_samples=500,
)
"""The product's defaults for image scores; fewer resamples than its 2000, for speed."""


def one_night(
    trial: int, *, per_class: int, worse: float, settings: GateSettings = DEFAULT, champion_auroc: float = 0.97
) -> tuple[Verdict, bool]:
    """Judge one candidate whose true AUROC is lower by ``worse``, against a champion that is also the anchor.

    Returns:
        The gate's verdict, and whether the naive rule would have promoted.
    """
    rng = np.random.default_rng([trial, per_class])
    golden = Golden.draw(rng, num_good=per_class, num_bad=per_class)
    noise = rng.normal(size=(2, golden.labels.size))
    champion = golden.scores(champion_auroc, noise[0])
    candidate = golden.scores(champion_auroc - worse, noise[1])
    evidence = evidence_of(golden.labels, candidate=candidate, champion=champion, anchor=champion)
    reasons, _ = judge(evidence, settings, night=NIGHT, candidate_key=f"trial {trial}")
    return worst_verdict(reasons), auroc(candidate, golden.labels) > auroc(champion, golden.labels)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A candidate's true AUROC is the champion's plus a step."""

    nights: int = 180
    mean: float = -0.002
    deviation: float = 0.004
    start: float = 0.97
    ceiling: float = 0.97
    """No candidate is truly better than this."""
    per_class: int = 150
    new_golden: bool = False
    """Another golden set every night; else one for all nights, as in the product."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What became of the champion."""

    final: float
    best: float
    """Highest true AUROC of a version that was promoted, the first one included."""
    anchor: float
    """True AUROC of the last anchor."""
    promotions: int


@dataclass(frozen=True, kw_only=True)
class _Model:
    quality: float
    noise: Scores


def drift(seed: int, world: Drift, *, settings: GateSettings | None) -> Walk:
    """Let the nights pass; the same seed gives the same steps and noise whatever decides.

    Args:
        seed: Of the world.
        world: How it drifts.
        settings: The gate's; ``None`` for the naive rule.
    """
    rng = np.random.default_rng([seed, world.per_class])
    steps = rng.normal(world.mean, world.deviation, size=world.nights)
    size = 2 * world.per_class

    def model(quality: float) -> _Model:
        return _Model(quality=quality, noise=rng.normal(size=size))

    golden = Golden.draw(rng, num_good=world.per_class, num_bad=world.per_class)
    champion = anchor = model(world.start)
    best, promotions = world.start, 0
    for night, step in enumerate(steps):
        fresh = model(min(champion.quality + step, world.ceiling))
        again = rng.normal(size=(3, size))
        if world.new_golden:
            golden = replace(golden, common=again[0])
            same = anchor is champion
            champion = replace(champion, noise=again[1])
            anchor = champion if same else replace(anchor, noise=again[2])
        promoted, is_best = _decide(golden, fresh, champion, anchor, settings, f"{seed} {night}")
        if promoted:
            champion, promotions, best = fresh, promotions + 1, max(best, fresh.quality)
            anchor = fresh if is_best else anchor
    return Walk(final=champion.quality, best=best, anchor=anchor.quality, promotions=promotions)


def _decide(
    golden: Golden, fresh: _Model, champion: _Model, anchor: _Model, settings: GateSettings | None, key: str
) -> tuple[bool, bool]:
    ours, theirs = golden.scores(fresh.quality, fresh.noise), golden.scores(champion.quality, champion.noise)
    if settings is None:
        return auroc(ours, golden.labels) > auroc(theirs, golden.labels), False
    best = theirs if anchor is champion else golden.scores(anchor.quality, anchor.noise)
    now = auroc(ours, golden.labels)
    for other, margins in ((theirs, settings.margins), (best, settings.anchor_margins)):
        if now - auroc(other, golden.labels) <= -margins.get("image_auroc", 1.0):
            # No lower bound lies above the difference itself, so the gate cannot promote; this only saves time.
            return False, False
    evidence = evidence_of(golden.labels, candidate=ours, champion=theirs, anchor=best)
    reasons, is_best = judge(evidence, settings, night=NIGHT, candidate_key=key)
    return worst_verdict(reasons) is Verdict.PROMOTE, is_best


def binomial_interval(num: int, total: int) -> tuple[float, float]:
    """Two-sided 95 % interval of a share (Clopper-Pearson)."""
    low = float(beta.ppf(0.025, num, total - num + 1)) if num else 0.0
    high = float(beta.ppf(0.975, num + 1, total - num)) if num < total else 1.0
    return low, high


def share_text(num: int, total: int) -> str:
    """``3.2 % [2.1, 4.6]``."""
    low, high = binomial_interval(num, total)
    return f"{100 * num / total:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def tally(trials: range, *, per_class: int, worse: float, settings: GateSettings) -> tuple[Counter[Verdict], int]:
    """Verdicts over many nights, and how often the naive rule promotes."""
    found = [one_night(trial, per_class=per_class, worse=worse, settings=settings) for trial in trials]
    return Counter(verdict for verdict, _ in found), sum(naive for _, naive in found)
