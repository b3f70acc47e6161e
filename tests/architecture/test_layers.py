"""The contracts of import-linter, so that a broken layer fails where the tests are run as well."""

import ast
import statistics

import pytest
from importlinter.cli import lint_imports

from components.local_stack.airflow_env import repository_root

ROOT = repository_root()
SOURCES = sorted(path for folder in ("dags", "components", "stlm") for path in (ROOT / folder).rglob("*.py"))


def test_no_layer_reaches_upwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == 0, capsys.readouterr().out


def test_half_of_the_modules_are_shorter_than_two_hundred_lines() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES if path.name != "__init__.py"]

    assert statistics.median(lengths) < 200


def test_only_the_edges_read_environment_variables() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    allowed = (
        "dags/",
        "components/cli/",
        "components/local_stack/",
        "components/adapters/",
        "components/core/telemetry.py",
        "stlm/nn/onnx_session.py",  # switches telemetry off before ONNX Runtime is imported
    )
    assert [name for name in sorted(readers) if not name.startswith(allowed)] == []
