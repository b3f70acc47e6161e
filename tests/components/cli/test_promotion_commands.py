"""What people type when a model must be taken back: they are told, and wrong input changes nothing."""

import getpass
import json
import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.adapters.mlflow.tracking import open_run
from components.cli import main
from components.cli.ledger import alias_manager_of
from components.core.errors import EXIT_INPUT_ERROR, EXIT_TRANSIENT_ERROR
from components.local_stack.workspace import open_workspace
from components.promotion.alias_transaction import AliasManager
from stlm.data.layout import read_golden_set
from stlm.serving.package import seal_package
from tests.helpers.edges import watched
from tests.helpers.model_package import new_mlflow, write_package
from tests.helpers.promotion import ahead, make_champion
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world

NAME = KEY.registered_model
OTHER = """
[[models]]
product = "bolts"
line = "line1"
camera = "cam1"
golden = "golden"
recipe = "tiny"
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a real package, registered in a fresh MLflow: 1, then 2 was promoted."""
    root = tmp_path_factory.mktemp("template")
    mlflow = new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    manager = alias_manager_of(open_workspace(str(world.config_path), str(root / "state")), world.config.models[0])
    run_id = open_run(mlflow, world.run("2026-03-01"))
    manager.registry.register(KEY, write_package(root / "package"), run_id=run_id, tags={})
    client = MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)
    first = client.get_model_version(NAME, "1")
    client.create_model_version(
        NAME, str(first.source), run_id=run_id, tags=dict(first.tags) | {"stlm.candidate_key": "2" * 64}
    )
    digest, package = read_golden_set(root / "golden").digest, first.tags["stlm.package_digest"]
    for version, night in ((1, "2026-03-01"), (2, "2026-03-02")):
        make_champion(manager, version, partition=night, golden_digest=digest, package_digest=package)
    return root


