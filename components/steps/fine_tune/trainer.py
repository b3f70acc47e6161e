"""Trainer: in this process or in several that ``torchrun`` starts, with what may go wrong on a device.

Run by ``torchrun`` as ``python -m components.steps.fine_tune.trainer FOLDER`` on the job that lies in the folder.
"""

import contextlib
import datetime as dt
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil
import torch
from torch import distributed

from components.config import FineTuneSettings
from components.core.atomic_files import write_json
from components.core.contracts import Contract, from_json
from components.core.errors import InputError, TransientError
from components.training_resources import device_of, new_model, sam_teacher, textures_of
from stlm.errors import StlmError
from stlm.models.registry import CONFIG_NAME, AnomalyModel, carry_on, load_model, save_model
from stlm.recipes import recipe
from stlm.training import world
from stlm.training.checkpoint import Checkpointer
from stlm.training.fit import FitResult, fit
from stlm.training.replay import NormalImage
from stlm.training.samples import Normals, load_normals

__all__ = ["TrainingJob", "train"]

logger = logging.getLogger(__name__)

_JOB, _TRAINED, _RESULT, _ERROR = "job.json", "trained", "result.json", "error.json"
_KINDS = {"memory": torch.OutOfMemoryError, "transient": TransientError, "input": InputError}
_PATIENCE = dt.timedelta(hours=2)
"""How long one process waits for another, which may be making its share of the corruptions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob(Contract):
    """What is learnt, from what, and where its files lie."""

    folder: str
    """Of the step: ``images/``, ``checkpoint.pt`` and ``corruptions/`` are in it."""
    checkpoints: str
    """Where downloaded checkpoints are kept."""
    recipe: str
    parent_dir: str | None
    """The champion's package; ``None`` on a first night."""
    identity: str
    """Digest of everything that decides the outcome; a checkpoint of another one is not resumed."""
    new: tuple[NormalImage, ...]
    replay: tuple[NormalImage, ...]
    held_out: tuple[NormalImage, ...]
    settings: FineTuneSettings


def train(job: TrainingJob) -> tuple[AnomalyModel, FitResult]:
    """Train as the settings say.

    Args:
        job: See :class:`TrainingJob`.

    Returns:
        The model, on the CPU, and how training went.

    Raises:
        InputError: An unknown recipe, a checkpoint that cannot be loaded, a loss that is not finite, a device that is
            not there, more processes than a batch has images, or no memory for half a batch.
        TransientError: Training was asked to stop, or a process was killed; its checkpoint holds the state.
    """
    attempt = _alone if job.settings.processes == 1 else _together
    try:
        return _with_less_memory(lambda parts: attempt(job, parts))
    except StlmError as error:
        raise InputError(str(error)) from error


def _alone(job: TrainingJob, parts: int) -> tuple[AnomalyModel, FitResult]:
    """Train in this process; as one of several, if ``torchrun`` has started it."""
    settings, folder = job.settings, Path(job.folder)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    device = device_of(settings)
    # The first process fetches what has to be fetched.
    model = world.one_first(lambda: _start(job))
    teacher = world.one_first(lambda: sam_teacher(model.config, settings, Path(job.checkpoints), device))
    checkpointer = Checkpointer(
        path=folder / "checkpoint.pt", identity=job.identity, interval_s=settings.checkpoint_seconds
    )

    def load(chosen: Sequence[NormalImage]) -> Normals:
        return load_normals([folder / "images" / i.path for i in chosen], [i.sha256 for i in chosen], model.image_size)

    with _save_on_sigterm(checkpointer):
        result = fit(
            model.to(device),
            new=load(job.new),
            replay=load(job.replay),
            held_out=load([image for image in job.held_out if not image.doubtful]),
            teacher=teacher,
            textures=textures_of(settings),
            has_parent=job.parent_dir is not None,
            seed=settings.seed,
            checkpointer=checkpointer,
            cache_dir=folder / "corruptions",
            max_seconds=settings.max_seconds,
            parts=parts,
            bf16=settings.precision == "bf16",
        )
    return model.cpu(), result


