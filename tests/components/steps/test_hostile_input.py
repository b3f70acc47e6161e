"""What a careless or ill-meaning producer may put into the landing zone: refused at once, in few words."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components.adapters.data_repository import DataRepository
from components.core.contracts import ModelKey, RunRef
from components.core.errors import InputError
from components.steps.collect.step import CollectInputs, CollectOutputs, collect
from components.steps.version.step import VersionInputs, version
from tests.helpers.landing import feed_from_folder

KEY = ModelKey(product="tile", line="line1", camera="cam1")
NIGHT = "2026-11-01"
SHA256 = "0" * 64


class Producer:
    """Somebody who may write anything into one lot of the landing zone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lot = folder / "landing" / KEY.path / "lot-a"
        self.lot.mkdir(parents=True)

    def announce(self, names: list[str], *, num_bytes: int = 1, date: str = NIGHT) -> None:
        images = [{"name": name, "bytes": num_bytes, "sha256": SHA256} for name in names]
        manifest = {"key": KEY.slug, "lot": "lot-a", "date": date, "images": images}
        (self.lot / "manifest.json").write_text(json.dumps(manifest))

    def collect(self) -> CollectOutputs:
        run = RunRef(key=KEY, partition=NIGHT, work_dir=str(self.folder / "work"))
        return collect(CollectInputs(run=run, landing=str(self.folder / "landing")))


@pytest.fixture
def producer(tmp_path: Path) -> Producer:
    return Producer(tmp_path)


def _a_hundred_thousand_missing(producer: Producer) -> None:
    producer.announce([f"{i}.png" for i in range(100_000)])


def _a_hundred_thousand_with_doubles(producer: Producer) -> None:
    producer.announce([f"{i % 99_000}.png" for i in range(100_000)])


def _nested(producer: Producer) -> None:
    (producer.lot / "manifest.json").write_text("[" * 200_000)


def _endless_manifest(producer: Producer) -> None:
    (producer.lot / "manifest.json").touch()
    os.truncate(producer.lot / "manifest.json", 1 << 36)


def _two_ways_to_write_an_accent(producer: Producer) -> None:
    producer.announce(["\u00e9.png", "e\u0301.png"])


def _name_that_reads_backwards(producer: Producer) -> None:
    producer.announce(["\u202egnp.exe"])


def _linked_manifest(producer: Producer) -> None:
    (producer.folder / "secret.json").write_text("{}")
    (producer.lot / "manifest.json").symlink_to(producer.folder / "secret.json")


def _linked_lot(producer: Producer) -> None:
    producer.announce(["1.png"])
    shutil.move(producer.lot, producer.folder / "elsewhere")
    producer.lot.symlink_to(producer.folder / "elsewhere")


def _path_as_a_lot(producer: Producer) -> None:
    producer.announce(["1.png"])
    path = producer.lot / "manifest.json"
    path.write_text(path.read_text().replace('"lot-a"', '"../../../etc"'))


def _infinite_size(producer: Producer) -> None:
    producer.announce(["1.png"])
    path = producer.lot / "manifest.json"
    path.write_text(path.read_text().replace('"bytes": 1', '"bytes": Infinity'))


@pytest.mark.chaos(
    "100,000 names, doubles, nesting, endless files, links and paths in a manifest",
    outcome="refused soon and in few words; nothing taken",
)
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_a_hundred_thousand_missing, "differs from its manifest: 0.png is missing.* and 99980 more$"),
        (_a_hundred_thousand_with_doubles, "named twice.*: 0.png, 1.png, 10.png, 100.png, 101.png and 995 more$"),
        (_nested, "nested too deeply"),
        (_endless_manifest, "larger than 64 MiB"),
        (_two_ways_to_write_an_accent, "named twice"),
        (_name_that_reads_backwards, "image name .* is refused"),
        (_linked_manifest, "symbolic link"),
        (_linked_lot, "symbolic link"),
        (_path_as_a_lot, r"lot is '../../../etc', expected 'lot-a'"),
        (_infinite_size, "bytes"),
    ],
)
def test_it_is_refused_soon_and_in_few_words_and_nothing_is_taken(
    producer: Producer, prepare: Callable[[Producer], None], message: str
) -> None:
    prepare(producer)
    started = time.process_time()
    with pytest.raises(InputError, match=message) as refused:
        producer.collect()
    assert time.process_time() - started < 10
    assert len(str(refused.value)) < 3000
    assert not list(producer.folder.rglob("taken.json"))


@pytest.mark.chaos("an image grows while it is read", outcome="given up at its announced size")
def test_an_image_that_grows_while_it_is_read_is_given_up_at_its_announced_size(producer: Producer) -> None:
    source = producer.folder / "1.png"
    source.write_bytes(b"x" * 1000)
    shutil.rmtree(producer.lot)
    feed_from_folder([source], str(producer.folder / "landing"), KEY, "lot-a", NIGHT)
    first = producer.collect()
    assert first.batch is not None
    # It was listed at its size, and is another one by the time at which it is read (again).
    shutil.rmtree(first.batch.image_dir)
    os.truncate(producer.lot / "1.png", 1 << 36)
    with pytest.raises(InputError, match="expected 1000 bytes, got more: it changed while it was read"):
        producer.collect()
    assert not [path for path in Path(first.batch.image_dir).rglob("*") if path.is_file()]


@pytest.mark.chaos("names with spaces, accents, formulas and markup", outcome="kept as they are")
@pytest.mark.filterwarnings("default")
def test_names_with_spaces_accents_formulas_and_markup_reach_the_data_repository_as_they_are(
    producer: Producer,
) -> None:
    accents = "\u00fcber \u96fb\u6c60 \U0001f50b.png"
    names = ["a b.png", accents, "=1+1.png", "<b>&amp;.png", "$(id);'.png", "-rf.png", "%2e%2e.png"]
    sources = [producer.folder / "source" / name for name in names]
    for i, source in enumerate(sources):
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(bytes([i]) * 100)
    shutil.rmtree(producer.lot)
    feed_from_folder(sources, str(producer.folder / "landing"), KEY, "lot-a", NIGHT)
    batch = producer.collect().batch
    assert batch is not None
    run = RunRef(key=KEY, partition=NIGHT, work_dir=str(producer.folder / "work"))
    repo, remote = str(producer.folder / "repo"), str(producer.folder / "remote")
    dataset = version(VersionInputs(run=run, batch=batch, data_repo=repo, dvc_remote=remote))

    into = producer.folder / "fetched"
    DataRepository(Path(repo), remote).fetch(dataset.revision, [dataset.path], into)

    fetched = into / dataset.path / "lot-a"
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        name: bytes([i]) * 100 for i, name in enumerate(names)
    }
