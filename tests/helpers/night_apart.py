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
from components.core.contracts import RunRef
from components.steps.inputs import NightInputs

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
    from components.steps.collect.step import collect
    from components.steps.evaluate.step import evaluate
    from components.steps.export.step import export
    from components.steps.fine_tune.step import fine_tune
    from components.steps.gate.step import gate
    from components.steps.promote.step import promote
    from components.steps.report.step import report
    from components.steps.validate.step import validate
    from components.steps.version.step import version

    model = config.models[0]
    run = RunRef(key=model.key, partition=partition, work_dir=config.paths.work_dir)
    inputs = NightInputs(config=config, model=model, run=run)
    collected = collect(inputs.collect())
    assert collected.batch is not None
    dataset = version(inputs.version(collected.batch))
    validation = validate(inputs.validate(dataset))
    champion, anchor = validation.champion, validation.anchor
    candidate = fine_tune(inputs.fine_tune(dataset, validation))
    evaluation = evaluate(inputs.evaluate(candidate, champion=champion, anchor=anchor))
    package = export(inputs.export(candidate, evaluation, champion=champion))
    decision = gate(inputs.gate(evaluation, package))
    evidence: dict[str, Any] = {
        "dataset": dataset,
        "validation": validation,
        "candidate": candidate,
        "evaluation": evaluation,
        "package": package,
        "decision": decision,
    }
    promotion = promote(inputs.promote(**evidence))
    page = report(inputs.report({"collect": collected.to_json(), **evidence, "promotion": promotion}))
    return {
        "collect": collected,
        "version": dataset,
        "validate": validation,
        "fine_tune": candidate,
        "evaluate": evaluation,
        "export": package,
        "gate": decision,
        "promote": promotion,
        "report": page,
    }


def _end(config: PipelineConfig, done: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on where processes died."""
    from mlflow import MlflowClient

    from components.promotion.alias_transaction import open_alias_manager

    key, mlflow = config.models[0].key, config.mlflow
    client = MlflowClient(mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    manager = open_alias_manager(key, work_dir=config.paths.work_dir, mlflow=mlflow, settings=config.promote)
    chain, posted = manager.snapshot()
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
    from components.core.atomic_files import write_json

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
    context.set_forkserver_preload([f"components.steps.{step}.step" for step in _HEAVY])
    outputs = config_path.with_name("night.json")
    process = context.Process(target=_work, args=(config_path, partition, dies, outputs))
    process.start()
    process.join()
    assert process.exitcode == (DIED if dies else 0), f"dies={dies!r}: ended with {process.exitcode}"
    end: dict[str, Any] = {} if dies else json.loads(outputs.read_text(encoding="utf-8"))
    return end
