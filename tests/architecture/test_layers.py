"""The contracts of import-linter, so that a broken layer fails where the tests are run as well."""

import ast
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from components.airflow_env import repository_root

ROOT = repository_root()
SOURCES = sorted(path for folder in ("dags", "components", "stlm") for path in (ROOT / folder).rglob("*.py"))


def test_no_layer_reaches_upwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_fits_in_a_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_only_the_edges_read_environment_variables() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    allowed = (
        "dags/",
        "components/console/",
        "components/airflow_env.py",
        "components/adapters/",
        "components/_validation/suites.py",  # switches telemetry off before Great Expectations is imported
    )
    assert [name for name in sorted(readers) if not name.startswith(allowed)] == []
