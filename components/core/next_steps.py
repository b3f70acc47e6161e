"""Next steps of a person after a night whose candidate does not serve, as its page and its summary say them."""

from collections.abc import Iterator, Sequence

from components.core.contracts import ModelKey, Reason, Verdict

__all__ = ["next_steps"]

_ABOUT = (
    ("enough ", "Add golden images of the kind that is short; below `gate.min_per_class` nothing is decided."),
    (
        "floor ",
        "Look at the missed defects and false alarms on the page: is the night's light, lens or part another one?",
    ),
    ("false alarms", "Look at the false alarms on the page; more held-out normals make a better threshold."),
    ("forgetting", "Old normals raise alarms: let more be learnt again (`fine_tune.replay_images`)."),
    ("old score shift", "Old normals score high: let more be learnt again (`fine_tune.replay_images`)."),
    ("latency", "Measure on an idle machine, choose a lighter recipe, or raise `gate.max_ms_per_image`."),
    ("package size", "Choose a lighter recipe, or raise `gate.max_package_bytes`."),
    ("leakage", "Golden images were learnt from: take them out of the golden set or out of the lots."),
    ("golden set", "If the golden set was changed on purpose, name its digest in `gate.accepted_golden`."),
)
"""How a rule begins -> what helps."""


def next_steps(
    key: ModelKey, verdict: Verdict, reasons: Sequence[Reason], *, candidate_key: str, outcome: str = ""
) -> tuple[str, ...]:
    """What a person can do, most useful first.

    Args:
        key: Whose night.
        verdict: The gate's.
        reasons: Its reasons.
        candidate_key: The candidate's key; its first 12 digits name it to ``stlm promote``.
        outcome: What became of the promotion; empty where it was not reached.

    Returns:
        Sentences, at most three; none where the candidate serves or is on its way.
    """
    if verdict is Verdict.PROMOTE:
        return tuple(_held_up(key, candidate_key, outcome))
    broken = [reason.rule for reason in reasons if reason.verdict is verdict]
    helps = [text for start, text in _ABOUT if any(rule.startswith(start) for rule in broken)]
    if not helps:
        helps = [
            {
                Verdict.INCONCLUSIVE: "More golden images, good and defective, let smaller differences be told.",
                Verdict.REJECT: "Compare candidate and champion on the page; the champion goes on serving.",
                Verdict.ERROR: "A figure or a file is missing or not what it was: the rule names it.",
            }[verdict]
        ]
    overrule = (
        f"To let it in all the same, two people: `stlm promote {candidate_key[:12]} --key {key.slug} --break-glass "
        f"--reason WHY --by YOU --second OTHER`"
    )
    return (*helps[:2], *([] if verdict is Verdict.ERROR else [overrule]))


def _held_up(key: ModelKey, candidate_key: str, outcome: str) -> Iterator[str]:
    promote = f"`stlm promote {candidate_key[:12]} --key {key.slug} --reason WHY --by YOU`"
    if outcome == "FROZEN":
        yield f"Promotion is frozen: `stlm unfreeze --key {key.slug} --reason WHY`, then {promote}"
    elif outcome == "REFUSED":
        yield f"It passed the gate; to let it in by hand: {promote}"
    elif outcome == "STALE_DECISION":
        yield "Another champion came meanwhile: the next night judges its candidate against that one."
