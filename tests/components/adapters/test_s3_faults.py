"""A real S3 server behind a network that breaks: landing zone and data repository end as if it had not."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from components.adapters.storage import open_storage
from components.adapters.storage.base import Storage
from components.core.contracts import DatasetRef, ModelKey, RunRef
from components.core.errors import TransientError
from components.steps.collect.step import CollectInputs, collect
from components.steps.version.step import VersionInputs, version
from tests.helpers.faulty_proxy import FAULTS, Fault, FaultyProxy, faulty_proxy
from tests.helpers.landing import feed_from_folder
from tests.helpers.s3_server import S3Server

pytestmark = pytest.mark.filterwarnings("default")

KEY = ModelKey(product="tile", line="line1", camera="cam1")
NIGHT = "2026-11-01"
NUM_IMAGES = 4
_FAST = "half a put"


EACH_FAULT = [pytest.param(fault, marks=[] if fault == _FAST else pytest.mark.slow) for fault in FAULTS]


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3.endpoint_url) as proxy:
        yield proxy


def until_it_succeeds(action: Callable[[], DatasetRef]) -> DatasetRef:
    """What a task's retries do: again after an error that may pass, and after no other."""
    for _ in range(5):
        with contextlib.suppress(TransientError):
            return action()
    return action()


class Site:
    """A producer and a pipeline that know the store by the proxy's address alone."""

    def __init__(self, folder: Path, place: str, url: str) -> None:
        self.folder, self.place, self.url = folder, place, url
        self.images = [folder / "source" / f"{number}.png" for number in range(NUM_IMAGES)]
        for number, path in enumerate(self.images):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"image {number} ".encode() * 20_000)

    def run_night(self) -> DatasetRef:
        landing = f"{self.place}/landing"
        feed_from_folder(self.images, landing, KEY, "lot-a", NIGHT, s3_endpoint_url=self.url)
        run = RunRef(key=KEY, partition=NIGHT, work_dir=str(self.folder / "work"))
        batch = collect(CollectInputs(run=run, landing=landing, s3_endpoint_url=self.url)).batch
        assert batch is not None
        return version(
            VersionInputs(
                run=run,
                batch=batch,
                data_repo=str(self.folder / "repo"),
                dvc_remote=f"{self.place}/dvc",
                s3_endpoint_url=self.url,
            )
        )


def whole_objects(storage: Storage) -> dict[str, int]:
    """Everything in the store by name; checked where the name is the content's md5."""
    found = {file.name: file.num_bytes for file in storage.files()}
    for name in found:
        if name.startswith("dvc/"):
            md5 = "".join(name.split("/")[-2:]).removesuffix(".dir")
            assert hashlib.md5(storage.read(name), usedforsecurity=False).hexdigest() == md5, name
    return found


@pytest.mark.chaos(
    "S3 answers 500 or 503, resets, is slow, or stops in the middle of a put or an answer, twice a night",
    outcome="the same night in landing zone and data repository; every object whole",
)
@pytest.mark.parametrize("fault", EACH_FAULT)
def test_a_night_through_a_store_that_breaks_now_and_then_is_the_same(
    tmp_path: Path,
    proxy: FaultyProxy,
    s3: S3Server,
    new_store: Callable[[], str],
    fault: Fault,
) -> None:
    calm, stormy = (Site(tmp_path / name, new_store(), s3.endpoint_url) for name in ("calm", "stormy"))
    expected = calm.run_night()

    proxy.breaks(fault, times=2)
    stormy.url = proxy.url
    got = until_it_succeeds(stormy.run_night)

    assert proxy.broken == 2
    proxy.heals()
    # The repository is another one, with another address of its store in its first commit.
    assert replace(got, repo="", revision="") == replace(expected, repo="", revision="")
    assert whole_objects(open_storage(stormy.place, endpoint_url=s3.endpoint_url)) == whole_objects(
        open_storage(calm.place, endpoint_url=s3.endpoint_url)
    )


@pytest.mark.slow
@pytest.mark.chaos(
    "S3 breaks every request until it heals", outcome="worth a retry each time; then the same night, every object whole"
)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "slow"])
def test_a_store_that_is_down_is_worth_a_retry_until_it_is_back(
    tmp_path: Path,
    proxy: FaultyProxy,
    s3: S3Server,
    new_store: Callable[[], str],
    fault: Fault,
) -> None:
    site = Site(tmp_path, new_store(), proxy.url)
    proxy.breaks(fault)
    with pytest.raises(TransientError):
        site.run_night()
    proxy.heals()
    feed_from_folder(site.images, f"{site.place}/landing", KEY, "lot-a", NIGHT, s3_endpoint_url=proxy.url)
    proxy.breaks(fault)
    with pytest.raises(TransientError):
        site.run_night()
    assert not list(tmp_path.rglob("*.part"))

    proxy.heals()
    reference = site.run_night()
    assert reference.num_images == NUM_IMAGES
    objects = whole_objects(open_storage(site.place, endpoint_url=s3.endpoint_url))
    assert sum(name.startswith("landing/") for name in objects) == NUM_IMAGES + 1
    # Images, manifest and listing; of the data repository's first, empty listing there is no need.
    assert sum(name.startswith("dvc/") for name in objects) == NUM_IMAGES + 2
