"""Nights that lie in the data repository, without the training that follows; and what is where, as one digest."""

import dataclasses
import hashlib
from pathlib import Path

from components.backfill.replay import BackfillInputs
from components.core.contracts import DatasetRef, Fence
from components.steps.collect.step import CollectInputs, collect
from components.steps.version.step import VersionInputs, version
from tests.helpers.tiny_nights import KEY, TinyWorld

__all__ = ["archive", "backfill_inputs", "corrupt", "tree_digest", "with_schedule"]


def archive(
    world: TinyWorld, night: str, *, num_images: int = 16, again: bool = False, fence: Fence | None = None
) -> DatasetRef:
    """Deliver, collect and version a night; ``again``: its lot has grown, and it is collected anew."""
    paths, run = world.config.paths, world.run(night)
    if again:
        lot = night.replace("-", "") + "-a"
        for path in sorted((Path(paths.landing) / KEY.path / lot).iterdir()):
            path.unlink()
        (Path(paths.landing) / KEY.path / lot).rmdir()
        (run.run_dir / "collect" / "taken.json").unlink()
    world.feed(night, num_images=num_images)
    batch = collect(CollectInputs(run=run, landing=paths.landing)).batch
    assert batch is not None
    inputs = VersionInputs(run=run, batch=batch, data_repo=paths.data_repo, dvc_remote=paths.dvc_remote)
    return version(inputs, fence=fence)


def backfill_inputs(world: TinyWorld, first: str, last: str, **more: object) -> BackfillInputs:
    """A replay of the tiny key."""
    return BackfillInputs(config=world.config, key=KEY, first=first, last=last, **more)  # type: ignore[arg-type]


def with_schedule(world: TinyWorld, **settings: float) -> TinyWorld:
    """The same world with other leases."""
    schedule = dataclasses.replace(world.config.schedule, **settings)  # type: ignore[arg-type]
    return dataclasses.replace(world, config=dataclasses.replace(world.config, schedule=schedule))


def corrupt(world: TinyWorld, night: str, name: str = "000.png") -> None:
    """Damage one image of a night wherever the data repository keeps it."""
    paths = world.config.paths
    content = (world.root / "produced" / night / name).read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    found = [
        path
        for root in (Path(paths.data_repo) / ".dvc" / "cache", Path(paths.dvc_remote))
        for path in root.rglob(md5[2:])
    ]
    assert found
    for path in found:
        path.chmod(0o644)
        path.write_bytes(content[:-1])


def tree_digest(*roots: Path) -> str:
    """sha256 over names and contents of every file below ``roots``."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
