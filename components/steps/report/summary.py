"""Summary on the page: verdict, reason, the night's key figures and where everything came from."""

from dataclasses import dataclass
from typing import Any, Literal

from components.core.contracts import GateDecision, Verdict
from components.rendering.facts import LabelledValue, number
from components.steps.report.inputs import ReportInputs, failure_of, nothing_new

__all__ = [
    "Headline",
    "failures",
    "figures",
    "headline",
    "judged_against",
    "lineage",
    "seconds",
]

Tone = Literal["good", "warn", "bad", "calm"]
NO_CHAMPION = "none"
_MAX_SENTENCE = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """How the night ended, in a word and a sentence."""

    tone: Tone
    badge: str
    sentence: str


def seconds(value: float) -> str:
    """``95.2`` -> ``1 min 35 s``."""
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{value:.1f} s"


def _first_objection(inputs: ReportInputs) -> str:
    decision = inputs.decision
    if decision is None:
        return ""
    for reason in decision.reasons:
        if reason.verdict is decision.verdict and reason.verdict is not Verdict.PROMOTE:
            return reason.detail
    return next((r.detail for r in decision.reasons if r.verdict is not Verdict.PROMOTE), "")


def _promoted(inputs: ReportInputs) -> Headline:
    promotion, decision = inputs.promotion, inputs.decision
    assert promotion is not None
    if promotion.version != promotion.champion_version:
        why = f"Version {promotion.version} was promoted before; the champion is version {promotion.champion_version}."
        return Headline(tone="calm", badge="ALREADY PROMOTED", sentence=why)
    if promotion.previous_version is None or (decision is not None and decision.bootstrap):
        why = "It is the first model of this key and was judged by the floors alone."
    else:
        why = f"It replaces version {promotion.previous_version}; every rule of the gate was met."
    return Headline(
        tone="good",
        badge="PROMOTED",
        sentence=f"Version {promotion.version} is the champion. {why}",
    )


def headline(inputs: ReportInputs, champion: LabelledValue) -> Headline:
    """Verdict and one-sentence reason; a failure outranks everything that came before it.

    Args:
        inputs: The night.
        champion: Who serves after it, from :func:`champion_now` or :func:`version_fact`.

    Returns:
        Badge and sentence.
    """
    promotion, decision = inputs.promotion, inputs.decision
    if promotion is not None and promotion.outcome in {"PROMOTED", "ALREADY_PROMOTED"}:
        return _promoted(inputs)
    rest = "There is no champion yet." if champion.value == NO_CHAMPION else "The champion is untouched."
    if inputs.shadow is not None and inputs.shadow.outcome == "PROMOTED":
        rest = f"Version {inputs.shadow.champion} took over after its shadow nights."
    if inputs.failures:
        return Headline(tone="bad", badge="FAILED", sentence=f"{_sentence(_short(inputs.failures[0]))} {rest}")
    if promotion is not None and promotion.outcome in {"STALE_DECISION", "FROZEN", "CHALLENGER"}:
        detail = promotion.detail or "The registry did not take the candidate."
        badge = promotion.outcome.replace("_", " ")
        return Headline(tone="warn", badge=badge, sentence=f"{_sentence(detail)} {rest}")
    if decision is not None:
        tone: Tone = "bad" if decision.verdict in {Verdict.REJECT, Verdict.ERROR} else "warn"
        badges = {Verdict.REJECT: "REJECTED", Verdict.PROMOTE: "NOT PROMOTED"}
        badge = badges.get(decision.verdict, decision.verdict.value)
        why = _first_objection(inputs) or (promotion.detail if promotion is not None else "The candidate was refused.")
        return Headline(tone=tone, badge=badge, sentence=f"{_sentence(why)} {rest}")
    if nothing_new(inputs):
        return Headline(tone="calm", badge="NOTHING NEW", sentence=f"No complete new lot had arrived. {rest}")
    if inputs.validation is not None and inputs.validation.num_accepted == 0:
        why = "No image of the night passed validation, so nothing was trained."
        return Headline(tone="warn", badge="NOTHING ACCEPTED", sentence=f"{why} {rest}")
    return Headline(tone="bad", badge="INCOMPLETE", sentence=f"The night ended without a verdict. {rest}")


def _short(text: str) -> str:
    """The first line, cut where it goes on for long; the whole message has a place of its own on the page."""
    line = text.strip().splitlines()[0] if text.strip() else "A step failed without a message."
    return line if len(line) <= _MAX_SENTENCE else f"{line[:_MAX_SENTENCE].rstrip()} ..."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def judged_against(inputs: ReportInputs, decision: GateDecision) -> str:
    """Whom the candidate was compared with, and what becomes of the anchor."""
    anchor = None if inputs.evaluation is None else inputs.evaluation.anchor_version
    if decision.champion_version is None:
        text = "Bootstrap: there was no champion, so the floors alone decided."
    elif anchor is None:
        text = f"Compared with the champion, version {decision.champion_version}; there was no anchor."
    elif anchor == decision.champion_version:
        text = f"Compared with version {anchor}, which is both the champion and the anchor (the best ever approved)."
    else:
        text = (
            f"Compared with the champion, version {decision.champion_version}, and with the anchor, version {anchor} "
            "(the best ever approved)."
        )
    if decision.becomes_anchor:
        text += " Once promoted, the candidate is the new anchor."
    return text


