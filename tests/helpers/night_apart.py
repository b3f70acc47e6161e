"""A whole night by its steps alone, in processes of their own that can be told where to die."""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.config import PipelineConfig, load_config
from components.contracts import RunRef

__all__ = ["DIED", "night_apart", "run_night"]

DIED = 77
"""Exit status of a process that died where it was told to."""
_HEAVY = ("collect", "version", "validate", "fine_tune", "evaluate", "export", "gate", "promote", "report")


def run_night(config: PipelineConfig, partition: str) -> dict[str, Any]:
    """The steps of ``nightly_retrain`` one after the other; what each of them gave.

    Args:
        config: Of one model key.
        partition: The night.

    Returns:
        Step -> contract.
    """
    from components import collect, evaluate, export, fine_tune, gate, promote, report, validate, version

    model, paths, mlflow = config.models[0], config.paths, config.mlflow
    run = RunRef(key=model.key, partition=partition, work_dir=paths.work_dir)
    stores = {"dvc_remote": paths.dvc_remote, "s3_endpoint_url": paths.s3_endpoint_url}
    done: dict[str, Any] = {}
    done["collect"] = collected = collect.collect(
        collect.CollectInputs(
            run=run, landing=paths.landing, s3_endpoint_url=paths.s3_endpoint_url, settings=config.collect
        )
    )
    assert collected.batch is not None
    done["version"] = dataset = version.version(
        version.VersionInputs(run=run, batch=collected.batch, data_repo=paths.data_repo, **stores)
    )
    done["validate"] = validation = validate.validate(
        validate.ValidateInputs(
            run=run, dataset=dataset, golden=model.golden, mlflow=mlflow, settings=config.validate, **stores
        )
    )
    done["fine_tune"] = candidate = fine_tune.fine_tune(
        fine_tune.FineTuneInputs(
            run=run, dataset=dataset, validation=validation, recipe=model.recipe, settings=config.fine_tune, **stores
        )
    )
    done["evaluate"] = evaluation = evaluate.evaluate(
        evaluate.EvaluateInputs(
            run=run,
            candidate=candidate,
            champion=validation.champion,
            golden=model.golden,
            settings=config.evaluate,
            validate=config.validate,
        )
    )
    done["export"] = package = export.export(
        export.ExportInputs(
            run=run,
            candidate=candidate,
            evaluation=evaluation,
            champion=validation.champion,
            golden=model.golden,
            settings=config.export,
        )
    )
    done["gate"] = decision = gate.gate(
        gate.GateInputs(
            run=run,
            evaluation=evaluation,
            package=package,
            golden=model.golden,
            settings=config.gate,
            export=config.export,
        )
    )
    done["promote"] = promotion = promote.promote(
        promote.PromoteInputs(
            run=run,
            package=package,
            decision=decision,
            dataset=dataset,
            validation=validation,
            evaluation=evaluation,
            candidate=candidate,
            mlflow=mlflow,
            settings=config.promote,
        )
    )
    done["report"] = report.report(
        report.ReportInputs(
            run=run,
            collect=collected.to_json(),
            dataset=dataset,
            validation=validation,
            candidate=candidate,
            evaluation=evaluation,
            package=package,
            decision=decision,
            promotion=promotion,
            failures=(),
            golden=model.golden,
            mlflow=mlflow,
            settings=config.report,
        )
    )
    return done


def _end(config: PipelineConfig, done: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on where processes died."""
    from mlflow import MlflowClient

    from components._promotion.desk import open_desk

    key, mlflow = config.models[0].key, config.mlflow
    client = MlflowClient(mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    desk = open_desk(key, work_dir=config.paths.work_dir, mlflow=mlflow, settings=config.promote)
    chain, posted = desk.look()
    assert posted is not None
    assert posted.tags["stlm.ledger_head"] == chain.head
    package = Path(done["export"].package_dir)
    return {
        "batch": done["collect"].batch.digest,
        "dataset": done["version"],
        "validation": done["validate"],
        "candidate": done["fine_tune"].candidate_key,
        "steps": done["fine_tune"].num_steps,
        "metrics": done["evaluate"].metrics,
        "calibration": json.loads((package / "calibration.json").read_text(encoding="utf-8")),
        "onnx": hashlib.sha256((package / "model.onnx").read_bytes()).hexdigest(),
        "verdict": done["gate"].verdict,
        "champion": done["promote"].champion_version,
        "versions": len(client.search_model_versions(f"name = '{key.registered_model}'")),
        "runs": len(client.search_runs([e.experiment_id for e in client.search_experiments()])),
        "aliases": dict(posted.aliases),
        "commits": [entry.body["champion"] for entry in chain.entries if entry.kind == "commit"],
        "page": Path(done["report"].page_path).exists(),
    }


def _die_at(where: str) -> Callable[[str, tuple[Any, ...]], None]:
    """A hook that ends the process, without a word, before (``-``) or after (``+``) a file gets its name."""
    when, suffix = where[0], where[1:]
    seen = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if seen:  # the first thing that is done after it
            os._exit(DIED)
        if event in ("os.rename", "os.link") and str(arguments[1]).endswith(suffix):
            if when == "-":
                os._exit(DIED)
            seen = True

    # A change is announced before it happens: only a later event proves that it has.
    return hook


def _work(config_path: Path, partition: str, where: str, outputs: Path) -> None:
    from components._cli import write_json

    config = load_config(config_path)
    if where:
        sys.addaudithook(_die_at(where))
    write_json(outputs, _end(config, run_night(config, partition)))


def night_apart(config_path: Path, partition: str, *, dies: str = "") -> dict[str, Any]:
    """Run a night in a process of its own, forked from one that has only imported what nights need.

    Args:
        config_path: The configuration.
        partition: The night.
        dies: ``-name`` or ``+name``: be gone before or after a file whose path ends so gets its name; empty: live.

    Returns:
        How the night ended, without what the clock says; empty where the process died as it was told to.

    Raises:
        AssertionError: It ended in another way.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"components.{step}" for step in _HEAVY])
    outputs = config_path.with_name("night.json")
    process = context.Process(target=_work, args=(config_path, partition, dies, outputs))
    process.start()
    process.join()
    assert process.exitcode == (DIED if dies else 0), f"dies={dies!r}: ended with {process.exitcode}"
    end: dict[str, Any] = {} if dies else json.loads(outputs.read_text(encoding="utf-8"))
    return end