class Console:
    """One workspace, and ``stlm`` in it."""

    def __init__(self, world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self._capsys = capsys

    @property
    def manager(self) -> AliasManager:
        workspace = open_workspace(str(self.world.config_path), str(self.world.root / "state"))
        return alias_manager_of(workspace, self.world.config.models[0])

    @property
    def client(self) -> MlflowClient:
        uri = self.world.config.mlflow.tracking_uri
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    @property
    def ledger(self) -> Path:
        return self.world.root / "work" / "ledger" / NAME

    @property
    def aliases(self) -> dict[str, int]:
        return {alias: int(version) for alias, version in self.client.get_registered_model(NAME).aliases.items()}

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = main(["--config", str(self.world.config_path), "--state", str(self.world.root / "state"), *arguments])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def state(self) -> dict[str, object]:
        return {path.name: path.read_bytes() for path in self.ledger.glob("0*.json")} | dict(self.aliases)


@pytest.fixture
def console(template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Console:
    """Version 1, then version 2 was promoted."""
    root = tmp_path / "world"
    world = make_tiny_world(root)
    (root / "mlflow").mkdir()
    (root / "mlflow" / "mlflow.db").write_bytes((template / "mlflow" / "mlflow.db").read_bytes())
    shutil.copytree(template / "work", root / "work")
    return Console(world, capsys)


def test_a_roll_back_takes_a_minute_at_most_and_freezes_promotion(console: Console) -> None:
    started = time.monotonic()
    code, out, _ = console.run("rollback", "--reason", "false alarms on line 1", "--by", "Ada")

    assert code == 0
    assert time.monotonic() - started < 60
    assert f"{NAME}: version 1 serves again instead of version 2; promotion is frozen" in out
    assert console.aliases == {"champion": 1, "anchor": 1}
    _, out, _ = console.run("status")
    assert "promotion is frozen: false alarms on line 1 (by Ada" in out
    assert "rollback version 2 -> version 1, by Ada: false alarms on line 1" in out
    _, out, _ = console.run("ledger", "show", "6")
    entry = json.loads(out)
    assert (entry["kind"], entry["body"]["action"], entry["body"]["by"]) == ("commit", "rollback", "Ada")
    assert entry["body"]["record"]["partition"] == "2026-03-01"
    assert entry["body"]["record"]["promoted_by_entry"] == 2


def test_a_roll_back_asked_for_twice_goes_back_once(console: Console) -> None:
    console.run("rollback", "--reason", "false alarms", "--by", "Ada")
    before = console.state()

    code, out, _ = console.run("rollback", "--reason", "false alarms", "--by", "Ada")

    assert (code, console.state()) == (0, before)
    assert "version 1 is the champion already: Ada took it back from version 2" in out


def test_what_was_rolled_back_can_be_named_again(console: Console) -> None:
    console.run("rollback", "--reason", "false alarms")
    code, out, _ = console.run("rollback", "--to", "2", "--reason", "it was the lamp")

    assert code == 0
    assert "version 2 serves again instead of version 1" in out
    assert console.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert getpass.getuser() in console.run("status")[1]


def test_a_roll_back_after_the_freeze_of_the_first_one_was_lifted_goes_further_back(console: Console) -> None:
    package = console.client.get_model_version(NAME, "1")
    console.client.create_model_version(NAME, str(package.source), run_id=package.run_id, tags=dict(package.tags))
    make_champion(console.manager, 3, partition="2026-03-03", package_digest=package.tags["stlm.package_digest"])
    assert "version 2 serves again" in console.run("rollback", "--reason", "false alarms")[1]
    console.run("unfreeze", "--reason", "lamp replaced")
    console.run("freeze", "--reason", "new camera")

    code, out, _ = console.run("rollback", "--reason", "false alarms once more")

    assert code == 0
    assert "version 1 serves again instead of version 2" in out


def test_a_freeze_on_top_of_the_one_of_a_roll_back_sends_the_next_roll_back_no_further(console: Console) -> None:
    assert "version 1 serves again" in console.run("rollback", "--reason", "false alarms", "--by", "Ada")[1]
    console.run("freeze", "--reason", "audit", "--by", "Eve")

    code, out, err = console.run("rollback", "--reason", "false alarms", "--by", "Bob")

    assert code == 0, err
    assert "version 1 is the champion already: Ada took it back from version 2" in out


def test_a_roll_back_goes_to_a_champion_from_before_there_was_a_ledger(console: Console) -> None:
    shutil.rmtree(console.ledger)
    for tag in ("stlm.ledger_head", "stlm.last_champion"):
        console.client.delete_registered_model_tag(NAME, tag)
    console.client.set_model_version_tag(NAME, "1", "stlm.promoted_at_partition", "2026-03-01")
    assert console.aliases == {"champion": 2, "previous": 1, "anchor": 1}

    code, out, _ = console.run("rollback", "--reason", "false alarms", "--by", "Ada")

    assert code == 0
    assert "version 1 serves again instead of version 2" in out
    assert console.aliases == {"champion": 1, "anchor": 1}
    _, out, _ = console.run("ledger", "show", "3")
    record = json.loads(out)["body"]["record"]
    assert record["partition"] == "2026-03-01"
    assert record["package_digest"] == console.client.get_model_version(NAME, "1").tags["stlm.package_digest"]
    assert console.run("ledger", "verify")[0] == 0


def test_a_freeze_is_written_down_once_and_lifted(console: Console) -> None:
    for _ in range(2):
        assert console.run("freeze", "--reason", "new camera", "--by", "Ada")[0] == 0
    assert "promotion is frozen: new camera (by Ada" in console.run("status")[1]
    code, out, _ = console.run("unfreeze", "--reason", "camera is set up", "--by", "Bob")
    assert (code, out) == (0, f"{NAME}: nights may promote again\n")
    assert "promotion was not frozen" in console.run("unfreeze", "--reason", "again")[1]
    _, out, _ = console.run("ledger", "show", "--last", "2")
    assert [line.split("Z  ")[1].split()[0] for line in out.splitlines()] == ["freeze", "unfreeze"]
    assert "by Bob: camera is set up" in out


def test_a_freeze_by_hand_in_mlflow_is_lifted_as_well(console: Console) -> None:
    console.client.set_registered_model_tag(NAME, "stlm.frozen", "by hand")
    assert "promotion is frozen: by hand" in console.run("status")[1]
    assert console.run("unfreeze", "--reason", "done")[0] == 0
    assert "stlm.frozen" not in console.client.get_registered_model(NAME).tags


def test_the_ledger_is_shown_verified_and_asked_for_a_moment(console: Console) -> None:
    code, out, _ = console.run("ledger", "verify")
    assert code == 0
    assert "4 entries, each as it was written" in out
    _, out, _ = console.run("ledger", "show")
    assert "promote no version -> version 1, by gate: verdict PROMOTE" in out
    assert len(out.splitlines()) == 4
    _, out, _ = console.run("ledger", "at", ahead(60)().isoformat())
    assert f"version 2 of {NAME}\n  since" in out
    assert "  night      2026-03-02" in out
    _, out, _ = console.run("ledger", "at", "2026-05-01T03:00")
    assert out == f"2026-05-01T03:00Z: {NAME} had no champion\n"


def test_reconcile_says_what_it_put_right(console: Console) -> None:
    assert "nothing to do" in console.run("ledger", "reconcile")[1]
    console.client.set_registered_model_alias(NAME, "champion", "1")
    code, out, _ = console.run("ledger", "reconcile")
    assert (code, out) == (0, "alias 'champion' stood at version 1, by the ledger it is version 2: moved\n")
    assert console.aliases["champion"] == 2


def _with_other(console: Console) -> None:
    path = console.world.config_path
    path.write_text(path.read_text() + OTHER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rollback", "--to", "7", "--reason", "x"],
            "version 7 was never champion of {name}; versions that were: 1, 2",
        ),
        (["rollback", "--to", "1", "--reason", " "], "why? give a --reason; it is kept in the ledger"),
        (["rollback", "--reason", "x", "--key", "a.b.c"], "unknown model key 'a.b.c'"),
        (["delete-version", "1"], "version 1 of {name} is kept: it carries 'anchor', 'previous'"),
        (["delete-version", "2"], "version 2 of {name} is kept: it carries 'champion'"),
        (["delete-version", "9"], "{name} has no version 9"),
        (["ledger", "at", "yesterday"], "time 'yesterday': expected one like 2026-05-01T03:00"),
        (["ledger", "show", "99"], "has 4 entries, not 99"),
        (["freeze", "--reason", ""], "why? give a --reason"),
    ],
)
def test_wrong_input_is_one_line_and_no_change(console: Console, arguments: list[str], message: str) -> None:
    before = console.state()
    code, out, err = console.run(*arguments)
    assert (code, out, console.state()) == (EXIT_INPUT_ERROR, "", before)
    assert message.format(name=NAME) in err
    assert err.count("\n") == 1


