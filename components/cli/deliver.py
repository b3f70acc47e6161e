"""``stlm deliver``: a folder of pictures becomes a lot of the landing zone."""

from pathlib import Path

from components.adapters.landing import MANIFEST_NAME, lot_manifest, open_landing
from components.adapters.landing import deliver as send
from components.core.errors import InputError
from components.local_stack.workspace import Workspace

__all__ = ["deliver"]


def deliver(workspace: Workspace, *, folder: str, key: str, night: str, lot: str) -> int:
    """Send every file of a folder, the manifest last, as a camera's computer would; 0.

    Args:
        workspace: Configuration and state.
        folder: The pictures; sub-folders and hidden files are left out.
        key: Model key; empty for the only one.
        night: ``YYYY-MM-DD``, the day the pictures were taken.
        lot: Name of the lot; empty for the folder's name, with the day before it.

    Returns:
        0; the same lot once more changes nothing.

    Raises:
        InputError: There is no file, a name is none, or a lot of this name holds something else.
        TransientError: The landing zone cannot be reached.
    """
    model, config = workspace.model(key), workspace.config
    workspace.run(model, night)  # a date that is none is told here
    source = Path(folder).resolve()
    if not source.is_dir():
        raise InputError(f"{folder} is not a folder")
    images = {
        path.name: path
        for path in sorted(source.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.name != MANIFEST_NAME
    }
    if not images:
        raise InputError(f"{source} holds no picture")
    day = night.replace("-", "")
    name = lot or (source.name if source.name.startswith(day) else f"{day}-{source.name}")
    manifest = lot_manifest(images, model.key, name, night).encode()
    place, storage = f"{model.key.path}/{name}", open_landing(config.paths.landing, config.paths.s3_endpoint_url)
    send(storage, place, images, manifest)
    print(f"{storage.uri}/{place}: {len(images)} pictures and {MANIFEST_NAME}")
    return 0
