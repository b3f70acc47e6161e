"""``stlm promote``: a person lets a candidate in."""

import getpass
import sys
import time

from components.cli.ledger import alias_manager_of
from components.core.errors import InputError
from components.local_stack.workspace import Workspace
from components.promotion.manual import PromoteByHandInputs, promote_by_hand

__all__ = ["promote"]


def promote(
    workspace: Workspace, *, key: str, candidate: str, reason: str, by: str, break_glass: bool, second: str
) -> int:
    """A candidate takes over by hand.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        candidate: Its version, or how its key begins.
        reason: Why.
        by: Who; empty: the user of this process, except to break the glass.
        break_glass: Whether the gate's verdict and a freeze are passed over.
        second: Who agreed to that.

    Returns:
        0.

    Raises:
        InputError: It may not take over; the message says why, and nothing is moved.
        TransientError: MLflow or the ledger cannot be reached, or somebody else is at it.
    """
    started = time.monotonic()
    model, config = workspace.model(key), workspace.config
    if not reason.strip():
        raise InputError("why? give a --reason; it is kept in the ledger")
    if break_glass and not by.strip():
        raise InputError("to break the glass takes two names: give --by and --second")
    inputs = PromoteByHandInputs(
        key=model.key,
        work_dir=config.paths.work_dir,
        golden=model.golden,
        mlflow=config.mlflow,
        settings=config.promote,
        candidate=candidate.strip().lower(),
        reason=reason.strip(),
        by=by.strip() or getpass.getuser(),
        approvers=model.approvers,
        break_glass=break_glass,
        second=second.strip(),
    )
    alias_manager_of(workspace, model)  # there must be a registry
    result = promote_by_hand(inputs)
    print(f"{result.name}: {result.detail} ({time.monotonic() - started:.0f} s)")
    if break_glass and result.outcome == "PROMOTED":
        sys.stderr.write("BREAK-GLASS: no gate let this version in; `stlm status` and `stlm doctor` say so\n")
    return 0
