"""Partition of the data repository: names, digests and checked copies of a night's files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from dvc_data.hashfile.tree import Tree
from ruamel.yaml import YAML

from components.core.contracts import BatchRef, RunRef
from components.core.errors import InputError, shorten

__all__ = [
    "ROOT",
    "batch_files",
    "commit_trailer",
    "copy_checked",
    "dir_md5",
    "is_md5",
    "partition_path",
    "select_files",
    "tree_entries",
]

ROOT = "data"
"""The one tracked folder."""


def partition_path(run: RunRef) -> str:
    """Folder of a night, relative to the repository."""
    return f"{ROOT}/{run.key.path}/{run.partition}"


def commit_trailer(run: RunRef, batch: BatchRef) -> str:
    """The line by which a batch's commit is found again."""
    return f"Batch: {run.key.slug}/{run.partition} sha256:{batch.digest}"


def batch_files(batch: BatchRef) -> dict[str, tuple[Path, str]]:
    """Name within the partition -> file and its sha256: the images, and the manifest that says what they are."""
    manifest = Path(batch.manifest_path)
    files = {"manifest.json": (manifest, batch.digest)}
    try:
        for lot in json.loads(manifest.read_text(encoding="utf-8"))["lots"]:
            for image in lot["images"]:
                name = f"{lot['lot']}/{image['name']}"
                files[name] = (Path(batch.image_dir) / name, image["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"batch manifest {manifest} cannot be read: {error!r}") from error
    if len(files) != batch.num_images + 1:
        raise InputError(f"batch manifest {manifest} lists {len(files) - 1} images, expected {batch.num_images}")
    return files


def copy_checked(source: Path, target: Path, algorithm: str, expected: str) -> bool:
    """Copy ``source`` while hashing; ``target`` appears, whole, only if the hash is ``expected``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    with source.open("rb") as reader, temporary.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            digest.update(chunk)
            writer.write(chunk)
    if digest.hexdigest() != expected:
        temporary.unlink()
        return False
    temporary.replace(target)
    return True


def is_md5(path: Path, expected: str) -> bool:
    """Whether the file is there and hashes to ``expected``."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == expected


def dir_md5(dvc_file: str) -> str:
    """The md5 in the text of a ``data.dvc``, with its ``.dir``."""
    return str(YAML(typ="safe").load(dvc_file)["outs"][0]["md5"])


def tree_entries(tree: Tree, folder: str) -> dict[str, str]:
    """Name relative to ``folder`` (itself relative to the repository) -> md5."""
    prefix = tuple(folder.split("/")[1:])
    return {
        "/".join(key[len(prefix) :]): oid.value
        for key, _, oid in tree
        if key[: len(prefix)] == prefix and oid is not None and oid.value
    }


def select_files(tree: Tree, paths: Sequence[str], where: str) -> dict[str, str]:
    """Repository-relative name -> md5 of the files at, or below, ``paths``."""
    everything = {f"{ROOT}/{name}": md5 for name, md5 in tree_entries(tree, ROOT).items()}
    wanted: dict[str, str] = {}
    unknown = []
    for path in (path.rstrip("/") for path in paths):
        below = [path] if path in everything else [name for name in everything if name.startswith(f"{path}/")]
        wanted |= {name: everything[name] for name in below}
        if not below:
            unknown.append(path)
    if unknown:
        raise InputError(f"{where} has no {shorten(unknown)}")
    return wanted
