"""Takeover: whether a registered version may become champion now, and the move if so."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from components.adapters.mlflow.aliases import FROZEN_TAG, PREVIOUS_ALIAS, PROMOTED_TAG
from components.core.contracts import CHAMPION_ALIAS, PromotionRef
from components.core.errors import InputError
from components.promotion.alias_transaction import AliasManager, AliasTransaction

__all__ = ["Outcome", "challenge", "outcome_of", "promote_version"]

logger = logging.getLogger(__name__)

Outcome = Literal["PROMOTED", "ALREADY_PROMOTED", "REFUSED", "STALE_DECISION", "FROZEN", "CHALLENGER", "REPLAYED"]


def promote_version(
    manager: AliasManager,
    version: int,
    *,
    judged_against: int | None,
    becomes_anchor: bool,
    by: str,
    reason: str,
    record: Mapping[str, Any],
    break_glass: bool = False,
) -> PromotionRef:
    """Make a version the champion, once, if the champion is still the one that the verdict was against.

    Args:
        manager: The key's aliases and ledger.
        version: A registered version.
        judged_against: Champion that the verdict was computed against.
        becomes_anchor: Whether it is the best that was ever approved; the first champion is in any case.
        by: Who lets it in.
        reason: Why.
        record: What shall be known of it for good; its ``partition`` is the night.
        break_glass: People overrule the gate: a freeze does not hold them up (it stays, so that nights do not follow
            them), ``judged_against`` is the champion that they saw, and the ledger calls it ``break-glass``. Such a
            version never becomes the anchor.

    Returns:
        What happened: ``PROMOTED``, ``ALREADY_PROMOTED`` (nothing moved), ``STALE_DECISION`` or ``FROZEN``.

    Raises:
        InputError: The ledger was tampered with, or the champion was deleted from the registry.
        TransientError: MLflow or the ledger cannot be reached, another holds the lease for long, or it was lost.
    """
    with manager.transaction(f"promote {record['partition']}") as transaction:
        outcome, detail = _check_preconditions(transaction, version, judged_against, respect_freeze=not break_glass)
        if outcome == "PROMOTED":
            state = transaction.state
            is_best = not break_glass and (becomes_anchor or state.anchor is None)
            transaction.move(
                version,
                action="break-glass" if break_glass else "promote",
                anchor=version if is_best else state.anchor,
                by=by,
                reason=reason,
                record=record,
            )
            logger.info("promoted model=%s version=%d from=%s", manager.key.registered_model, version, state.champion)
        return outcome_of(manager, outcome, version=version, detail=detail)


def challenge(
    manager: AliasManager, version: int, *, judged_against: int | None, by: str, record: Mapping[str, Any]
) -> PromotionRef:
    """Make a version that passed the gate the challenger, to be scored beside the champion; the champion stays.

    Args:
        manager: The key's aliases and ledger.
        version: A registered version.
        judged_against: Champion that the verdict was computed against.
        by: Who let it in.
        record: What shall be known of it for good; its ``partition`` is the night.

    Returns:
        ``CHALLENGER``, or why it is none.

    Raises:
        InputError: The ledger was tampered with, or the champion was deleted from the registry.
        TransientError: MLflow or the ledger cannot be reached, another holds the lease for long, or it was lost.
    """
    with manager.transaction(f"challenge {record['partition']}") as transaction:
        state = transaction.state
        outcome, detail = _check_preconditions(transaction, version, judged_against, respect_freeze=True)
        if outcome == "PROMOTED":
            outcome, detail = (
                "CHALLENGER",
                f"version {version} is scored beside version {state.champion} from now on",
            )
            dropped = state.dropped.get(version)
            if dropped is not None:
                outcome, detail = (
                    "REFUSED",
                    f"version {version} was challenger and was dropped: {dropped.body['reason']}",
                )
            elif state.challenger not in (None, version):
                running = f"version {state.challenger} is in its shadow nights"
                outcome, detail = "REFUSED", f"version {version} is registered; {running}"
            elif state.challenger is None:
                facts = {"version": version, "judged_against": judged_against, "record": dict(record)}
                transaction.note("challenge", by=by, reason=detail, facts=facts)
        return outcome_of(manager, outcome, version=version, detail=detail)


def outcome_of(manager: AliasManager, outcome: Outcome, *, version: int | None, detail: str) -> PromotionRef:
    """An outcome with what the registry carries now.

    Args:
        manager: The key's aliases and ledger.
        outcome: What happened.
        version: The candidate's version, where it has one.
        detail: Why, in a sentence.

    Returns:
        The outcome.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    posted = manager.aliases.read()
    return PromotionRef(
        outcome=outcome,
        name=manager.key.registered_model,
        version=version,
        champion_version=None if posted is None else posted.aliases.get(CHAMPION_ALIAS),
        previous_version=None if posted is None else posted.aliases.get(PREVIOUS_ALIAS),
        detail=detail,
    )


def _check_preconditions(
    transaction: AliasTransaction, version: int, judged_against: int | None, *, respect_freeze: bool
) -> tuple[Outcome, str]:
    state = transaction.state
    champion, commit = state.champion, state.commits.get(version)
    if champion == version:
        return "ALREADY_PROMOTED", f"version {version} is the champion already"
    tags = transaction.version_tags(version)
    if tags is None:
        raise InputError(f"{transaction.name} has no version {version}")
    night = tags.get(PROMOTED_TAG) if commit is None else commit.body["record"].get("partition")
    if commit is not None or night is not None:
        return "ALREADY_PROMOTED", f"version {version} was promoted on {night}"
    frozen = state.frozen_because() or transaction.posted.tags.get(FROZEN_TAG, "")
    if frozen and respect_freeze:
        return "FROZEN", f"promotion is frozen: {frozen}"
    if champion is not None and champion in transaction.missing_versions:
        raise InputError(
            f"version {champion} of {transaction.name}, the champion, was deleted from the registry; take back an "
            f"earlier one with `stlm rollback --to VERSION`"
        )
    if champion != judged_against:
        return (
            "STALE_DECISION",
            f"the verdict was against {_version_label(judged_against)}, the champion is {_version_label(champion)}",
        )
    return "PROMOTED", f"version {version} took over from {_version_label(champion)}"


def _version_label(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"