def _together(job: TrainingJob, parts: int) -> tuple[AnomalyModel, FitResult]:
    """Have ``torchrun`` start the processes, a GPU each where there are GPUs, and read what the first one leaves."""
    folder, count = Path(job.folder), job.settings.processes
    for name in (_ERROR, _RESULT):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / _JOB, job)
    logger.info("training processes=%d parts=%d", count, parts)
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--max-restarts=0",
         "-m", "components.steps.fine_tune.trainer", str(folder), str(parts), str(os.getpid()),
         repr(psutil.Process().create_time())]
    )  # fmt: skip
    try:
        with _on_sigterm(process.terminate):  # torchrun hands it to the processes that train
            code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if (folder / _ERROR).exists():
        kind, text = json.loads((folder / _ERROR).read_text(encoding="utf-8"))
        raise _KINDS[kind](text)
    if code != 0:
        raise TransientError(
            f"a process of the training ended with {code}, see the log; what it has saved is in {folder}"
        )
    result = FitResult(**json.loads((folder / _RESULT).read_text(encoding="utf-8")))
    model = load_model(folder / _TRAINED)
    shutil.rmtree(folder / _TRAINED)
    return model, result


@contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM call ``act`` within the block; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        del signum, frame
        act()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(job: TrainingJob) -> AnomalyModel:
    wanted = recipe(job.recipe)
    if job.parent_dir is not None:
        parent = Path(job.parent_dir)
        return carry_on(load_model(parent), wanted, where=str(parent / CONFIG_NAME))
    return new_model(wanted, job.settings, Path(job.checkpoints), seed=job.settings.seed)


def _with_less_memory(
    attempt: Callable[[int], tuple[AnomalyModel, FitResult]],
) -> tuple[AnomalyModel, FitResult]:
    """Train, and where the device has not the memory, once more with half of each batch at a time."""
    try:
        return attempt(1)
    except torch.OutOfMemoryError as error:
        logger.warning("out of memory, going on with half of each batch at a time: %s", error)
    gc.collect()  # what the failed attempt held is in its frames
    torch.cuda.empty_cache()
    try:
        return attempt(2)
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the device ran out of memory, and did so again with half of each batch at a time; free it, choose a "
            f"smaller recipe, or set fine_tune.device: {error}"
        ) from error


@contextmanager
def _save_on_sigterm(checkpointer: Checkpointer) -> Iterator[None]:
    """On SIGTERM save at the next step and leave as "worth a retry", so that the next attempt goes on from there."""

    def stop() -> None:
        checkpointer.stop_requested = True

    try:
        with _on_sigterm(stop):
            yield
    except InterruptedError as error:
        raise TransientError(f"training was asked to stop; {checkpointer.path} holds its state") from error


def main(folder: str, parts: str, owner: str, owner_created: str) -> int:
    """One of the processes; the exit code."""
    job = from_json(TrainingJob, json.loads((Path(folder) / _JOB).read_text(encoding="utf-8")), where=_JOB)
    threading.Thread(target=_end_with, args=(int(owner), float(owner_created)), daemon=True).start()
    try:
        on_gpus = device_of(job.settings).type == "cuda"
        distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
        if on_gpus:
            torch.cuda.set_device(world.rank())
        logging.basicConfig(level=logging.INFO if world.is_first() else logging.WARNING, stream=sys.stderr)
        model, result = _alone(job, int(parts))
        if world.is_first():
            save_model(model, Path(folder) / _TRAINED)
            write_json(Path(folder) / _RESULT, asdict(result))
        world.wait_for_all()
    except (InputError, StlmError, TransientError, torch.OutOfMemoryError) as error:
        kind = next((name for name, of in _KINDS.items() if isinstance(error, of)), "input")
        with contextlib.suppress(FileExistsError), (Path(folder) / _ERROR).open("x", encoding="utf-8") as file:
            json.dump([kind, str(error)], file)  # the first one has the cause; the others lost their peer
        return 1
    distributed.destroy_process_group()
    return 0


def _end_with(owner: int, created: float) -> None:
    """Do not outlive the process that wants the training: whoever began anew would work in the same folder.

    Args:
        owner: Its id, which another process may have after it.
        created: When it was made, which tells it from that one.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(owner)
        while process.create_time() == created and process.is_running():
            time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
