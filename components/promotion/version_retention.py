"""Retention of registered versions: MLflow deletes the aliases of a version with it, so few may go."""

from collections.abc import Iterable, Mapping

from components.adapters.ledger import Entry
from components.adapters.mlflow.aliases import PROMOTED_TAG, RegistrySnapshot
from components.core.errors import InputError
from components.promotion.alias_transaction import AliasManager
from components.promotion.champion_state import ROLES, ChampionState

__all__ = ["delete_version", "named_candidates", "retention_reason"]


def retention_reason(version: int, tags: Mapping[str, str], state: ChampionState, posted: RegistrySnapshot) -> str:
    """Why a version must stay; empty where it may go.

    Args:
        version: The version.
        tags: Its tags.
        state: What the ledger says of its key.
        posted: What the registry says.

    Returns:
        The reason, to be read after "is kept: ".
    """
    carries = sorted(alias for alias, number in posted.aliases.items() if number == version)
    if carries:
        return f"it carries {', '.join(map(repr, carries))}"
    if version in state.ever_aliased or PROMOTED_TAG in tags:
        return f"it was one of {', '.join(ROLES)}, and may be asked for"
    return ""


def named_candidates(entries: Iterable[Entry], kept: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Keys of the candidates that the ledger names.

    Args:
        entries: The ledger.
        kept: Tags of the versions that must stay.

    Returns:
        Their keys.
    """
    recorded = (entry.body.get("record", {}).get("candidate_key") for entry in entries)
    return frozenset(key for key in (*recorded, *(tags.get("stlm.candidate_key") for tags in kept)) if key)


def delete_version(manager: AliasManager, version: int, *, by: str) -> None:
    """Delete a version that never carried an alias.

    Args:
        manager: The key's aliases and ledger.
        version: The version.
        by: Who wants it.

    Raises:
        InputError: There is no such version, or it carries or carried an alias by registry or ledger.
        TransientError: MLflow or the ledger cannot be reached, or another holds the lease for long.
    """
    name = manager.key.registered_model
    with manager.transaction(f"delete version {version} by {by}") as transaction:
        tags = transaction.version_tags(version)
        if tags is None:
            raise InputError(f"{name} has no version {version}")
        why = retention_reason(version, tags, transaction.state, transaction.posted)
        if why:
            raise InputError(f"version {version} of {name} is kept: {why}")
        transaction.delete_version(version)
