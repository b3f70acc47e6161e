"""Git client: the few commands that the data repository needs, without a user's configuration or a wall clock."""

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from components.core.errors import InputError, TransientError

__all__ = ["Git"]

logger = logging.getLogger(__name__)

_BRANCH = "main"
_NETWORK_SECONDS = 120.0
_DEAD_LOCK_SECONDS = 60.0
_IDENTITY = {"NAME": "stlm pipeline", "EMAIL": "pipeline@stlm.invalid"}


class Git:
    """Git in one working tree."""

    def __init__(self, root: Path, branch: str = _BRANCH) -> None:
        """``root`` is the working tree, on ``branch``; it need not exist before :meth:`init`."""
        self._root = root
        self._branch = branch

    def _run(self, *arguments: str, check: bool = True, date: str = "") -> subprocess.CompletedProcess[str]:
        # Inherited GIT_* variables, such as a hook's GIT_DIR, would point the command at another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_{name}": value for name, value in _IDENTITY.items()}
            if date:
                environment[f"GIT_{role}_DATE"] = f"{date}T00:00:00+00:00"
        for name in ("GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_ASKPASS"):
            if name in os.environ:
                environment[name] = os.environ[name]
        environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        command = [
            "git",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "tag.gpgsign=false",
            "-c",
            "core.autocrlf=false",
            "-c",
            "gc.auto=0",
        ]
        try:
            result = subprocess.run(
                [*command, *arguments], cwd=self._root, env=environment, text=True, capture_output=True,
                timeout=_NETWORK_SECONDS, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise InputError(f"git is not installed, or {self._root} does not exist") from error
        except subprocess.TimeoutExpired as error:
            raise TransientError(f"git {arguments[0]} in {self._root} took over {_NETWORK_SECONDS:.0f} s") from error
        if check and result.returncode:
            message = f"git {' '.join(arguments[:2])} in {self._root}: {result.stderr.strip()}"
            if ".lock'" in result.stderr:
                raise TransientError(message)
            raise InputError(message)
        return result

    def _ask(self, *arguments: str) -> str:
        """Output of a command, or the empty string where it says no."""
        result = self._run(*arguments, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    def init(self) -> None:
        """Make an empty repository."""
        self._run("init", "-q", "-b", self._branch)

    def clone(self, origin: Path, start: str) -> None:
        """Make a clone of ``origin`` on our branch: as it is there, or begun at the commit ``start``."""
        origin_git = Git(origin)
        if not origin_git._ask("rev-parse", "-q", "--verify", f"refs/heads/{self._branch}"):
            origin_git._run("branch", self._branch, start)
        self._run("clone", "-q", "--no-hardlinks", "--branch", self._branch, str(origin), ".")

    def root_commit(self) -> str:
        """The first commit of the branch."""
        return self._ask("rev-list", "--max-parents=0", "HEAD")

    def fence(self, name: str) -> int:
        """The highest fence that was ever noted under ``name``; 0 before the first."""
        return max(self._fences(name), default=0)

    def _fences(self, name: str) -> list[int]:
        found = self._ask("for-each-ref", "--format=%(refname:lstrip=4)", f"refs/stlm/fence/{name}/")
        return [int(number) for number in found.split()]

    def note_fence(self, name: str, fence: int) -> None:
        """Note a fence in the repository, outside of what is committed: it must not change what a commit is."""
        known = self._fences(name)
        if fence not in known:
            self._run("update-ref", f"refs/stlm/fence/{name}/{fence}", "HEAD")
        for number in known:
            if number < fence:
                self._run("update-ref", "-d", f"refs/stlm/fence/{name}/{number}", check=False)

    def tags(self, prefix: str) -> list[tuple[str, str, str]]:
        """``(tag, commit, message)`` of the tags below ``prefix`` on commits of the branch."""
        form = "--format=%(refname:lstrip=2)%00%(objectname)%00%(contents)%01"
        found = self._ask("for-each-ref", "--merged=HEAD", form, f"refs/tags/{prefix}")
        rows = (row.strip("\n").split("\0") for row in found.split("\1") if row.strip("\n"))
        return [(tag, commit, message) for tag, commit, message in rows]

    def clear_dead_locks(self) -> None:
        """Remove lock files of killed git processes; the caller holds the repository against live ones of its own."""
        folder = self._root / ".git"
        for lock in [*folder.glob("*.lock"), *(folder / "refs").rglob("*.lock")]:
            if time.time() - lock.stat().st_mtime > _DEAD_LOCK_SECONDS:
                logger.warning("removing %s, left by a killed git process", lock)
                lock.unlink(missing_ok=True)

    def commit(self, message: str, *, names: Sequence[str], date: str) -> str:
        """Commit these files, dated ``date`` (``YYYY-MM-DD``); returns the full commit id."""
        self._run("add", "--", *names)
        self._run("commit", "-q", "--no-verify", "--allow-empty", "-m", message, date=date)
        return self._ask("rev-parse", "HEAD")

    def restore(self, name: str) -> None:
        """Put a tracked file, and the index, back to the last commit."""
        self._run("reset", "-q", "--mixed", "HEAD")
        self._run("checkout", "-q", "HEAD", "--", name)

    def show(self, revision: str, name: str) -> str:
        """Text of a file at a revision; raises ``InputError`` where there is none."""
        return self._run("show", f"{revision}:{name}").stdout

    def find_commit(self, line: str) -> str:
        """The last commit of the branch whose message holds ``line``, or the empty string."""
        return self._ask("log", "-1", "--format=%H", "--fixed-strings", f"--grep={line}", "HEAD")

    def _is_ancestor(self, commit: str, of: str) -> bool:
        return self._run("merge-base", "--is-ancestor", commit, of, check=False).returncode == 0

    def tag_commit(self, name: str, commit: str) -> str:
        """Tag ``commit`` as ``name``, or as ``name-r2``, ``name-r3``... where earlier revisions have the name.

        A tag on a commit that is not in the branch is what a lost race left behind, and is moved.

        Args:
            name: The tag of the first revision.
            commit: Full commit id; in the branch.

        Returns:
            The tag; the one the commit has already, if so.
        """
        revision = 1
        while True:
            tag = name if revision == 1 else f"{name}-r{revision}"
            there = self._ask("rev-parse", "-q", "--verify", f"refs/tags/{tag}^{{commit}}")
            if there == commit:
                return tag
            if not there or not self._is_ancestor(there, "HEAD"):
                self._run("tag", "-f", tag, commit)
                return tag
            revision += 1

    def _origin_tip(self) -> str:
        return self._ask("rev-parse", "-q", "--verify", f"refs/remotes/origin/{self._branch}")

    def _has_origin(self) -> bool:
        return bool(self._ask("remote", "get-url", "origin"))

    def catch_up(self) -> None:
        """Where there is an ``origin``, start from its branch; commits it never got are given up and made anew.

        Raises:
            TransientError: The origin cannot be reached.
            InputError: The origin's branch shares no history with ours.
        """
        if not self._has_origin():
            return
        fetched = self._run("fetch", "-q", "--tags", "--force", "origin", check=False)
        if fetched.returncode:
            raise TransientError(f"git fetch origin in {self._root}: {fetched.stderr.strip()}")
        tip = self._origin_tip()
        if not tip or self._is_ancestor(tip, "HEAD"):
            return
        if not self._ask("merge-base", "HEAD", tip):
            raise InputError(f"{self._root}: branch {self._branch} of its origin shares no history with it")
        if not self._is_ancestor("HEAD", tip):
            lost = self._ask("log", "--format=%h %s", f"{tip}..HEAD")
            logger.warning("commits that origin never got are made anew by their own nights: %s", lost)
        self._run("reset", "-q", "--hard", tip)

    def publish(self, tag: str) -> bool:
        """Push branch and tag to ``origin``, both or neither.

        Args:
            tag: A tag of ours.

        Returns:
            True when they are there, or there is no origin; False where the origin has moved, so that the commit must
            be made anew on top of it.

        Raises:
            TransientError: The origin cannot be reached.
        """
        if not self._has_origin():
            return True
        pushed = self._run(
            "push", "-q", "--atomic", "origin", f"HEAD:refs/heads/{self._branch}", f"refs/tags/{tag}", check=False
        )
        if pushed.returncode == 0:
            return True
        if any(word in pushed.stderr for word in ("non-fast-forward", "fetch first", "[rejected]", "cannot lock ref")):
            return False
        raise TransientError(f"git push origin in {self._root}: {pushed.stderr.strip()}")
