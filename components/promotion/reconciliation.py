"""Reconciliation: aliases and tags are put where the ledger says, by whoever looks; that needs no lease."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from components.adapters.ledger import Ledger, LedgerEntries
from components.adapters.mlflow.aliases import (
    HEAD_TAG,
    LAST_CHAMPION_TAG,
    PREVIOUS_ALIAS,
    PROMOTED_TAG,
    RegisteredModelAliases,
    RegistrySnapshot,
)
from components.core.contracts import ANCHOR_ALIAS
from components.core.errors import InputError, TransientError
from components.promotion.champion_state import ChampionState, replay_ledger, version_label

__all__ = ["Reconciled", "import_existing_champion", "reconcile_aliases", "record_from_tags"]

_TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciled:
    """Ledger and registry in agreement."""

    chain: LedgerEntries
    posted: RegistrySnapshot
    repairs: list[str]
    """What had to be moved, in sentences."""


def reconcile_aliases(
    aliases: RegisteredModelAliases, ledger: Ledger, chain: LedgerEntries, *, missing_versions: list[int]
) -> Reconciled:
    """Put aliases and tags where the ledger says, also while others write.

    After each change the ledger is read again, so that whoever set an alias by an entry that is no longer the last one
    sees that and sets it once more.

    Args:
        aliases: Aliases and tags.
        ledger: The key's ledger.
        chain: What was read of it before.
        missing_versions: Versions that the registry has no longer; those that are found are added.

    Returns:
        What both say now.

    Raises:
        TransientError: Ledger or registry cannot be reached, or somebody else keeps moving the aliases.
    """
    repairs: list[str] = []
    for _ in range(_TRIES):
        chain = ledger.read(chain)
        posted = aliases.read() or RegistrySnapshot(aliases={}, tags={})
        state = replay_ledger(chain.entries)
        wrong = _misplaced(state, posted, missing_versions)
        if not wrong:
            _settle_tags(aliases, chain, state, posted, missing_versions)
            return Reconciled(chain=chain, posted=posted, repairs=repairs)
        for name, version in wrong.items():
            stood = posted.aliases.get(name)
            repairs.append(
                f"alias {name!r} stood at {version_label(stood)}, by the ledger it is {version_label(version)}: moved"
            )
            try:
                aliases.set_alias(name, version)
            except InputError as error:
                assert version is not None
                missing_versions.append(version)
                repairs[-1] = f"alias {name!r} stays away: {error}"
    raise TransientError(f"{aliases.name}: somebody else keeps moving the aliases: {', '.join(wrong)}")


def _misplaced(
    state: ChampionState, posted: RegistrySnapshot, missing_versions: Collection[int]
) -> dict[str, int | None]:
    if not state.bootstrapped:
        return {}
    plan = state.aliases()
    return {
        name: version
        for name, version in plan.items()
        if posted.aliases.get(name) != version and version not in missing_versions
    }


def _settle_tags(
    aliases: RegisteredModelAliases,
    chain: LedgerEntries,
    state: ChampionState,
    posted: RegistrySnapshot,
    missing_versions: Collection[int],
) -> None:
    """What can be read in MLflow itself; the head comes last, as all else is repaired from the ledger."""
    if not chain.entries:
        return
    champion = state.champion
    if (
        champion is not None
        and champion not in missing_versions
        and posted.tags.get(LAST_CHAMPION_TAG) != str(champion)
    ):
        partition = state.commits[champion].body["record"].get("partition")
        if partition is not None:
            aliases.tag_version(champion, PROMOTED_TAG, str(partition))
        aliases.tag(LAST_CHAMPION_TAG, str(champion))
    if posted.tags.get(HEAD_TAG) != chain.head:
        aliases.create()
        aliases.tag(HEAD_TAG, chain.head)


def import_existing_champion(aliases: RegisteredModelAliases, posted: RegistrySnapshot, serving: int) -> dict[str, Any]:
    """The commit of a champion from before there was a ledger.

    Args:
        aliases: Aliases and tags.
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
        "record": record_from_tags(aliases.version_tags(serving) or {}),
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
