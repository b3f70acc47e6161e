"""``stlm verify``: does a trusted key vouch for a version?"""

from components.cli.ledger import alias_manager_of
from components.core.contracts import CHAMPION_ALIAS
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.registration import verify_attestation

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
    manager = alias_manager_of(workspace, workspace.model(key))
    name = manager.key.registered_model
    if version is None:
        posted = manager.aliases.read()
        version = None if posted is None else posted.aliases.get(CHAMPION_ALIAS)
        if version is None:
            raise InputError(f"{name} has no champion")
    registered = manager.registry.version(manager.key, version)
    attested = verify_attestation(manager, registered)
    assert attested is not None
    print(f"version {version} of {name}: every file as it was sealed, signed by a trusted key")
    print(f"  package  {attested.digest}\n  key      {attested.signer}\n  files    {registered.package_dir}")
    return 0
