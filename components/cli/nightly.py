"""``stlm nightly``: nights one after the other under Airflow's own scheduler, as the clock would start them."""

import contextlib
import time

from components.cli.progress import elapsed, watch
from components.cli.summary import night_lines
from components.core.contracts import RunRef
from components.core.errors import InputError, TransientError
from components.core.run_records import is_finished, read_night
from components.local_stack.airflow import LocalAirflow, start_airflow
from components.local_stack.processes import ProcessGroup, free_port, interruptible
from components.local_stack.workspace import Workspace

__all__ = ["run_nights"]


def run_nights(workspace: Workspace, *, key: str, nights: int, partitions: list[str], port: int) -> int:
    """Run what is not finished of the nights asked for, then tell how each went.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        nights: How many of the quick start's nights, where ``partitions`` is empty.
        partitions: The nights, ``YYYY-MM-DD``.
        port: Airflow's port; 0 for a free one.

    Returns:
        0 if all of them ended well, otherwise 1.

    Raises:
        InputError: The key or a night is wrong.
        TransientError: Airflow did not come up or went down.
    """
    model = workspace.model(key)
    quick_start = not partitions
    if quick_start:
        partitions = _quick_start_nights(workspace, model.key.slug, nights)
    runs = [workspace.run(model, partition) for partition in partitions]
    pending = [run for run in runs if not is_finished(read_night(run))]
    if pending:
        with interruptible():
            _run(workspace, pending, feed=quick_start, port=port or free_port())
    print()
    for run in runs:
        print("\n".join(night_lines(run)), end="\n\n")
    if not pending:
        print("All of these nights were finished before; nothing was run.")
    print("`make up` starts the web interfaces of Airflow and MLflow; `stlm status` shows the champion.")
    return 0 if all(is_finished(read_night(run)) for run in runs) else 1


def _quick_start_nights(workspace: Workspace, slug: str, nights: int) -> list[str]:
    from components import quickstart

    if slug != quickstart.KEY.slug:
        raise InputError(f"which night of {slug}? give it with --night YYYY-MM-DD (only the quick start has its own)")
    if nights > len(quickstart.NIGHTS):
        raise InputError(f"the quick start has {len(quickstart.NIGHTS)} nights, not {nights}")
    quickstart.materialise(workspace.data)
    return list(quickstart.NIGHTS[:nights])


def _run(workspace: Workspace, runs: list[RunRef], *, feed: bool, port: int) -> None:
    started = time.monotonic()
    dag_id = f"nightly_retrain.{runs[0].key.slug}"
    print(f"Airflow starts; logs in {workspace.airflow_home / 'logs'}", flush=True)
    with ProcessGroup(workspace.state) as programs:
        airflow = start_airflow(
            programs,
            workspace.airflow_home,
            workspace.config_path,
            api_port=port,
            scheduled=False,
            with_triggerer=False,
            people=workspace.approvers,
        )
        airflow.wait_for_dag(dag_id)
        if workspace.approvers:
            print(f"Approvers answer at {airflow.url}; their passwords are in {workspace.airflow_home}/passwords.json")
        print(f"Airflow is up at {airflow.url} after {elapsed(time.monotonic() - started)}", flush=True)
        airflow.api.pause(dag_id, False)
        try:
            for run in runs:
                if feed:
                    _feed(workspace, run)
                if not _one_night(airflow, dag_id, run):
                    return  # the nights after a failed one would build on it
        finally:
            with contextlib.suppress(TransientError):
                airflow.api.pause(dag_id, True)  # so that `make up` starts no night by itself


def _feed(workspace: Workspace, run: RunRef) -> None:
    from components.quickstart import feed_landing

    paths = workspace.config.paths
    lots = feed_landing(
        workspace.data / "landing", paths.landing, run.key, run.partition, s3_endpoint_url=paths.s3_endpoint_url
    )
    print(f"\nNight {run.partition}: {len(lots)} lots delivered to {paths.landing}", flush=True)


def _one_night(airflow: LocalAirflow, dag_id: str, run: RunRef) -> bool:
    """Start the night, or take up the run that is there already; true if it succeeded."""
    started = time.monotonic()
    run_id = f"stlm__{run.partition}"
    known = airflow.api.run(dag_id, run_id)
    if known is None:
        airflow.api.trigger(dag_id, run_id, run.partition)
    elif known["state"] == "failed":
        airflow.api.clear(dag_id, run_id, only_failed=True)
    elif known["state"] == "success":  # but its records are gone: the steps find what they had done
        airflow.api.clear(dag_id, run_id, only_failed=False)
    else:  # this Airflow has only just started: what its database calls running has died
        airflow.api.clear_running(dag_id, run_id)
    state = watch(airflow, dag_id, run_id)
    print(f"Night {run.partition}: {state} after {elapsed(time.monotonic() - started)}", flush=True)
    return state == "success"
