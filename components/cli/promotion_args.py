"""Arguments of the commands about promotion."""

import argparse
import datetime as dt
from collections.abc import Callable
from typing import Protocol

from components.core.errors import InputError
from components.local_stack.workspace import Workspace

__all__ = ["CommandFactory", "add_promotion_commands"]

Run = Callable[[Workspace, argparse.Namespace], int]


class CommandFactory(Protocol):
    """Adds a command: name, function, help."""

    def __call__(self, name: str, function: Run, text: str) -> argparse.ArgumentParser:
        """The command's parser."""


def _verify(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.ledger import verify

    return verify(workspace, key=args.key)


def _show(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.ledger import show

    return show(workspace, key=args.key, entry=args.entry, limit=args.last)


def _at(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.ledger import ledger_at

    try:
        moment = dt.datetime.fromisoformat(args.time)
    except ValueError as error:
        raise InputError(f"time {args.time!r}: expected one like 2026-05-01T03:00 (UTC) or with a zone") from error
    return ledger_at(workspace, key=args.key, moment=moment)


def _reconcile(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.ledger import reconcile

    return reconcile(workspace, key=args.key)


def _promote(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.promote import promote

    return promote(
        workspace,
        key=args.key,
        candidate=args.candidate,
        reason=args.reason,
        by=args.by,
        break_glass=args.break_glass,
        second=args.second,
    )


def _verify_version(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.verify import verify_version

    return verify_version(workspace, key=args.key, version=args.version)


def _rollback(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.rollback import rollback

    return rollback(workspace, key=args.key, to=args.to, reason=args.reason, by=args.by)


def _freeze(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.rollback import freeze

    return freeze(workspace, key=args.key, reason=args.reason, by=args.by)


def _unfreeze(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.rollback import unfreeze

    return unfreeze(workspace, key=args.key, reason=args.reason, by=args.by)


def _delete_version(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.rollback import delete_version

    return delete_version(workspace, key=args.key, version=args.version, by=args.by)


def add_promotion_commands(command: CommandFactory, at_least_one: Callable[[str], int]) -> None:
    """Add them to the parser.

    Args:
        command: Adds a command: name, function, help.
        at_least_one: Reads a positive number.
    """
    ledger = command("ledger", _verify, "Who was champion when, and why: show, at, verify, reconcile.")
    actions = ledger.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(name: str, function: Run, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        _key(sub)
        return sub

    show = action("show", _show, "The last entries, or one of them whole.")
    show.add_argument("entry", type=at_least_one, nargs="?", default=0, help="print this entry whole, as JSON")
    show.add_argument("--last", type=at_least_one, default=20, help="how many entries to list (20)")
    at = action("at", _at, "Who was champion at a moment.")
    at.add_argument("time", metavar="TIME", help="such as 2026-05-01T03:00; UTC where it names no zone")
    action("verify", _verify, "Check that no entry was edited, removed or reordered.")
    action("reconcile", _reconcile, "Finish or undo what a crash left; put the aliases where the ledger says.")

    promote = command("promote", _promote, "A candidate takes over by hand: the gate's verdict, or two people.")
    promote.add_argument("candidate", metavar="VERSION", help="the version, or 12 hex digits of a candidate's key")
    _person(promote)
    promote.add_argument("--break-glass", action="store_true", help="without a verdict of PROMOTE; needs --second")
    promote.add_argument("--second", default="", help="who agreed to break the glass; kept in the ledger")
    vouch = command("verify", _verify_version, "Is a version as it was sealed, and signed by a trusted key?")
    vouch.add_argument("version", type=at_least_one, nargs="?", metavar="VERSION", help="the version (the champion)")
    _key(vouch)
    rollback = command("rollback", _rollback, "An earlier champion serves again; freezes promotion.")
    rollback.add_argument("--to", type=at_least_one, metavar="VERSION", help="the version (the champion before)")
    _person(rollback)
    _person(command("freeze", _freeze, "Promote nothing until `stlm unfreeze`."))
    _person(command("unfreeze", _unfreeze, "Let nights promote again."))
    delete = command("delete-version", _delete_version, "Delete a version that never carried an alias.")
    delete.add_argument("version", type=at_least_one, metavar="VERSION", help="the version")
    _key(delete)
    delete.add_argument("--by", default="", help="who you are (this system's user)")


def _key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", default="", help="model key, product.line.camera")


def _person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, help="why; kept in the ledger")
    _key(parser)
    parser.add_argument("--by", default="", help="who you are; kept in the ledger (this system's user)")
