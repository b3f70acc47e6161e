"""Aliases and tags of a registered model put where the ledger says, by whoever looks; that needs no lease."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from components.adapters.ledger import Chain, Ledger
from components.adapters.mlflow.aliases import (
    HEAD_TAG,
    LAST_CHAMPION_TAG,
    PREVIOUS_ALIAS,
    PROMOTED_TAG,
    AliasBoard,
    Posted,
)
from components.core.contracts import ANCHOR_ALIAS
from components.core.errors import InputError, TransientError
from components.promotion.champion_state import Standing, spoken, standing_of

__all__ = ["Settled", "adopted", "record_from_tags", "settle"]

_TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Ledger and registry in agreement."""

    chain: Chain
    posted: Posted
    repairs: list[str]
    """What had to be moved, in sentences."""


def settle(board: AliasBoard, ledger: Ledger, chain: Chain, *, lost: list[int]) -> Settled:
    """Put aliases and tags where the ledger says, also while others write.

    After each change the ledger is read again, so that whoever set an alias by an entry that is no longer the last one
    sees that and sets it once more.

    Args:
        board: Aliases and tags.
        ledger: The key's ledger.
        chain: What was read of it before.
        lost: Versions that the registry has no longer; those that are found are added.

    Returns:
        What both say now.

    Raises:
        TransientError: Ledger or registry cannot be reached, or somebody else keeps moving the aliases.
    """
    repairs: list[str] = []
    for _ in range(_TRIES):
        chain = ledger.read(chain)
        posted = board.read() or Posted(aliases={}, tags={})
        standing = standing_of(chain.entries)
        wrong = _misplaced(standing, posted, lost)
        if not wrong:
            _settle_tags(board, chain, standing, posted, lost)
            return Settled(chain=chain, posted=posted, repairs=repairs)
        for name, version in wrong.items():
            stood = posted.aliases.get(name)
            repairs.append(f"alias {name!r} stood at {spoken(stood)}, by the ledger it is {spoken(version)}: moved")
            try:
                board.point(name, version)
            except InputError as error:
                assert version is not None
                lost.append(version)
                repairs[-1] = f"alias {name!r} stays away: {error}"
    raise TransientError(f"{board.name}: somebody else keeps moving the aliases: {', '.join(wrong)}")


def _misplaced(standing: Standing, posted: Posted, lost: Collection[int]) -> dict[str, int | None]:
    if not standing.bootstrapped:
        return {}
    plan = standing.aliases()
    return {
        name: version for name, version in plan.items() if posted.aliases.get(name) != version and version not in lost
    }


def _settle_tags(board: AliasBoard, chain: Chain, standing: Standing, posted: Posted, lost: Collection[int]) -> None:
    """What can be read in MLflow itself; the head comes last, as all else is repaired from the ledger."""
    if not chain.entries:
        return
    champion = standing.champion
    if champion is not None and champion not in lost and posted.tags.get(LAST_CHAMPION_TAG) != str(champion):
        partition = standing.commits[champion].body["record"].get("partition")
        if partition is not None:
            board.tag_version(champion, PROMOTED_TAG, str(partition))
        board.tag(LAST_CHAMPION_TAG, str(champion))
    if posted.tags.get(HEAD_TAG) != chain.head:
        board.create()
        board.tag(HEAD_TAG, chain.head)


def adopted(board: AliasBoard, posted: Posted, serving: int) -> dict[str, Any]:
    """The commit of a champion from before there was a ledger.

    Args:
        board: Aliases and tags.
        posted: What they are.
        serving: The version that carries the champion's alias.

    Returns:
        The body of its commit; it is the anchor where there is none, as the best that is known to be approved.

    Raises:
        TransientError: MLflow cannot be reached.
    """
    return {
        "action": "adopt",
        "from": None,
        "champion": serving,
        "previous": posted.aliases.get(PREVIOUS_ALIAS),
        "anchor": posted.aliases.get(ANCHOR_ALIAS, serving),
        "by": "reconcile",
        "reason": "it was champion before there was a ledger",
        "record": record_from_tags(board.version_tags(serving) or {}),
    }


def record_from_tags(tags: Mapping[str, str]) -> dict[str, Any]:
    """The record of a champion that no entry of the ledger tells of, from the tags of its version."""
    return {
        "partition": tags.get(PROMOTED_TAG),
        "candidate_key": tags.get("stlm.candidate_key"),
        "package_digest": tags.get("stlm.package_digest"),
        "golden_digest": tags.get("stlm.golden_digest"),
        "tags": dict(tags),
    }