def test_of_several_keys_one_must_be_named_and_anothers_versions_are_refused(console: Console) -> None:
    _with_other(console)
    code, _, err = console.run("rollback", "--reason", "x")
    assert (code, err) == (
        EXIT_INPUT_ERROR,
        "stlm: which model key? give one with --key: tiles.line1.cam1, bolts.line1.cam1\n",
    )
    for arguments in (
        ["rollback", "--to", "2", "--reason", "x"],
        ["promote", "2", "--reason", "x"],
        ["delete-version", "2"],
    ):
        code, _, err = console.run(*arguments, "--key", "bolts.line1.cam1")
        assert code == EXIT_INPUT_ERROR
        assert "stlm.bolts.line1.cam1 has no" in err
    assert console.run("ledger", "verify", "--key", "tiles.line1.cam1")[0] == 0
    assert console.aliases == {"champion": 2, "previous": 1, "anchor": 1}


def test_a_corrupted_ledger_stops_every_command_in_one_line(console: Console) -> None:
    path = console.ledger / "00000002.json"
    path.write_bytes(path.read_bytes().replace(b"verdict PROMOTE", b"verdict of Eve.."))
    before = console.state()
    for arguments in (
        ["ledger", "verify"],
        ["ledger", "show"],
        ["ledger", "at", "2026-05-01T03:00"],
        ["ledger", "reconcile"],
        ["rollback", "--reason", "x"],
        ["freeze", "--reason", "x"],
        ["unfreeze", "--reason", "x"],
        ["promote", "1", "--reason", "x"],
        ["promote", "1", "--reason", "x", "--by", "Ada", "--break-glass", "--second", "Bob"],
        ["delete-version", "1"],
    ):
        code, out, err = console.run(*arguments)
        assert (code, out, console.state()) == (EXIT_INPUT_ERROR, "", before), arguments
        assert "entry 3 or 2 is altered" in err
        assert err.count("\n") == 1


