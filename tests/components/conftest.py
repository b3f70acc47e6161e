"""What several component tests share."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def _s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def s3(_s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A real S3 server on loopback, with this process holding its credentials."""
    for name, value in _s3_session.environment().items():
        monkeypatch.setenv(name, value)
    return _s3_session


_numbers = itertools.count()


@pytest.fixture
def new_store(s3: S3Server) -> Callable[[], str]:
    """Gives empty places in a bucket: ``s3://<bucket>/<number>``."""
    return lambda: f"s3://{s3.ready_bucket}/{next(_numbers)}"
