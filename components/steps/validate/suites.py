"""Expectation suites: the image contract for Great Expectations, and the run that checks it.

Per-image expectations have severity ``warning``: their rows are quarantined. Per-lot ones are ``critical``: their rows
are lots that are rejected whole. Every expectation carries the reason that people read.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.checkpoint.actions import UpdateDataDocsAction
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull
from great_expectations.expectations.core.expect_column_values_to_be_unique import ExpectColumnValuesToBeUnique
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
from great_expectations.expectations.core.expect_table_row_count_to_be_between import ExpectTableRowCountToBeBetween
from great_expectations.expectations.expectation import ColumnMapExpectation, Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from components.config import ValidateSettings

__all__ = [
    "ValidationRun",
    "Violation",
    "clip_check_suite",
    "content_suite",
    "counts_suite",
    "identity_suite",
    "lots_suite",
    "screening_suite",
]

ROW = "row"
"""Column by which findings are led back to their rows; unique in each table."""
_SITE = "night"
_ACCEPTED_BITS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One broken expectation."""

    reason: str
    critical: bool
    rows: tuple[int, ...]
    """Values of the column ``row`` where it is broken; empty where the table as a whole breaks it."""


class ValidationRun:
    """An ephemeral Great Expectations context that writes its data docs into a folder.

    Args:
        folder: Where the HTML goes.
        night: The partition: stands on every page in place of the clock, so that a re-run writes the same pages.
    """

    def __init__(self, folder: Path, night: str) -> None:
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._context.delete_data_docs_site("local_site")
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())}
        self._context.add_data_docs_site(
            site_name=_SITE,
            site_config={
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": store,
            },
        )
        self._source = self._context.data_sources.add_pandas("night")
        midnight = dt.datetime.combine(dt.date.fromisoformat(night), dt.time(), tzinfo=dt.UTC)
        self._run = RunIdentifier(run_name=night, run_time=midnight)
        self.index_page = folder / "index.html"

    def check(self, name: str, table: pd.DataFrame, expectations: Sequence[Expectation]) -> list[Violation]:
        """Run a suite over a table and add it to the data docs.

        Args:
            name: Of the suite; once per inspection.
            table: Has the column ``row``.
            expectations: Each with ``meta={"reason": ...}`` and a severity.

        Returns:
            One finding per broken expectation, in their order.
        """
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        suite = self._context.suites.add(gx.ExpectationSuite(name=name, expectations=list(expectations)))
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[self._context.validation_definitions.add(definition)],
            actions=[UpdateDataDocsAction(name="docs", site_names=[_SITE])],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]},
        )
        result = self._context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table}, run_id=self._run)
        (run,) = result.run_results.values()
        return [_finding(entry) for entry in run.results if not entry.success]


def _finding(entry: Any) -> Violation:
    config = entry.expectation_config
    if "unexpected_index_list" not in entry.result and "observed_value" not in entry.result:
        # An expectation that could not be computed has neither found nor excluded anything.
        raise RuntimeError(f"expectation {config.type} {config.kwargs} could not be computed: {entry.exception_info}")
    rows = tuple(int(place[ROW]) for place in entry.result.get("unexpected_index_list") or ())
    return Violation(reason=config.meta["reason"], critical=config.severity is FailureSeverity.CRITICAL, rows=rows)


def _image(expectation: type[ColumnMapExpectation], reason: str, column: str, **limits: Any) -> Expectation:
    return expectation(column=column, severity=FailureSeverity.WARNING, meta={"reason": reason}, **limits)


def _lot(expectation: type[ColumnMapExpectation], reason: str, column: str, **limits: Any) -> Expectation:
    return expectation(column=column, severity=FailureSeverity.CRITICAL, meta={"reason": reason}, **limits)