def test_a_target_that_is_not_what_was_promoted_or_does_not_load_is_not_served(console: Console) -> None:
    before = console.aliases
    console.client.set_model_version_tag(NAME, "1", "stlm.package_digest", "0" * 64)
    code, _, err = console.run("rollback", "--reason", "x")
    assert (code, console.aliases) == (EXIT_INPUT_ERROR, before)
    assert "not what was registered" in err
    assert err.count("\n") == 1

    # Registered as something else than what the ledger says was promoted.
    package = Path(str(console.client.get_model_version(NAME, "1").source)) / "artifacts" / "package"
    other = console.world.root / "other"
    shutil.copytree(package, other / "artifacts" / "package")
    (other / "artifacts" / "package" / "lineage.json").write_text('{"forged": true}')
    digest = seal_package(other / "artifacts" / "package")
    tags = dict(console.client.get_model_version(NAME, "1").tags) | {"stlm.package_digest": digest}
    version = int(console.client.create_model_version(NAME, str(other), tags=tags).version)
    make_champion(console.manager, version, package_digest="1" * 64)
    make_champion(console.manager, 2, partition="2026-03-04")
    code, _, err = console.run("rollback", "--to", str(version), "--reason", "x")
    assert code == EXIT_INPUT_ERROR
    assert f"is package {digest}, promoted was {'1' * 64}" in err


def test_a_target_that_does_not_load_is_not_served(console: Console) -> None:
    version = console.client.get_model_version(NAME, "1")
    broken = console.world.root / "broken"
    shutil.copytree(Path(str(version.source)) / "artifacts" / "package", broken / "artifacts" / "package")
    (broken / "artifacts" / "package" / "model.onnx").write_bytes(b"no graph")
    digest = seal_package(broken / "artifacts" / "package")
    tags = dict(version.tags) | {"stlm.package_digest": digest}
    number = int(console.client.create_model_version(NAME, str(broken), tags=tags).version)
    make_champion(console.manager, number, package_digest=digest)
    make_champion(console.manager, 2, partition="2026-03-04")
    before = console.state()

    code, _, err = console.run("rollback", "--reason", "x")

    assert (code, console.state()) == (EXIT_INPUT_ERROR, before)
    assert "does not load in a clean process" in err


