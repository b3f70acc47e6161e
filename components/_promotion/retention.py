"""Deleting versions, but never one that somebody may ask for: MLflow would delete its aliases with it."""

from components._promotion.desk import Desk
from components._promotion.standing import ROLES
from components.adapters.aliases import PROMOTED_TAG
from components.errors import InputError

__all__ = ["delete_version"]


def delete_version(desk: Desk, version: int, *, by: str) -> None:
    """Delete a version that never carried an alias.

    Args:
        desk: The key's desk.
        version: The version.
        by: Who wants it.

    Raises:
        InputError: There is no such version, or it carries or carried an alias by registry or ledger.
        TransientError: MLflow or the ledger cannot be reached, or another holds the lease for long.
    """
    name = desk.key.registered_model
    with desk.held(f"delete version {version} by {by}") as held:
        tags = held.version_tags(version)
        if tags is None:
            raise InputError(f"{name} has no version {version}")
        carries = sorted(alias for alias, number in held.posted.aliases.items() if number == version)
        if carries:
            raise InputError(f"version {version} of {name} is kept: it carries {', '.join(map(repr, carries))}")
        if version in held.standing.carried or PROMOTED_TAG in tags:
            raise InputError(
                f"version {version} of {name} is kept: it was one of {', '.join(ROLES)}, and may be asked for"
            )
        held.delete_version(version)