def lots_suite(key: str, settings: ValidateSettings) -> list[Expectation]:
    """What a lot must be before its images are looked at; table: one row per lot.

    Args:
        key: Slug of the model key whose night it is.
        settings: The limits.

    Returns:
        Critical expectations.
    """
    between = ExpectColumnValuesToBeBetween
    return [
        ExpectTableRowCountToBeBetween(min_value=1, severity=FailureSeverity.CRITICAL, meta={"reason": "no lot"}),
        _lot(ExpectColumnValuesToNotBeNull, "lot without a name", "lot"),
        _lot(ExpectColumnValuesToBeUnique, "lot listed twice", "lot"),
        _lot(ExpectColumnValuesToBeInSet, "another model key", "key", value_set=[key]),
        _lot(between, "dated outside the window", "age_days", min_value=0, max_value=settings.max_age_days),
        _lot(between, "no images", "num_listed", min_value=1),
        _lot(ExpectColumnValuesToBeInSet, "files missing", "num_missing", value_set=[0]),
    ]


def content_suite(sizes: Sequence[str], settings: ValidateSettings) -> list[Expectation]:
    """What a picture must be on its own; table: one row per image.

    Args:
        sizes: Accepted ``height x width``; empty for any.
        settings: The limits.

    Returns:
        Expectations of severity warning.
    """
    between = ExpectColumnValuesToBeBetween
    within = ExpectColumnValuesToBeInSet
    dark, bright = settings.mean_brightness
    expectations = [
        _image(within, "unreadable", "decodes", value_set=[True]),
        _image(within, "mode", "mode", value_set=list(settings.modes)),
        _image(within, "bit depth", "bit_depth", value_set=[_ACCEPTED_BITS]),
        _image(between, "too small", "shorter_side", min_value=settings.min_side_px),
        _image(between, "dark", "brightness", min_value=dark),
        _image(between, "bright", "brightness", max_value=bright),
        _image(between, "blurred", "relative_sharpness", min_value=settings.min_sharpness),
        _image(between, "low information", "entropy_bits", min_value=settings.min_entropy_bits),
        # A day of grace: the camera's clock knows no time zone.
        _image(between, "taken outside the window", "taken_days", min_value=-1, max_value=settings.max_age_days + 1),
    ]
    if sizes:
        expectations.append(_image(within, "size", "size", value_set=list(sizes)))
    return expectations


def identity_suite() -> list[Expectation]:
    """Who a picture must not be; table: one row per image, null where it has no double."""
    null = ExpectColumnValuesToBeNull
    return [
        _image(null, "exact duplicate in the night", "same_in_night"),
        _image(null, "exact duplicate of an earlier night", "same_in_history"),
        _image(null, "copy of a golden image", "same_in_golden"),
        _image(null, "near duplicate in the night", "near_in_night"),
        _image(null, "near duplicate of an earlier night", "near_in_history"),
        _image(null, "near duplicate of a golden image", "near_in_golden"),
    ]


def screening_suite() -> list[Expectation]:
    """No picture of a defective part; table: one row per image with its excess over the limit."""
    return [
        _image(ExpectColumnValuesToBeBetween, "looks defective to the champion", "champion_excess", max_value=0.0),
        _image(ExpectColumnValuesToBeBetween, "outlier of the night", "outlier_excess", max_value=0.0),
    ]


def clip_check_suite() -> list[Expectation]:
    """Nothing that CLIP finds strange either; table: one row per image with its excess over the limit."""
    return [_image(ExpectColumnValuesToBeBetween, "suspicious to CLIP", "second_excess", max_value=0.0)]


def counts_suite(settings: ValidateSettings) -> list[Expectation]:
    """What must be left of a lot; table: one row per lot.

    Args:
        settings: The limits.

    Returns:
        Critical expectations.
    """
    between = ExpectColumnValuesToBeBetween
    return [
        _lot(between, "too few accepted", "num_accepted", min_value=settings.min_images),
        _lot(
            between,
            "too many quarantined",
            "quarantined_share",
            min_value=0.0,
            max_value=settings.max_quarantined_share,
        ),
    ]
