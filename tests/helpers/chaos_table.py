"""One table of what was broken and how it ended: a row for each ``chaos(case, outcome=...)`` that was run."""

import ast
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Row", "declared", "rows_of", "table"]

_PROPERTY = "chaos"


@dataclass(slots=True)
class Row:
    """A case and how its tests went."""

    case: str
    outcome: str
    """What its tests hold the end to be."""
    results: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """``passed``, ``skipped`` or ``FAILED``, with the number of tests where there are several."""
        worst = next((name for name in ("failed", "skipped") if name in self.results), "passed")
        count = f" ({self.results.count(worst)} of {len(self.results)})" if len(self.results) > 1 else ""
        return (worst.upper() if worst == "failed" else worst) + count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    for mark in item.iter_markers("chaos"):
        report.user_properties.append((_PROPERTY, (mark.args[0], mark.kwargs["outcome"])))
    return report


def rows_of(reports: Iterable[pytest.TestReport]) -> list[Row]:
    """The rows, in the order in which their first tests were run."""
    rows: dict[tuple[str, str], Row] = {}
    for report in reports:
        marks: list[Any] = [value for name, value in report.user_properties if name == _PROPERTY]
        for case, outcome in marks:
            row = rows.setdefault((case, outcome), Row(case, outcome))
            row.seconds += report.duration
            if report.when == "call" or report.outcome != "passed":
                row.results.append(report.outcome)
    return list(rows.values())


def declared(tests: Path) -> list[tuple[str, str]]:
    """Case and outcome of every mark in the files below ``tests``, in the order in which pytest runs them."""
    found: list[tuple[str, str]] = []
    for path in sorted(tests.rglob("test_*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.chaos"]
        for mark in sorted(marks, key=lambda call: call.lineno):
            ((case,), (outcome,)) = mark.args, mark.keywords
            found.append((str(ast.literal_eval(case)), str(ast.literal_eval(outcome.value))))
    return found


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown, in columns."""
    head = ("case", "outcome", "result", "seconds")
    cells = [head, *((row.case, row.outcome, row.result, f"{row.seconds:.1f}") for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |" for line in cells]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if "chaos" not in str(config.option.markexpr):
        return
    reports = [r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)]
    rows = rows_of(sorted(reports, key=lambda report: report.start))
    if rows:
        terminalreporter.section("what was broken, and how it ended")
        for line in table(rows):
            terminalreporter.write_line(line)
