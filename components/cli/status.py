"""``stlm status``: what serves now, how the last nights went, and where their pages are."""

import json
import webbrowser
from pathlib import Path

from components.cli.summary import page_of, verdict_of
from components.config import ModelSettings
from components.core.contracts import ModelRef
from components.core.errors import InputError
from components.core.run_records import nights, read_night
from components.local_stack.workspace import Workspace

__all__ = ["champion_of", "report", "status"]

_NUM_ENTRIES = 3


def champion_of(workspace: Workspace, model: ModelSettings) -> ModelRef | None:
    """The model that serves now.

    Args:
        workspace: Configuration and state.
        model: Whose champion.

    Returns:
        The version that carries the alias, or None before the first promotion.

    Raises:
        InputError: The alias is missing although there was a champion.
        TransientError: MLflow cannot be reached.
    """
    if not workspace.has_registry:
        return None
    from components.adapters.mlflow.registry import ModelRegistry

    registry = ModelRegistry(workspace.config.mlflow.tracking_uri, Path(workspace.config.paths.work_dir) / "models")
    return registry.champion(model.key)


def status(workspace: Workspace, *, num_nights: int) -> int:
    """Print champion, threshold, last nights and last ledger entries of every key; 0, or 1 for a broken ledger."""
    num_broken = 0
    for model in workspace.config.models:
        print(model.key.slug)
        print(f"  {_champion_line(workspace, model)}")
        try:
            lines = _ledger_lines(workspace, model)
        except InputError as error:
            num_broken += 1
            lines = [f"PROBLEM  {error}"]
        print("".join(f"  {line}\n" for line in lines), end="")
        known = nights(workspace.config.paths.work_dir, model.key)
        if not known:
            print("  no night has been run")
        for run in known[-num_nights:]:
            records = read_night(run)
            image_auroc = _image_auroc(records["evaluate"].outputs) if "evaluate" in records else ""
            page = page_of(records)
            place = page if page is not None and page.exists() else ""  # old pages are swept away
            print(f"  {run.partition}  {verdict_of(records):<13} {image_auroc:<20} {place}".rstrip())
    return 1 if num_broken else 0


def _ledger_lines(workspace: Workspace, model: ModelSettings) -> list[str]:
    if not workspace.has_registry:
        return []
    from components.cli.ledger import last_lines

    return last_lines(workspace, model, limit=_NUM_ENTRIES)


def _champion_line(workspace: Workspace, model: ModelSettings) -> str:
    champion = champion_of(workspace, model)
    if champion is None:
        return "no champion yet"
    calibration = json.loads((Path(champion.package_dir) / "calibration.json").read_text(encoding="utf-8"))
    return (
        f"champion: version {champion.version} of {champion.name}, threshold {calibration['threshold']:.4g} "
        f"(target false-alarm rate {calibration['target_false_alarm_rate']:.0%})"
    )


def _image_auroc(evaluation: dict[str, object] | None) -> str:
    metrics = (evaluation or {}).get("metrics")
    value = metrics.get("image_auroc") if isinstance(metrics, dict) else None
    return "" if value is None else f"image AUROC {value:.3f}"


def report(workspace: Workspace, *, key: str, partition: str, open_page: bool) -> int:
    """Print the path of a night's page, and open it if asked to.

    Args:
        workspace: Configuration and state.
        key: Model key; empty for the only one.
        partition: The night; empty for the newest that has a page.
        open_page: Whether to open it in the browser.

    Returns:
        0.

    Raises:
        InputError: There is no such page.
    """
    model = workspace.model(key)
    wanted = [workspace.run(model, partition)] if partition else nights(workspace.config.paths.work_dir, model.key)
    pages = [page for run in wanted if (page := page_of(read_night(run))) and page.exists()]
    if not pages:
        raise InputError(
            f"there is no page of {partition or 'any night'} for {model.key.slug}; `stlm status` lists them"
        )
    print(pages[-1])
    if open_page:
        webbrowser.open(pages[-1].as_uri())
    return 0
