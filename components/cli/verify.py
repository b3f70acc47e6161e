"""``stlm verify``: does a trusted key vouch for a version?"""

from components.cli.ledger import desk_of
from components.core.contracts import CHAMPION_ALIAS
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.registration import check_attested

__all__ = ["verify_version"]


def verify_version(workspace: Workspace, *, key: str, version: int | None) -> int:
    """Check a version's files against their manifest, and the signed word for them against the trusted keys.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        version: MLflow's version; ``None`` for the champion.

    Returns:
        0.

    Raises:
        InputError: There is no such version, it is altered, or nobody trusted vouches for it.
        TransientError: The registry cannot be reached.
    """
    desk = desk_of(workspace, workspace.model(key))
    name = desk.key.registered_model
    if version is None:
        posted = desk.board.read()
        version = None if posted is None else posted.aliases.get(CHAMPION_ALIAS)
        if version is None:
            raise InputError(f"{name} has no champion")
    registered = desk.registry.version(desk.key, version)
    attested = check_attested(desk, registered)
    assert attested is not None
    print(f"version {version} of {name}: every file as it was sealed, signed by a trusted key")
    print(f"  package  {attested.digest}\n  key      {attested.signer}\n  files    {registered.package_dir}")
    return 0
