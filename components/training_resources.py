"""Training resources beside images, as the settings name them: networks, teacher, textures, device."""

from pathlib import Path

import torch

from components.config import FineTuneSettings
from components.core.errors import InputError
from stlm.config_isstad import AnyRecipe, IsstadRecipe
from stlm.data.synthesis import FloatImage, embedded_textures, read_textures
from stlm.models.isstad import Isstad, load_mae_checkpoint
from stlm.models.registry import AnomalyModel, build_model, start_students_from_mobile_sam
from stlm.models.two_stream import TwoStream
from stlm.nn.teachers import SamTeacher, load_sam_teacher
from stlm.training import world

__all__ = ["device_of", "new_model", "sam_teacher", "textures_of"]


def new_model(wanted: AnyRecipe, settings: FineTuneSettings, checkpoints: Path, *, seed: int) -> AnomalyModel:
    """An untrained detector, started from the checkpoints that its recipe wants.

    Args:
        wanted: The recipe.
        settings: Name the checkpoints.
        checkpoints: Where downloads are kept.
        seed: Decides every initial weight that no checkpoint gives.

    Returns:
        The model, on the CPU.

    Raises:
        WeightsError: A checkpoint is not named, missing, altered, or of another architecture.
    """
    model = build_model(wanted, seed=seed)
    if isinstance(model, Isstad) and model.config.model.start == "mae_checkpoint":
        load_mae_checkpoint(model, settings.teacher_checkpoint, settings.teacher_sha256, checkpoints)
    if isinstance(model, TwoStream) and model.config.model.student_init == "mobile_sam":
        start_students_from_mobile_sam(model, settings.student_checkpoint, settings.student_sha256, checkpoints)
    return model


def sam_teacher(
    config: AnyRecipe, settings: FineTuneSettings, checkpoints: Path, device: torch.device
) -> SamTeacher | None:
    """The recipe's frozen teacher; ``None`` where it is the trunk, or there is none.

    Args:
        config: The recipe.
        settings: Name the checkpoint.
        checkpoints: Where downloads are kept.
        device: Where it shall run.

    Returns:
        The teacher.

    Raises:
        WeightsError: The checkpoint is not named, missing, altered, or of another architecture.
    """
    if isinstance(config, IsstadRecipe):
        return None
    name = config.model.teacher
    if name == "lite0" or name == "random":  # noqa: PLR1714 - mypy narrows a literal only by comparison
        return None
    teacher = load_sam_teacher(
        name, settings.teacher_checkpoint, settings.teacher_sha256, checkpoints, image_size=config.image_size
    )
    return teacher.to(device)


def textures_of(settings: FineTuneSettings) -> tuple[FloatImage, ...]:
    """The folder's, or the embedded ones."""
    return read_textures(Path(settings.textures)) if settings.textures else embedded_textures()


def device_of(settings: FineTuneSettings) -> torch.device:
    """This process's device; ``InputError`` where the settings want what is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("fine_tune.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu' to allow the CPU")
    if settings.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if settings.processes > torch.cuda.device_count():
        raise InputError(
            f"fine_tune.processes is {settings.processes}, but torch sees {torch.cuda.device_count()} GPUs; it is the "
            "number of GPUs that share a training"
        )
    return torch.device("cuda", world.rank())  # all processes are on this machine