def champion_now(inputs: ReportInputs) -> LabelledValue | None:
    """Who serves after this night, as far as its steps know; ``None`` where none of them looked."""
    promotion, validation = inputs.promotion, inputs.validation
    if promotion is not None:
        now, before = promotion.champion_version, promotion.previous_version
        if now is not None and now == promotion.version:
            return version_fact(now, note="the first" if before is None else f"was v{before}")
        return version_fact(now)
    if validation is not None:
        return version_fact(None if validation.champion is None else validation.champion.version)
    return None


def version_fact(version: int | None, note: str = "unchanged") -> LabelledValue:
    """The tile that names the champion."""
    if version is None:
        return LabelledValue(label="Champion now", value=NO_CHAMPION, note="no version has been promoted yet")
    return LabelledValue(label="Champion now", value=f"v{version}", note=note)


def _challenger(inputs: ReportInputs) -> list[LabelledValue]:
    """The tile of the version that stands beside the champion, where there is one."""
    shadow = inputs.shadow
    if shadow is None or shadow.challenger is None:
        return []
    note = shadow.detail or f"scored on {shadow.num_nights} nights so far"
    return [LabelledValue(label=f"Challenger: {shadow.outcome.lower()}", value=f"v{shadow.challenger}", note=note)]


def figures(inputs: ReportInputs, champion: LabelledValue) -> list[LabelledValue]:
    """The handful of figures at the top.

    Args:
        inputs: The night.
        champion: Who serves after it.

    Returns:
        One fact per tile; a step that did not run gives none.
    """
    collect, validation, candidate, evaluation = (
        inputs.collect,
        inputs.validation,
        inputs.candidate,
        inputs.evaluation,
    )
    facts = [champion, *_challenger(inputs)]
    batch = (collect or {}).get("batch") or {}
    waiting = len((collect or {}).get("waiting") or ())
    if collect is not None:
        lots = int(batch.get("num_lots", 0))
        note = f"{lots} lot{'' if lots == 1 else 's'}" + (f", {waiting} waiting" if waiting else "")
        facts.append(LabelledValue(label="Images taken", value=str(batch.get("num_images", 0)), note=note))
    if validation is not None:
        note = f"{validation.num_quarantined} quarantined, {validation.num_rejected} in rejected lots"
        facts.append(LabelledValue(label="Images accepted", value=str(validation.num_accepted), note=note))
    if candidate is not None:
        note = f"{candidate.num_steps} steps, {candidate.num_replay_images} images replayed"
        facts.append(LabelledValue(label="Training", value=seconds(candidate.training_seconds), note=note))
    if evaluation is not None:
        before = evaluation.champion_metrics.get("image_auroc")
        note = "no champion to compare with" if before is None else f"champion {number(before)}"
        facts.append(
            LabelledValue(
                label="Image AUROC",
                value=number(evaluation.metrics.get("image_auroc")),
                note=note,
            )
        )
    return facts


def lineage(inputs: ReportInputs, extra: dict[str, Any]) -> list[LabelledValue]:
    """What the candidate was made from, enough to make it again.

    Args:
        inputs: The night.
        extra: Further entries from the package's ``lineage.json``.

    Returns:
        Labelled values, the data first.
    """
    rows = [("Model key", inputs.run.key.slug), ("Night", inputs.run.partition)]
    if inputs.dataset is not None:
        data = inputs.dataset
        rows += [
            ("Data revision", data.revision),
            ("Data tag", data.tag),
            ("DVC md5 of data/", data.dvc_md5),
            ("Partition", data.path),
            ("Batch digest", data.digest),
        ]
    if inputs.validation is not None:
        rows.append(("Validation digest", inputs.validation.digest))
    if inputs.candidate is not None:
        parent = inputs.candidate.parent_version
        rows += [
            ("Candidate key", inputs.candidate.candidate_key),
            ("Weights sha256", inputs.candidate.weights_sha256),
            (
                "Parent",
                "none: the first model of its key" if parent is None else f"version {parent}",
            ),
        ]
    if inputs.evaluation is not None:
        rows.append(("Golden set digest", inputs.evaluation.golden_digest))
    if inputs.package is not None:
        rows.append(("Package digest", inputs.package.digest))
    known = {value for _, value in rows}
    rows += [(name, str(value)) for name, value in sorted(extra.items()) if str(value) not in known]
    return [LabelledValue(label=label, value=value) for label, value in rows]


def failures(inputs: ReportInputs) -> list[LabelledValue]:
    """Failed steps and their messages."""
    facts = []
    for failure in inputs.failures:
        step, _, message = failure.partition(":")
        known = failure_of(inputs, step.strip()) is not None and message
        facts.append(
            LabelledValue(
                label=step.strip() if known else "night",
                value=message.strip() if known else failure,
            )
        )
    return facts
