"""``stlm screen`` and ``stlm masks``: pages on which a person decides, and the decisions carried out."""

import webbrowser
from pathlib import Path

from components.annotation.masks import MasksInputs, accept_masks
from components.annotation.masks import masks as propose
from components.annotation.review import Review
from components.annotation.scorers import MapOf
from components.annotation.screen import ScreenInputs, accept_images
from components.annotation.screen import screen as screen_folder
from components.core.errors import InputError
from components.local_stack.workspace import Workspace

__all__ = ["masks", "screen"]


def screen(
    workspace: Workspace, *, folder: str, key: str, night: str, map_of: MapOf, accept: str, lot: str, open_page: bool
) -> int:
    """Make the page of a folder, or carry out what was decided on it; 0.

    Args:
        workspace: Configuration and state.
        folder: The images; empty to carry out decisions.
        key: Model key; empty for the only one.
        night: ``YYYY-MM-DD``.
        map_of: Whose map.
        accept: The decisions; empty to make the page.
        lot: Name of the accepted lot; empty for the usual one.
        open_page: Whether to open the page in the browser.

    Returns:
        0.

    Raises:
        InputError: The images, decisions or settings do not fit.
    """
    model, config = workspace.model(key), workspace.config
    _either(folder, accept, "stlm screen")
    if accept:
        done = accept_images(
            Path(accept),
            work_dir=config.paths.work_dir,
            key=model.key,
            landing=config.paths.landing,
            night=night,
            lot=lot,
            s3_endpoint_url=config.paths.s3_endpoint_url,
        )
        print(f"{done.place}: {done.num_accepted} images accepted")
        print(f"left where they were: {done.num_rejected} rejected, {done.num_undecided} undecided")
        return 0
    if not night:
        raise InputError(f"which night of {model.key.slug} are the images for? give it with --night YYYY-MM-DD")
    found = screen_folder(
        ScreenInputs(
            run=workspace.run(model, night),
            folder=str(Path(folder).resolve()),
            mlflow=config.mlflow,
            map=map_of,
            settings=config.zero_shot,
            max_pixels=config.validate.max_pixels,
        )
    )
    return _tell(found, open_page=open_page)


def masks(
    workspace: Workspace,
    *,
    folder: str,
    key: str,
    defect: str,
    map_of: MapOf,
    accept: str,
    golden: str,
    open_page: bool,
) -> int:
    """Make the page of proposed masks, or save what was accepted on it; 0.

    Args:
        workspace: Configuration and state.
        folder: The images; empty to carry out decisions.
        key: Model key; empty for the only one.
        defect: Class of the defects; empty where the folder has a sub-folder per class.
        map_of: Whose map.
        accept: The decisions; empty to make the page.
        golden: The golden set; empty for the key's.
        open_page: Whether to open the page in the browser.

    Returns:
        0.

    Raises:
        InputError: The images, decisions or settings do not fit.
    """
    model, config = workspace.model(key), workspace.config
    _either(folder, accept, "stlm masks")
    if accept:
        done = accept_masks(
            Path(accept),
            work_dir=config.paths.work_dir,
            key=model.key,
            golden=str(Path(golden).resolve()) if golden else model.golden,
        )
        print(f"{done.golden}: {done.num_masks} masks saved, {done.num_images} images added")
        print("A golden set with other content is another yardstick: figures before and after do not compare.")
        return 0
    try:
        inputs = MasksInputs(
            key=model.key,
            work_dir=config.paths.work_dir,
            folder=str(Path(folder).resolve()),
            mlflow=config.mlflow,
            defect=defect,
            map=map_of,
            settings=config.zero_shot,
            max_pixels=config.validate.max_pixels,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    return _tell(propose(inputs), open_page=open_page)


def _either(folder: str, accept: str, command: str) -> None:
    if bool(folder) == bool(accept):
        raise InputError(f"give either a folder, `{command} FOLDER`, or decisions, `{command} --accept FILE`")


def _tell(found: Review, *, open_page: bool) -> int:
    print(f"{found.num_images} images judged by {found.judged_by}; {found.num_masks} masks by {found.masks_by}")
    for line in found.refused:
        print(f"left out  {line}")
    print(found.page_path)
    if open_page:
        webbrowser.open(Path(found.page_path).as_uri())
    return 0
