"""Command line ``stlm``: arguments in, exit code out; every command's work is in a module of its own."""

import argparse
import os
import sys
from collections.abc import Callable

from components.cli.bench_args import add_bench_commands
from components.cli.maintenance_args import add_operator_commands
from components.cli.promotion_args import add_promotion_commands
from components.core.errors import EXIT_INPUT_ERROR, EXIT_TRANSIENT_ERROR, InputError, TransientError
from components.local_stack.workspace import Workspace, open_workspace

__all__ = ["main"]

Command = Callable[[Workspace, argparse.Namespace], int]


def _nightly(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.nightly import run_nights

    return run_nights(workspace, key=args.key, nights=args.nights, partitions=args.night, port=args.port)


def _up(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.local_stack.web_interfaces import up

    return up(workspace, airflow_port=args.port, mlflow_port=args.mlflow_port)


def _up_services(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.local_stack.services import up_services

    return up_services(workspace, airflow_port=args.port, mlflow_port=args.mlflow_port)


def _down(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.local_stack.web_interfaces import down

    del args
    return down(workspace)


def _status(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.status import status

    return status(workspace, num_nights=args.nights)


def _doctor(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.doctor import doctor

    del args
    return doctor(workspace)


def _report(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.status import report

    return report(workspace, key=args.key, partition=args.night, open_page=args.open)


def _backfill(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.backfill import backfill

    return backfill(
        workspace,
        key=args.key,
        first=args.first,
        last=args.last,
        mode=args.mode,
        only_plan=args.plan,
        skip_bad=args.skip_bad,
        ancestor=args.ancestor,
    )


def _screen(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.annotate import screen

    return screen(
        workspace,
        folder=args.folder,
        key=args.key,
        night=args.night,
        map_of=args.map,
        accept=args.accept,
        lot=args.lot,
        open_page=args.open,
    )


def _masks(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.cli.annotate import masks

    return masks(
        workspace,
        folder=args.folder,
        key=args.key,
        defect=args.defect,
        map_of=args.map,
        accept=args.accept,
        golden=args.golden,
        open_page=args.open,
    )


def _data(workspace: Workspace, args: argparse.Namespace) -> int:
    from components.quickstart import materialise

    del args
    materialise(workspace.data)
    print(f"The quick start's data are in {workspace.data}")
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"a port is below 65536, got {port}")
    return port


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stlm", description="Nightly retraining of a visual anomaly detector.")
    parser.add_argument("--config", default="", help="configuration file (default: $STLM_CONFIG, else the quick start)")
    parser.add_argument("--state", default="", help="folder of Airflow's database and logs (default: var)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    nightly = command("nightly", _nightly, "Run nights under Airflow's own scheduler and tell how they went.")
    nightly.add_argument("--nights", type=_at_least_one, default=3, help="how many of the quick start's nights (3)")
    nightly.add_argument("--night", action="append", default=[], metavar="YYYY-MM-DD", help="this night; may repeat")
    nightly.add_argument("--key", default="", help="model key, product.line.camera")
    nightly.add_argument("--port", type=_port, default=0, help="Airflow's port for the time of the run (0: a free one)")

    up = command("up", _up, "Start the web interfaces of Airflow and MLflow; Ctrl-C ends them.")
    up.add_argument("--port", type=_port, default=8080, help="Airflow's port (8080)")
    up.add_argument("--mlflow-port", type=_port, default=5000, help="MLflow's port (5000)")
    services = command(
        "up-services", _up_services, "Start PostgreSQL, an S3 server, MLflow and Airflow on them; Ctrl-C ends them."
    )
    services.add_argument("--port", type=_port, default=0, help="Airflow's port (as before, else 8080 or a free one)")
    services.add_argument("--mlflow-port", type=_port, default=0, help="MLflow's (as before, else 5000 or a free one)")
    command("down", _down, "Stop what `stlm up` or `stlm up-services` started.")

    status = command("status", _status, "Champion, threshold and last nights of every model key.")
    status.add_argument("--nights", type=_at_least_one, default=7, help="how many nights to list (7)")
    command("doctor", _doctor, "Check the installation and the stores; say what to do about what is wrong.")

    report = command("report", _report, "Where a night's page is.")
    report.add_argument("--key", default="", help="model key, product.line.camera")
    report.add_argument("--night", default="", metavar="YYYY-MM-DD", help="which night (the newest)")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    command("data", _data, "Make the quick start's data.")
    add_promotion_commands(command, _at_least_one)

    backfill = command("backfill", _backfill, "Old nights once more, beside what serves: plan, replay or score them.")
    backfill.add_argument("--key", default="", help="model key, product.line.camera or product/line/camera")
    backfill.add_argument("--from", dest="first", required=True, metavar="YYYY-MM-DD", help="the first night")
    backfill.add_argument("--to", dest="last", required=True, metavar="YYYY-MM-DD", help="the last night")
    backfill.add_argument("--plan", action="store_true", help="say what would be done, and change nothing")
    backfill.add_argument(
        "--mode",
        choices=("replay", "evaluate-only"),
        default="replay",
        help="rebuild the lineage (replay), or score old candidates on today's golden set",
    )
    backfill.add_argument("--skip-bad", action="store_true", help="leave out nights whose images cannot be used")
    backfill.add_argument(
        "--ancestor", default="", metavar="NIGHT", help="the night to build on, or none (the last champion before)"
    )

    add_operator_commands(command, _at_least_one)
    screen = command("screen", _screen, "Put images before a person, most suspicious first; the accepted become a lot.")
    screen.add_argument("--night", default="", metavar="YYYY-MM-DD", help="the night that the images are for")
    screen.add_argument("--lot", default="", help="name of the accepted lot (YYYYMMDD-screened)")
    masks = command("masks", _masks, "Propose masks for confirmed defects; the accepted go into the golden set.")
    masks.add_argument("--defect", default="", help="class of the defects (default: the names of FOLDER's sub-folders)")
    masks.add_argument("--golden", default="", help="the golden set (default: the key's)")
    for sub in (screen, masks):
        sub.add_argument("folder", nargs="?", default="", metavar="FOLDER", help="the images")
        sub.add_argument("--key", default="", help="model key, product.line.camera")
        sub.add_argument(
            "--map",
            choices=("auto", "clip", "champion"),
            default="auto",
            help="whose map (the champion's, else CLIP's)",
        )
        sub.add_argument("--accept", default="", metavar="FILE", help="carry out the page's decisions")
        sub.add_argument("--open", action="store_true", help="open the page in the browser")
    add_bench_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; the process's own where it is None.

    Returns:
        0, or 1 when a night failed or a check found a problem, 65 for wrong input, 75 when a retry may help, 130
        after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # what goes wrong is told in one line
    try:
        function: Command = args.function
        return function(open_workspace(args.config, args.state), args)
    except InputError as error:
        sys.stderr.write(f"stlm: {error}\n")
        return EXIT_INPUT_ERROR
    except TransientError as error:
        sys.stderr.write(f"stlm: {error}\n")
        return EXIT_TRANSIENT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("stlm: stopped\n")
        return 130
