"""Step runner: a step is remembered by its inputs, and callable from a shell with the same JSON.

A step's folder is ``<run_dir>/<step>/<first 16 hex digits of the inputs' digest>``. ``outputs.json`` is written last
and atomically, so it is there exactly when the step is done; a second call with equal inputs returns it unchanged.
"""

import argparse
import contextlib
import errno
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock, Timeout

from components.core.atomic_files import write_json
from components.core.contracts import Contract, RunRef, digest_of, from_json, to_json
from components.core.errors import EXIT_INPUT_ERROR, EXIT_TRANSIENT_ERROR, InputError, TransientError

__all__ = ["main_for", "run_once", "step_dir"]

logger = logging.getLogger(__name__)

_ANOTHER_ATTEMPT_S = 600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StepInputs(Protocol):
    """Every step's inputs say which night they belong to."""

    @property
    def run(self) -> RunRef: ...


InputsT = TypeVar("InputsT", bound=StepInputs)
OutputsT = TypeVar("OutputsT")
AnyInputsT = TypeVar("AnyInputsT")


def step_dir(step: str, inputs: StepInputs) -> Path:
    """The folder of this step for these inputs; made if missing, kept after a crash so that work can resume."""
    folder = inputs.run.run_dir / step / digest_of(inputs)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_once(
    step: str, inputs: InputsT, outputs_type: type[OutputsT], body: Callable[[InputsT, Path], OutputsT]
) -> OutputsT:
    """Run ``body(inputs, folder)`` unless the same inputs have been through already.

    Args:
        step: Name of the step.
        inputs: Its inputs.
        outputs_type: Contract of the outputs.
        body: The work; it may leave partial files in ``folder`` when it fails and find them next time.

    Returns:
        The outputs, fresh or remembered.

    Raises:
        TransientError: Another attempt is at work on the same inputs and does not end, or the disk is full.
    """
    folder = step_dir(step, inputs)
    done = folder / "outputs.json"
    with contextlib.nullcontext() if done.exists() else _exclusive(step, folder):
        if done.exists():
            logger.info("step=%s remembered outputs=%s", step, done)
            return from_json(outputs_type, json.loads(done.read_text(encoding="utf-8")), where=str(done))
        write_json(folder / "inputs.json", inputs)
        outputs = body(inputs, folder)
        write_json(done, outputs)
        return outputs


@contextlib.contextmanager
def _exclusive(step: str, folder: Path) -> Iterator[None]:
    """One attempt at a time in a folder, as one that was given up may live on; a full disk may have room again."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=_ANOTHER_ATTEMPT_S)
    except Timeout:
        waited = f"another attempt has been at work in {folder} for {_ANOTHER_ATTEMPT_S:.0f} s"
        raise TransientError(f"{step}: {waited}; when it is done, the next one finds its outputs") from None
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise TransientError(f"{step}: {error.filename or folder}: {error.strerror}; make room") from error
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Command:
    inputs: Path
    outputs: Path | None


def _parse(step: str, doc: str, argv: list[str] | None) -> _Command:
    parser = argparse.ArgumentParser(prog=f"python -m components.steps {step}", description=doc)
    parser.add_argument("--inputs", type=Path, required=True, help="JSON file with the step's inputs")
    parser.add_argument("--outputs", type=Path, help="where to write the outputs' JSON; default: standard output")
    args = parser.parse_args(argv)
    return _Command(inputs=args.inputs, outputs=args.outputs)


def main_for(
    step: str, inputs_type: type[AnyInputsT], function: Callable[[AnyInputsT], Contract], argv: list[str] | None = None
) -> int:
    """Command line of a step: ``python -m components.steps <step> --inputs in.json [--outputs out.json]``.

    Args:
        step: Name of the step.
        inputs_type: Contract of its inputs.
        function: The step.
        argv: Arguments; ``None`` takes the process's.

    Returns:
        0, or 65 when the inputs are wrong (the same call will fail again), or 75 when a retry may help.
    """
    command = _parse(step, (function.__doc__ or step).splitlines()[0], argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        try:
            raw = json.loads(command.inputs.read_text(encoding="utf-8"))
            inputs = from_json(inputs_type, raw, where=str(command.inputs))
        except (OSError, ValueError) as error:
            raise InputError(f"inputs {command.inputs}: {error}") from error
        outputs = function(inputs)
    except InputError as error:
        sys.stderr.write(f"{step}: {error}\n")
        return EXIT_INPUT_ERROR
    except TransientError as error:
        sys.stderr.write(f"{step}: {error} (a retry may help)\n")
        return EXIT_TRANSIENT_ERROR
    if command.outputs is None:
        sys.stdout.write(json.dumps(to_json(outputs), indent=2) + "\n")
    else:
        write_json(command.outputs, outputs)
    return 0
