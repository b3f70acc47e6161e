"""Arguments of ``stlm bench``."""

import argparse
from typing import Any

from components.local_stack.workspace import Workspace

__all__ = ["add_bench_commands"]


def _mvtec(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.bench import bench_mvtec

    return bench_mvtec(
        workspace,
        root=args.root,
        categories=args.category,
        strategies=args.strategy or ["recipe"],
        recipe_name=args.recipe,
        seeds=args.seed or [0],
        judge_every=args.judge_every,
        out=args.out,
    )


def _drift(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.bench import bench_drift

    return bench_drift(
        workspace,
        root=args.root,
        strategies=args.strategy or ["recipe", "no-update"],
        recipe_name=args.recipe,
        seeds=args.seed or [0],
        shuffle=args.shuffle,
        parts=args.parts,
        out=args.out,
    )


def add_bench_commands(commands: Any) -> None:
    """Add ``bench`` with its protocols.

    Args:
        commands: What ``add_subparsers`` returned.
    """
    bench = commands.add_parser("bench", help="Measure on your own folders in MVTec layout.")
    protocols = bench.add_subparsers(title="protocols", required=True, metavar="PROTOCOL")
    text = "Train and judge on each category: last epoch, fixed seeds, nothing chosen on test images."
    categories = protocols.add_parser("mvtec", help=text, description=text)
    categories.set_defaults(function=_mvtec)
    categories.add_argument("--category", action="append", default=[], help="this category only; may repeat")
    categories.add_argument(
        "--judge-every",
        type=int,
        default=0,
        metavar="PASSES",
        help="judge 'paper' also on the way and add the best, which is then chosen on test (0: at the end only)",
    )
    text = "Let a detector live through nights of drift, one folder a night, and judge every state on every night."
    drift = protocols.add_parser("drift", help=text, description=text)
    drift.set_defaults(function=_drift)
    drift.add_argument("--shuffle", action="store_true", help="take the nights in another order, decided by the seed")
    drift.add_argument("--parts", default="", metavar="CSV", help="columns path and part: which images show one part")
    for sub, default in ((categories, "recipe"), (drift, "recipe and no-update")):
        sub.add_argument("--root", required=True, help="folder of folders in MVTec layout")
        sub.add_argument("--strategy", action="append", default=[], help=f"what is measured; may repeat ({default})")
        sub.add_argument("--seed", action="append", type=int, default=[], help="may repeat (0)")
        sub.add_argument("--recipe", default="lite", help="recipe of STLM (lite)")
        sub.add_argument("--out", default="", metavar="FOLDER", help="write JSON and a page there, too")
