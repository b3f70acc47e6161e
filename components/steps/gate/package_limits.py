"""Package limits of the gate: same decisions, in time, of bearable size."""

import math
from collections.abc import Iterator

from components.config import ExportSettings, GateSettings
from components.core.contracts import PackageRef, Reason, Verdict

__all__ = ["package_rules"]


def package_rules(
    package: PackageRef, export: ExportSettings, settings: GateSettings, *, has_champion: bool
) -> Iterator[Reason]:
    """Export parity, latency and size.

    Args:
        package: What export measured.
        export: Limits of the parity.
        settings: Budgets.
        has_champion: Whether a champion's time must be there.

    Yields:
        One reason per rule; only parity's where there is no exported file.
    """
    yield _parity(package, export)
    if package.error:
        return
    yield _latency(package, settings, has_champion=has_champion)
    size, limit = package.size_bytes, settings.max_package_bytes
    yield Reason(
        rule="package size",
        verdict=Verdict.REJECT if size > limit else Verdict.PROMOTE,
        detail=f"The package has {size / 1e6:.1f} MB; the limit is {limit / 1e6:.1f} MB.",
        value=float(size),
        limit=float(limit),
    )


def _parity(package: PackageRef, export: ExportSettings) -> Reason:
    difference, limit = package.max_score_difference, export.max_score_difference
    if package.error:
        detail = f"There is no exported file: {package.error}"
        return Reason(rule="export parity", verdict=Verdict.REJECT, detail=detail, limit=limit)
    same = (
        package.num_parity_images > 0
        and package.num_decision_flips == 0
        and math.isfinite(difference)
        and difference <= limit
    )
    return Reason(
        rule="export parity",
        verdict=Verdict.PROMOTE if same else Verdict.REJECT,
        detail=(
            f"On {package.num_parity_images} golden images the exported file differs from the model by at most "
            f"{difference:.2e} in score (limit {limit:.2e}) and in {package.num_decision_flips} decisions."
        ),
        value=difference if math.isfinite(difference) else None,
        limit=limit,
    )


def _latency(package: PackageRef, settings: GateSettings, *, has_champion: bool) -> Reason:
    ours, theirs, limit = package.onnx_ms_per_image, package.champion_ms_per_image, settings.max_ms_per_image
    measured = [ours] + ([theirs] if theirs is not None else [])
    if (has_champion and theirs is None) or not all(math.isfinite(value) and value > 0 for value in measured):
        detail = f"Times are missing: candidate {ours}, champion {theirs} ms."
        return Reason(rule="latency", verdict=Verdict.ERROR, detail=detail, limit=limit)
    detail = f"The exported file takes {ours:.1f} ms an image on one thread; the limit is {limit:.0f} ms."
    too_slow = ours > limit
    if theirs is not None:
        ratio = ours / theirs
        too_slow |= ratio > settings.max_latency_ratio
        detail += (
            f" The champion's took {theirs:.1f} ms in the same run: {ratio:.2f} times as long, the limit is "
            f"{settings.max_latency_ratio:.2f}."
        )
    return Reason(
        rule="latency",
        verdict=Verdict.REJECT if too_slow else Verdict.PROMOTE,
        detail=detail,
        value=ours,
        limit=limit,
    )
