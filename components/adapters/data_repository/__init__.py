"""Data repository: git for what a night was, DVC for its images.

One tracked folder ``data/`` with one ``data.dvc``; a night is ``data/<product>/<line>/<camera>/<partition>/`` with the
batch manifest and one folder per lot. A night is added *virtually*: DVC merges the new entries into the folder's
listing, so that neither the workspace nor the cache needs the older images. A commit is what makes a night official;
its message carries the batch digest, and the tag ``<key>/<partition>`` (``-r2``, ``-r3`` for later revisions) is only
its name. Every sub-step before the commit is content-addressed, so a retry after a crash repeats it harmlessly.
"""

import contextlib
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from filelock import FileLock, Timeout

from components.adapters.data_repository.git import Git
from components.adapters.data_repository.partition import (
    ROOT,
    batch_files,
    commit_trailer,
    copy_checked,
    dir_md5,
    is_md5,
    partition_path,
    select_files,
    tree_entries,
)
from components.core.contracts import BatchRef, Contract, DatasetRef, Fence, ModelKey, RunRef
from components.core.errors import InputError, TransientError, shorten

__all__ = ["DataRepository", "NightRevision"]

logger = logging.getLogger(__name__)

_REMOTE = "store"
_TRACKED = (f"{ROOT}.dvc", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore")
_CACHE_TYPES = "reflink,hardlink,copy"
_JOBS = 8
_PUSH_ATTEMPTS = 5
_STORE_ERRORS = (DvcException, BotoCoreError, ClientError, OSError)


_NIGHT_TAG = re.compile(r"(\d{4}-\d{2}-\d{2})(?:-r(\d+))?")
_BATCH_TRAILER = re.compile(r"^Batch: \S+ sha256:([0-9a-f]{64})$", re.MULTILINE)
_COUNTS = re.compile(r"^Add \S+ of \S+: (\d+) images in (\d+) lots")


@dataclass(frozen=True, kw_only=True, slots=True)
class NightRevision(Contract):
    """A night as the repository has it."""

    night: str
    tag: str
    commit: str
    revision: int
    """1, or higher where the night was collected again with other images."""
    digest: str
    """The batch's."""
    num_images: int
    num_lots: int


class DataRepository:
    """A git and DVC repository in a folder, created on first use."""

    def __init__(
        self, repo: Path, remote: str, endpoint_url: str = "", *, lock_seconds: float = 900.0, side: str = ""
    ) -> None:
        """Nothing is opened or made yet.

        Args:
            repo: Folder of the repository.
            remote: Where the images are kept: a folder or ``s3://bucket/prefix``.
            endpoint_url: Server of an ``s3://`` remote that is not AWS; empty for AWS.
            lock_seconds: How long to wait for another writer before a ``TransientError``.
            side: Name of the side branch that ``repo`` is a clone for, see :meth:`side_branch`; empty: the main one.
        """
        self._path = repo.absolute()
        self._remote = remote if "://" in remote else str(Path(remote).absolute())
        self._endpoint = endpoint_url
        self._lock_seconds = lock_seconds
        self._tag_prefix = f"{side}/" if side else ""
        self._git = Git(self._path, side) if side else Git(self._path)

    def side_branch(self, name: str, clone: Path, *, start: str) -> "DataRepository":
        """A branch of this repository, in a clone of its own, that shares the cache and pushes to this repository.

        Its nights have tags of their own, ``<name>/<key>/<partition>``.

        Args:
            name: The branch; made at ``start`` if there is none.
            clone: Folder of the clone; made if missing.
            start: Commit of this repository; empty: its first, which has no night yet.

        Returns:
            The branch.

        Raises:
            InputError: There is no such commit, or this is no data repository.
            TransientError: Another writer holds the repository.
        """
        side = DataRepository(clone, self._remote, self._endpoint, lock_seconds=self._lock_seconds, side=name)
        if not (clone / ".git").is_dir():
            with self._locked(), tempfile.TemporaryDirectory(dir=_made(clone.parent), prefix=".clone-") as temporary:
                root = Path(temporary) / "repo"
                root.mkdir()
                Git(root, name).clone(self._path, start or self._git.root_commit())
                cache = f"[cache]\n    dir = {self._path / '.dvc' / 'cache'}\n"
                (root / ".dvc" / "config.local").write_text(cache, encoding="utf-8")
                root.replace(clone)
        return side

    def nights(self, key: ModelKey) -> dict[str, "NightRevision"]:
        """The newest revision of every night of a key; nothing but git is read.

        Args:
            key: The key.

        Returns:
            Night -> revision; empty where there is no repository yet.

        Raises:
            InputError: The folder is no git repository.
        """
        if not (self._path / ".git").exists():
            return {}
        newest: dict[str, NightRevision] = {}
        for tag, commit, message in self._git.tags(f"{self._tag_prefix}{key.slug}/"):
            named = _NIGHT_TAG.fullmatch(tag.removeprefix(f"{self._tag_prefix}{key.slug}/"))
            told = _BATCH_TRAILER.search(message)
            counted = _COUNTS.search(message)
            if named is None or told is None or counted is None:
                continue
            night, revision = named[1], int(named[2] or 1)
            if night not in newest or newest[night].revision < revision:
                newest[night] = NightRevision(
                    night=night,
                    tag=tag,
                    commit=commit,
                    revision=revision,
                    digest=told[1],
                    num_images=int(counted[1]),
                    num_lots=int(counted[2]),
                )
        return dict(sorted(newest.items()))

    def add_partition(self, run: RunRef, batch: BatchRef, fence: Fence | None = None) -> DatasetRef:
        """Version a night's batch: add, push, commit, tag.

        The same batch again is the same reference; a changed batch of the same night becomes a new revision, and the
        old one keeps its tag.

        Args:
            run: Which night.
            batch: What was collected.
            fence: Of the writer; the repository refuses a lower one than it has seen of the key.

        Returns:
            Where the night lies, and at which revision.

        Raises:
            InputError: The batch is not what its manifest says, or the folder is no data repository.
            TransientError: Another writer holds the repository, or the remote cannot be reached.
        """
        files = batch_files(batch)
        with self._locked():
            self._create()
            self._git.clear_dead_locks()
            for attempt in range(1, _PUSH_ATTEMPTS + 1):
                self._git.catch_up()
                commit = self._git.find_commit(commit_trailer(run, batch)) or self._add(run, batch, files, fence)
                tag = self._git.tag_commit(f"{self._tag_prefix}{run.key.slug}/{run.partition}", commit)
                if self._git.publish(tag):
                    return self._reference(run, batch, commit, tag)
                # Someone else's night came first: ours is added again on top of it, which is cheap and safe.
                logger.warning(
                    "version key=%s partition=%s push refused attempt=%d", run.key.slug, run.partition, attempt
                )
        raise TransientError(f"origin of {self._path} moved {_PUSH_ATTEMPTS} times while {run.partition} was pushed")

    def fetch(self, revision: str, paths: Sequence[str], into: Path) -> None:
        """Bring back files or folders as they were at ``revision``, from the cache where it has them.

        Args:
            revision: Commit or tag of the data repository.
            paths: Files or folders relative to the repository, such as ``data/<key.path>/<partition>``.
            into: Folder below which they get the same relative names; files that are there and right are kept.

        Raises:
            InputError: The revision or a path is unknown, or an object is damaged or gone for good.
            TransientError: The remote cannot be reached.
        """
        if not (self._path / ".dvc").is_dir():
            raise InputError(f"{self._path} is no data repository, cannot fetch {revision} from it")
        with self._open(self._path) as repo:
            tree = self._tree_at(repo, revision)
            wanted = select_files(tree, paths, f"{revision} of {self._path}")
            lacking = {name: md5 for name, md5 in wanted.items() if not is_md5(into / name, md5)}
            damaged = self._copy_out(repo, lacking, into)
            for md5 in damaged.values():
                # The cached object rotted: the remote's counts, and is checked on its way in.
                Path(repo.cache.local.oid_to_path(md5)).unlink()
            for name, md5 in self._copy_out(repo, damaged, into).items():
                raise InputError(f"{name} at {revision} of {self._path}: object {md5} is damaged in {self._where}")

    # --- creation and locking -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time over add, push and commit; DVC's own lock covers only each of its operations."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            with FileLock(lock, timeout=self._lock_seconds):
                yield
        except Timeout:
            raise TransientError(f"{lock} has been held by another writer for {self._lock_seconds:.0f} s") from None

    def _create(self) -> None:
        if (self._path / ".dvc" / "config").is_file() and (self._path / ".git").is_dir():
            return
        if self._path.exists() and any(self._path.iterdir()):
            raise InputError(f"{self._path} is neither empty nor a git and DVC repository, refused as data repository")
        with tempfile.TemporaryDirectory(dir=self._path.parent, prefix=f".{self._path.name}.") as temporary:
            root = Path(temporary) / "repo"
            root.mkdir()
            git = Git(root)
            git.init()
            (root / ".dvc").mkdir()
            (root / ".dvc" / "config").write_text(self._config_text(), encoding="utf-8")
            (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
            (root / ".dvcignore").write_text("", encoding="utf-8")
            # Tracking data/ while it is empty makes the first night like every other one.
            (root / ROOT).mkdir()
            with self._open(root) as repo:
                repo.add(str(root / ROOT), relink=False)
            git.commit("Begin the data repository", names=_TRACKED, date="2000-01-01")
            root.replace(self._path)
        logger.info("created data repository=%s remote=%s", self._path, self._remote)

    def _config_text(self) -> str:
        endpoint = f"    endpointurl = {self._endpoint}\n" if self._endpoint else ""
        return (
            f"[core]\n    analytics = false\n    check_update = false\n    autostage = false\n    remote = {_REMOTE}\n"
            f'[cache]\n    type = "{_CACHE_TYPES}"\n'
            f"['remote \"{_REMOTE}\"']\n    url = {self._remote}\n{endpoint}"
        )

    def _overrides(self, root: Path) -> dict[str, Any]:
        """What counts whatever this machine's or an older config file says."""
        remote: dict[str, Any] = {"url": self._remote}
        if self._remote.startswith("s3://"):
            remote |= {"connect_timeout": 10, "read_timeout": 60}
        if self._endpoint:
            remote["endpointurl"] = self._endpoint
        return {
            "core": {"remote": _REMOTE, "autostage": False, "site_cache_dir": str(root / ".dvc" / "tmp" / "site")},
            "remote": {_REMOTE: remote},
        }

    @contextlib.contextmanager
    def _open(self, root: Path) -> Iterator[Repo]:
        with contextlib.closing(Repo(str(root), config=self._overrides(root))) as repo:
            # DVC would tell people on standard output what to type next.
            repo.scm_context.quiet = True
            yield repo

    # --- adding ---------------------------------------------------------------------------------------------------

    def _add(self, run: RunRef, batch: BatchRef, files: dict[str, tuple[Path, str]], fence: Fence | None) -> str:
        """Add, push and commit the partition; returns the commit."""
        path = partition_path(run)
        folder = self._path / path
        self._git.restore(f"{ROOT}.dvc")  # a crashed attempt may have left its own
        shutil.rmtree(self._path / ROOT, ignore_errors=True)
        for name, (source, sha256) in files.items():
            if not source.is_file() or not copy_checked(source, folder / name, "sha256", sha256):
                raise InputError(f"{source} is gone or has changed since it was collected, expected sha256 {sha256}")
        with self._open(self._path) as repo:
            tree = self._dvc_add(repo, folder)
            added = tree_entries(tree, path)
            if set(added) != set(files):
                different = sorted(set(added) ^ set(files))
                raise InputError(f"DVC did not add {path} as it is; these files differ: {shorten(different)}")
            self._push(repo, {HashInfo("md5", md5) for md5 in added.values()}, tree)
        shutil.rmtree(self._path / ROOT)
        if fence is not None:
            # Objects that a late writer left hurt nobody; its commit would.
            fence.check_token(self._git.fence(run.key.slug), f"data repository {self._path}")
            self._git.note_fence(run.key.slug, fence.number)
        message = f"Add {run.partition} of {run.key.slug}: {batch.num_images} images in {batch.num_lots} lots"
        return self._git.commit(f"{message}\n\n{commit_trailer(run, batch)}\n", names=_TRACKED, date=run.partition)

    def _dvc_add(self, repo: Repo, folder: Path) -> Tree:
        """Merge ``folder`` into the listing of ``data/``; returns the new listing."""
        deadline = time.monotonic() + self._lock_seconds
        while True:
            try:
                with lock_repo(repo):
                    # What a killed process left there: with the repository's lock in hand it can be nobody's, and
                    # its process id may be anybody's by now.
                    Path(self._path, ".dvc", "tmp", "rwlock").unlink(missing_ok=True)
                    (stage,) = repo.add(str(folder), relink=False)
                    tree = stage.outs[0].obj
            except LockError as error:
                # DVC's API waits 3 s or for ever; a person's own dvc command may well take longer than 3 s.
                if time.monotonic() > deadline:
                    raise TransientError(f"DVC lock of {self._path} held for {self._lock_seconds:.0f} s") from error
            else:
                assert isinstance(tree, Tree)
                return tree

    def _push(self, repo: Repo, new: set[HashInfo], tree: Tree) -> None:
        """Send only the night's objects, then the folder's listing: a listing never points at what is not there."""
        local, remote = repo.cache.local, self._store(repo)
        listing = tree.hash_info.value
        with self._store_errors("push to"):
            result = transfer(local, remote, new, jobs=_JOBS)
            if result.failed:
                raise TransientError(f"{len(result.failed)} objects could not be pushed to {self._where}")
            # Not by transfer(): for a listing it would read all of its entries, twice.
            remote.add(local.oid_to_path(listing), local.fs, listing)

    def _store(self, repo: Repo) -> Any:
        with self._store_errors("open"):
            return repo.cloud.get_remote_odb(_REMOTE)

    @property
    def _where(self) -> str:
        return f"DVC remote {self._remote}" + (f" at {self._endpoint}" if self._endpoint else "")

    @contextlib.contextmanager
    def _store_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except _STORE_ERRORS as error:
            raise TransientError(f"cannot {what} {self._where}: {error}") from error

    def _reference(self, run: RunRef, batch: BatchRef, commit: str, tag: str) -> DatasetRef:
        return DatasetRef(
            repo=str(self._path),
            revision=commit,
            tag=tag,
            dvc_md5=dir_md5(self._git.show(commit, f"{ROOT}.dvc")),
            path=partition_path(run),
            digest=batch.digest,
            num_images=batch.num_images,
        )

    # --- reading --------------------------------------------------------------------------------------------------

    def _tree_at(self, repo: Repo, revision: str) -> Tree:
        listing = HashInfo("md5", dir_md5(self._git.show(revision, f"{ROOT}.dvc")))
        local = repo.cache.local
        for source in ("cache", "remote"):
            if source == "remote":
                self._pull(repo, {listing})
            with contextlib.suppress(FileNotFoundError, ObjectFormatError):
                return Tree.load(local, listing)
        raise InputError(f"the listing {listing.value} of {revision} is neither in the cache nor in {self._where}")

    def _pull(self, repo: Repo, objects: set[HashInfo]) -> None:
        with self._store_errors("pull from"):
            result = transfer(self._store(repo), repo.cache.local, objects, jobs=_JOBS, verify=True, shallow=True)
        if result.failed:
            raise TransientError(f"{len(result.failed)} objects could not be pulled from {self._where}")

    def _copy_out(self, repo: Repo, wanted: dict[str, str], into: Path) -> dict[str, str]:
        """Copy objects out of the cache, pulling what it lacks; returns the names whose object is damaged."""
        cached = {md5: Path(repo.cache.local.oid_to_path(md5)) for md5 in wanted.values()}
        absent = {md5 for md5, path in cached.items() if not path.exists()}
        if absent:
            self._pull(repo, {HashInfo("md5", md5) for md5 in absent})
        gone = [name for name, md5 in wanted.items() if not cached[md5].exists()]
        if gone:
            raise InputError(f"neither in the cache of {self._path} nor in {self._where}: {shorten(gone)}")
        return {name: md5 for name, md5 in wanted.items() if not copy_checked(cached[md5], into / name, "md5", md5)}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
