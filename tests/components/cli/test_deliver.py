"""``stlm deliver`` as a person uses it, on a folder and on a real S3 server."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.adapters.storage import open_storage
from components.cli.deliver import deliver
from components.cli.main import main
from components.core.errors import EXIT_INPUT_ERROR, InputError
from components.local_stack.workspace import open_workspace
from components.steps.collect.step import CollectInputs, collect
from tests.helpers.s3_server import S3Server
from tests.helpers.tiny_nights import KEY, NIGHTS, TinyWorld, make_tiny_world


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    return make_tiny_world(tmp_path)


@pytest.fixture
def pictures(world: TinyWorld) -> Path:
    folder = world.root / "from the line"
    shutil.copytree(world.root / "golden" / "test" / "good", folder)
    (folder / ".DS_Store").touch()
    (folder / "thumbnails").mkdir()
    return folder


def _deliver(world: TinyWorld, folder: Path, night: str = NIGHTS[0], lot: str = "evening") -> int:
    workspace = open_workspace(str(world.config_path), str(world.root / "state"))
    return deliver(workspace, folder=str(folder), key="", night=night, lot=lot)


def test_a_folder_becomes_a_complete_lot_and_twice_is_harmless(
    world: TinyWorld, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = len(list(pictures.glob("*.png")))
    for _ in range(2):
        assert _deliver(world, pictures) == 0
    assert f"{number} pictures and manifest.json" in capsys.readouterr().out

    paths = world.config.paths
    batch = collect(CollectInputs(run=world.run(NIGHTS[0]), landing=paths.landing)).batch
    assert batch is not None
    assert (batch.num_lots, batch.num_images) == (1, number)


@pytest.mark.parametrize("name", ["evening", f"{NIGHTS[0].replace('-', '')}-evening"])
def test_a_lot_is_called_by_its_day_and_folder(world: TinyWorld, pictures: Path, name: str) -> None:
    _deliver(world, pictures.rename(world.root / name), lot="")
    assert [path.name for path in (Path(world.config.paths.landing) / KEY.path).iterdir()] == [
        f"{NIGHTS[0].replace('-', '')}-evening"
    ]


def test_pictures_that_an_interrupted_delivery_left_are_replaced(world: TinyWorld, pictures: Path) -> None:
    place = Path(world.config.paths.landing) / KEY.path / "evening"
    place.mkdir(parents=True)
    first = min(pictures.glob("*.png"))
    (place / first.name).write_bytes(b"x" * first.stat().st_size)
    _deliver(world, pictures)
    assert (place / first.name).read_bytes() == first.read_bytes()


def test_a_lot_is_never_overwritten_by_another(world: TinyWorld, pictures: Path) -> None:
    _deliver(world, pictures)
    min(pictures.glob("*.png")).unlink()
    with pytest.raises(InputError, match=r"already with other images.*--lot"):
        _deliver(world, pictures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"night": "2026-13-01"}, "2026-13-01"),
        ({"lot": "../evening"}, "must be named"),
        ({"lot": ""}, "from the line"),
        ({"folder": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_a_lot_is_refused_and_nothing_sent(
    world: TinyWorld, pictures: Path, change: dict[str, object], said: str
) -> None:
    arguments: dict[str, object] = {"folder": pictures} | change
    with pytest.raises(InputError, match=said):
        _deliver(world, **arguments)  # type: ignore[arg-type]
    assert not (Path(world.config.paths.landing) / KEY.path).exists()


def test_an_empty_folder_is_refused(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    (world.root / "empty").mkdir()
    command = ["--config", str(world.config_path), "deliver", str(world.root / "empty"), "--night", NIGHTS[0]]
    assert main(command) == EXIT_INPUT_ERROR
    assert "holds no picture" in capsys.readouterr().err


def test_a_lot_goes_into_a_bucket(world: TinyWorld, pictures: Path, s3: S3Server, new_store: Callable[[], str]) -> None:
    bucket = new_store()
    config = world.config_path.read_text().replace(
        'landing = "landing"', f'landing = "{bucket}"\ns3_endpoint_url = "{s3.endpoint_url}"'
    )
    world.config_path.write_text(config)
    _deliver(world, pictures)
    storage = open_storage(bucket, endpoint_url=s3.endpoint_url)
    assert len(storage.files(f"{KEY.path}/evening")) == len(list(pictures.glob("*.png"))) + 1
