"""How every step runs: remembered by its inputs, and started from a shell with the same JSON."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from components.core.atomic_files import write_json
from components.core.contracts import Contract, ModelKey, RunRef, to_json
from components.core.errors import EXIT_INPUT_ERROR, EXIT_TRANSIENT_ERROR, InputError, TransientError
from components.core.run_records import STEPS
from components.core.step_runner import main_for, run_once
from components.steps.__main__ import main


@dataclass(frozen=True, kw_only=True, slots=True)
class EchoInputs(Contract):
    run: RunRef
    word: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EchoOutputs(Contract):
    word: str
    num_calls: int


@pytest.fixture
def inputs(tmp_path: Path) -> EchoInputs:
    key = ModelKey(product="tiles", line="line1", camera="cam1")
    return EchoInputs(run=RunRef(key=key, partition="2026-03-01", work_dir=str(tmp_path)), word="hello")


def _echo(inputs: EchoInputs) -> EchoOutputs:
    """Count the calls that really work."""
    if inputs.word == "wrong":
        raise InputError("word is 'wrong', expected another")
    if inputs.word == "busy":
        raise TransientError("the line is busy")

    def body(inputs: EchoInputs, folder: Path) -> EchoOutputs:
        calls = folder / "calls"
        calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
        if inputs.word == "crash" and len(calls.read_text()) == 1:
            raise RuntimeError("power cut")
        return EchoOutputs(word=inputs.word, num_calls=len(calls.read_text()))

    return run_once("echo", inputs, EchoOutputs, body)


def test_equal_inputs_are_worked_on_once(inputs: EchoInputs) -> None:
    assert _echo(inputs) == _echo(inputs) == EchoOutputs(word="hello", num_calls=1)
    assert _echo(replace(inputs, word="other")).num_calls == 1


def test_a_crash_leaves_no_outputs_and_the_next_try_finds_its_files(inputs: EchoInputs) -> None:
    crashing = replace(inputs, word="crash")
    with pytest.raises(RuntimeError, match="power cut"):
        _echo(crashing)
    assert not list(Path(inputs.run.work_dir).rglob("outputs.json"))
    assert _echo(crashing).num_calls == 2


@pytest.mark.chaos("a write that fails half-way", outcome="the old file, and no other")
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def _call(inputs: EchoInputs, folder: Path, **changes: object) -> int:
    path = folder / "in.json"
    path.write_text(json.dumps(to_json(inputs) | changes))
    return main_for("echo", EchoInputs, _echo, ["--inputs", str(path), "--outputs", str(folder / "out.json")])


def test_the_shell_passes_the_same_json_as_a_task(inputs: EchoInputs, tmp_path: Path) -> None:
    assert _call(inputs, tmp_path) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"word": "hello", "num_calls": 1}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"word": "wrong"}, EXIT_INPUT_ERROR, "echo: word is 'wrong', expected another\n"),
        ({"word": "busy"}, EXIT_TRANSIENT_ERROR, "echo: the line is busy (a retry may help)\n"),
        ({"word": 3}, EXIT_INPUT_ERROR, "expected str, got 3"),
        ({"colour": "x"}, EXIT_INPUT_ERROR, "unknown field 'colour'"),
    ],
)
def test_the_exit_code_says_whether_to_try_again(
    inputs: EchoInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], code: int,
    message: str,
) -> None:  # fmt: skip
    assert _call(inputs, tmp_path, **changes) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("step", [*STEPS, "shadow", "notify"])
def test_every_step_is_a_command(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([step, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m components.steps {step} ")


def test_a_step_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("{}")
    command = [sys.executable, "-m", "components.steps", "collect", "--inputs", str(tmp_path / "in.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == EXIT_INPUT_ERROR
    assert "missing field 'run'" in result.stderr
