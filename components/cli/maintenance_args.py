"""Arguments of the commands about maintenance."""

import argparse
import datetime as dt
from collections.abc import Callable

from components.cli.promotion_args import CommandFactory
from components.local_stack.workspace import Workspace

__all__ = ["add_operator_commands"]


def _deliver(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.deliver import deliver

    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).date()
    return deliver(workspace, folder=args.folder, key=args.key, night=args.night or str(yesterday), lot=args.lot)


def _retention(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.maintenance import retention

    today = dt.datetime.now(dt.UTC).date()
    return retention(workspace, key=args.key, days=args.older_than, only_plan=args.plan, today=today)


def _notify(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.maintenance import try_notify

    return try_notify(workspace, key=args.key, today=dt.datetime.now(dt.UTC).date())


def add_operator_commands(command: CommandFactory, at_least_one: Callable[[str], int]) -> None:
    """Add them to the parser.

    Args:
        command: Adds a command: name, function, help.
        at_least_one: Reads a positive number.
    """
    delivery = command("deliver", _deliver, "Send a folder of pictures into the landing zone as a lot.")
    delivery.add_argument("folder", metavar="FOLDER", help="the pictures")
    delivery.add_argument("--night", default="", metavar="YYYY-MM-DD", help="the day they were taken (yesterday)")
    delivery.add_argument("--lot", default="", help="name of the lot (the folder's, with the day before it)")
    delivery.add_argument("--key", default="", help="model key, product.line.camera")
    keeping = command("retention", _retention, "Delete old checkpoints, candidates and pages that no ledger names.")
    keeping.add_argument("--older-than", type=at_least_one, default=90, metavar="DAYS", help="how old (90)")
    keeping.add_argument("--plan", action="store_true", help="say what would be deleted, and change nothing")
    keeping.add_argument("--key", default="", help="model key, product.line.camera (all)")
    trial = command("notify", _notify, "Send a trial message to everybody who is to be told of nights.")
    trial.add_argument("--key", default="", help="model key, product.line.camera (the first)")