def test_an_unreachable_registry_or_ledger_is_worth_a_retry_in_one_line(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    path, before = console.world.config_path, console.state()
    text = path.read_text()
    nowhere = "http://127.0.0.1:9"
    commands = [
        ["rollback", "--reason", "x"],
        ["promote", "1", "--reason", "x"],
        ["freeze", "--reason", "x"],
        ["unfreeze", "--reason", "x"],
        ["delete-version", "1"],
        ["ledger", "verify"],
    ]
    for broken, asked in (
        (text.replace("sqlite:///mlflow/mlflow.db", nowhere), commands),
        # The store's own client tries for some seconds.
        (
            text.replace("[report]", f'[promote]\nledger = "s3://gone"\nledger_endpoint_url = "{nowhere}"\n\n[report]'),
            commands[:1],
        ),
    ):
        path.write_text(broken)
        for arguments in asked:
            code, out, err = console.run(*arguments)
            assert (code, out) == (EXIT_TRANSIENT_ERROR, ""), arguments
            assert nowhere in err
            assert err.count("\n") == 1
    path.write_text(text)
    assert console.state() == before


def test_a_lease_lost_on_the_way_is_one_line_and_the_registry_stays_right(console: Console) -> None:
    started = []

    def take_over(name: str, args: tuple[object, ...]) -> None:
        if name == "put_if_absent" and str(args[0]).endswith("00000005.json") and not started:
            started.append(True)
            manager = console.manager
            manager.clock = ahead(60)
            manager.lease._clock = ahead(60)
            with manager.transaction("another"):
                pass

    with watched(after=take_over):
        code, _, err = console.run("rollback", "--reason", "x")
    assert code == EXIT_TRANSIENT_ERROR
    assert "with fence 4 was lost" in err
    assert console.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    assert console.run("rollback", "--reason", "x")[0] == 0


def _problems(console: Console) -> str:
    code, out, _ = console.run("doctor")
    assert code == 1
    lines = out.splitlines()
    return "\n".join(
        f"{line}\n{after}"
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("PROBLEM") and after.startswith("         -> ")
    )


def test_the_doctor_is_content_with_a_promotion_and_a_roll_back(console: Console) -> None:
    console.run("rollback", "--reason", "x")
    code, out, _ = console.run("doctor")
    assert code == 0, out
    assert f"OK       ledger of {KEY.slug}: 6 entries, each as it was written" in out
    assert f"OK       aliases of {KEY.slug}: previous no version, anchor version 1, champion version 1" in out
    assert f"OK       lease of {KEY.slug}: free" in out
    assert f"OK       yardstick of {KEY.slug}: the golden set by which version 2 was let in" in out


def test_the_doctor_finds_a_missing_champion_and_an_alias_that_is_not_the_ledgers(console: Console) -> None:
    console.client.delete_registered_model_alias(NAME, "champion")
    console.client.set_registered_model_alias(NAME, "anchor", "2")
    said = _problems(console)
    assert "no alias 'champion' although version 2 carried it" in said
    assert "alias 'anchor' stands at version 2, by the ledger it is version 1" in said
    assert "-> run `stlm ledger reconcile`" in said
    console.run("ledger", "reconcile")
    assert console.run("doctor")[0] == 0


def test_the_doctor_sends_to_a_roll_back_where_the_champions_version_is_gone(console: Console) -> None:
    console.client.delete_model_version(NAME, "2")
    said = _problems(console)
    assert "-> version 2 was deleted: take back another with `stlm rollback --to VERSION`" in said
    assert console.run("ledger", "reconcile")[0] == EXIT_INPUT_ERROR
    assert console.run("rollback", "--to", "1", "--reason", "version 2 was deleted")[0] == 0
    assert console.aliases == {"champion": 1, "anchor": 1}
    assert console.run("doctor")[0] == 0


def test_the_doctor_finds_a_broken_chain_and_a_lost_end(console: Console) -> None:
    (console.ledger / "00000004.json").unlink()
    assert "ends with entry 3, but the registry knows of entry 4" in _problems(console)
    (console.ledger / "00000002.json").unlink()
    assert "entry 2 is missing, entry 3 is there" in _problems(console)
    assert "-> bring its store back from a backup" in _problems(console)


def test_the_doctor_finds_a_lease_that_its_holder_let_run_out(console: Console) -> None:
    manager = console.manager
    manager.lease._clock = ahead(-3600)
    manager.lease.take("night@host:1:a", seconds=30, above_fence=9)
    assert "night@host:1:a let it run out" in _problems(console)
    console.run("ledger", "reconcile")
    assert console.run("doctor")[0] == 0


def test_the_doctor_finds_a_changed_or_missing_golden_set(console: Console) -> None:
    image = next((console.world.root / "golden" / "test" / "good").iterdir())
    image.unlink()
    said = _problems(console)
    assert f"yardstick of {KEY.slug}: the golden set has digest" in said
    assert "-> bring the former one back" in said


def test_the_doctor_finds_stores_that_were_there_and_are_not(console: Console) -> None:
    (console.world.root / "data-repo" / ".git").mkdir(parents=True)
    (console.world.root / "work" / "runs" / KEY.slug / "2026-03-01" / "records").mkdir(parents=True)
    (console.world.root / "landing").rmdir()
    said = _problems(console)
    assert "DVC remote: " in said
    assert "landing zone: " in said
    assert said.count("-> mount it, or bring it back from a backup") == 2


def test_the_doctor_says_what_to_do_about_a_server_that_does_not_answer(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    path = console.world.config_path
    path.write_text(
        path.read_text()
        .replace('dvc_remote = "dvc-remote"', 'dvc_remote = "s3://gone/dvc"\ns3_endpoint_url = "http://127.0.0.1:9"')
        .replace("sqlite:///mlflow/mlflow.db", "http://127.0.0.1:9")
    )
    said = _problems(console)
    assert "DVC remote: s3://gone/dvc at http://127.0.0.1:9" in said
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in said
    assert "-> see that the server runs" in said


def test_a_fresh_workspace_has_nothing_to_take_back_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(make_tiny_world(tmp_path), capsys)
    before = sorted(tmp_path.rglob("*"))
    for arguments in (
        ["rollback", "--reason", "x"],
        ["promote", "1", "--reason", "x"],
        ["ledger", "show"],
        ["freeze", "--reason", "x"],
        ["unfreeze", "--reason", "x"],
        ["delete-version", "1"],
    ):
        code, _, err = console.run(*arguments)
        assert code == EXIT_INPUT_ERROR
        assert "there is no registry yet at sqlite:///" in err
    assert sorted(tmp_path.rglob("*")) == before
