"""What serves now, how the last nights went, and where their pages are."""

import json
import webbrowser
from pathlib import Path

from components.config import ModelSettings
from components.console._summary import page_of, verdict_of
from components.console._workspace import Workspace
from components.contracts import ModelRef
from components.errors import InputError
from components.night_record import nights, read_night

__all__ = ["champion_of", "report", "status"]


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
    tracking = workspace.config.mlflow.tracking_uri
    scheme, _, database = tracking.partition(":///")
    if scheme == "sqlite" and not Path(database).exists():
        return None  # asking would create it
    from components.adapters.registry import ModelRegistry

    registry = ModelRegistry(tracking, Path(workspace.config.paths.work_dir) / "models")
    return registry.champion(model.key, workspace.config.promote.alias)


def status(workspace: Workspace, *, num_nights: int) -> int:
    """Print champion, threshold and last nights of every key; 0."""
    for model in workspace.config.models:
        print(model.key.slug)
        print(f"  {_champion_line(workspace, model)}")
        known = nights(workspace.config.paths.work_dir, model.key)
        if not known:
            print("  no night has been run")
        for run in known[-num_nights:]:
            records = read_night(run)
            image_auroc = _image_auroc(records["evaluate"].outputs) if "evaluate" in records else ""
            print(f"  {run.partition}  {verdict_of(records):<13} {image_auroc:<20} {page_of(records) or ''}".rstrip())
    return 0


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
