"""A person promotes: by the gate's verdict, or with a second person over it; and what is refused changes nothing."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest

from components.adapters.mlflow.tracking import open_run
from components.core.contracts import Verdict
from components.core.errors import EXIT_INPUT_ERROR
from components.core.run_records import StepRecord, write_record
from components.promotion.champion_state import replay_ledger
from components.promotion.registration import PromotionEvidence, check_binding, register
from components.steps.promote.step import PromoteInputs, promote
from stlm.data.layout import read_golden_set
from stlm.serving.package import seal_package
from tests.components.cli.test_promotion_commands import Console
from tests.helpers.edges import watched
from tests.helpers.model_package import new_mlflow
from tests.helpers.promotion import ahead, another_package, inputs_for
from tests.helpers.tiny_nights import KEY, TinyWorld, make_tiny_world

NAME = KEY.registered_model
PERSON = ("--reason", "wanted on line 1", "--by", "Ada")
GLASS = (*PERSON, "--break-glass", "--second", "Bob")


def _inputs(world: TinyWorld, number: int, *, champion: int | None, verdict: Verdict) -> PromoteInputs:
    package = another_package(world.root / f"package-{number}", number)
    inputs = inputs_for(world.root, world.config.mlflow, champion=champion, verdict=verdict, package=package)
    digest = read_golden_set(world.root / "golden").digest
    return dataclasses.replace(
        inputs,
        run=world.run(f"2026-03-0{number}"),
        evaluation=dataclasses.replace(inputs.evaluation, golden_digest=digest),
    )


def _judged(inputs: PromoteInputs) -> PromotionEvidence:
    return PromotionEvidence(
        **{field.name: getattr(inputs, field.name) for field in dataclasses.fields(PromotionEvidence)}
    )


def _keep_records(inputs: PromoteInputs) -> None:
    steps = {
        "version": inputs.dataset,
        "validate": inputs.validation,
        "fine_tune": inputs.candidate,
        "evaluate": inputs.evaluation,
        "export": inputs.package,
        "gate": inputs.decision,
    }
    for step, outputs in steps.items():
        write_record(inputs.run, StepRecord(step=step, outcome="SUCCEEDED", seconds=1.0, outputs=outputs.to_json()))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is champion; the gate let 2 in and 3 not; candidates 4 (let in) and 5 (not) only have nights."""
    root = tmp_path_factory.mktemp("template")
    new_mlflow(root / "mlflow")
    world = make_tiny_world(root)
    promote(_inputs(world, 1, champion=None, verdict=Verdict.PROMOTE))
    from components.promotion.alias_transaction import open_alias_manager

    paths, config = world.config.paths, world.config
    manager = open_alias_manager(KEY, work_dir=paths.work_dir, mlflow=config.mlflow, settings=config.promote)
    for number, verdict in ((2, Verdict.PROMOTE), (3, Verdict.REJECT)):
        judged = _judged(_inputs(world, number, champion=1, verdict=verdict))
        run_id = open_run(config.mlflow, judged.run)
        assert register(manager, judged, check_binding(judged), run_id=run_id)[0] == number
    for number, verdict in ((4, Verdict.PROMOTE), (5, Verdict.REJECT)):
        _keep_records(_inputs(world, number, champion=1, verdict=verdict))
    return root


@pytest.fixture
def console(template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Console:
    root = tmp_path / "world"
    world = make_tiny_world(root)
    (root / "mlflow").mkdir()
    shutil.copyfile(template / "mlflow" / "mlflow.db", root / "mlflow" / "mlflow.db")
    shutil.copytree(template / "work", root / "work")
    return Console(world, capsys)


def _key_of(number: int) -> str:
    return hashlib.sha256(f"candidate {number}".encode()).hexdigest()


def test_a_version_that_the_gate_let_in_takes_over_and_the_ledger_says_who(console: Console) -> None:
    code, out, _ = console.run("promote", "2", *PERSON)

    assert code == 0
    assert f"{NAME}: version 2 took over from version 1" in out
    assert console.aliases == {"champion": 2, "previous": 1, "anchor": 1}
    commit = console.manager.snapshot()[0].entries[-1].body
    assert (commit["action"], commit["by"], commit["reason"]) == ("promote", "Ada", "wanted on line 1")
    record = commit["record"]
    assert (record["approver"], record["by_hand"], record["partition"]) == ("Ada", True, "2026-03-02")
    assert record["load_check"] == {"num_golden_images": 2}
    assert record["verdict"]["verdict"] == "PROMOTE"
    assert len(record["sbom"]["sha256"]) == 64
    before = console.state()
    code, out, _ = console.run("promote", "2", *PERSON)
    assert (code, console.state()) == (0, before)
    assert "version 2 is the champion already" in out


def test_a_candidate_that_no_night_registered_is_found_by_the_beginning_of_its_key(console: Console) -> None:
    code, out, err = console.run("promote", _key_of(4)[:12].upper(), *PERSON)

    assert code == 0, err
    assert "version 4 took over from version 1" in out
    assert console.client.get_model_version(NAME, "4").tags["stlm.promoted_at_partition"] == "2026-03-04"
    # Now that it is registered, it is the same candidate by its version.
    assert console.run("promote", _key_of(4), *PERSON)[0] == 0


def test_two_people_let_in_what_the_gate_refused_and_everybody_sees_it(console: Console) -> None:
    console.run("freeze", "--reason", "audit", "--by", "Eve")

    code, _, err = console.run("promote", "3", *GLASS)

    assert code == 0, err
    assert "BREAK-GLASS" in err
    assert console.aliases == {"champion": 3, "previous": 1, "anchor": 1}
    chain = console.manager.snapshot()[0]
    assert [entry.kind for entry in chain.entries] == ["intent", "commit", "freeze", "intent", "commit"]
    body = chain.entries[-1].body
    assert (body["action"], body["by"]) == ("break-glass", "Ada and Bob")
    assert body["record"]["break_glass"] == {
        "by": "Ada",
        "second": "Bob",
        "reason": "wanted on line 1",
        "overruled": {"verdict": "REJECT", "judged_against": 1},
    }
    # The freeze holds on for the nights.
    assert replay_ledger(chain.entries).frozen is not None
    said = "version 3 was let in by Ada and Bob over a verdict of REJECT"
    assert f"BREAK-GLASS: {said}" in console.run("status")[1]
    assert "break-glass version 1 -> version 3" in console.run("ledger", "show")[1]
    code, out, _ = console.run("doctor")
    assert code == 1
    assert f"PROBLEM  way in of {KEY.slug}: BREAK-GLASS: {said}" in out
    # Taken back, it serves no more.
    assert console.run("rollback", "--reason", "x")[0] == 0
    assert "BREAK-GLASS" not in console.run("status")[1]


def test_glass_is_broken_for_a_candidate_that_was_never_registered(console: Console) -> None:
    code, _, err = console.run("promote", _key_of(5), *GLASS)

    assert code == 0, err
    assert console.aliases == {"champion": 4, "previous": 1, "anchor": 1}


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def test_not_even_two_people_let_in_what_does_not_load_or_was_altered(console: Console) -> None:
    before, source = console.state(), Path(str(console.client.get_model_version(NAME, "3").source))
    model = source / "MLmodel"
    text = model.read_text()
    model.write_text(text.replace('"name": "score"', '"name": "worth"'))
    try:
        assert model.read_text() != text
        code, _, err = console.run("promote", "3", *GLASS)
        assert (code, console.state()) == (EXIT_INPUT_ERROR, before)
        assert "names outputs" in err
    finally:
        model.write_text(text)
    package = source / "artifacts" / "package" / "calibration.json"
    shutil.rmtree(console.world.root / "work" / "models", ignore_errors=True)
    _flip(package, 5)
    try:
        code, _, err = console.run("promote", "3", *GLASS)
        assert (code, console.state()) == (EXIT_INPUT_ERROR, before)
        assert "calibration.json is altered" in err
    finally:
        _flip(package, 5)


def test_not_even_two_people_let_in_what_no_trusted_key_vouches_for(console: Console) -> None:
    code, out, _ = console.run("verify", "3")
    assert code == 0
    assert "signed by a trusted key" in out
    keys = console.world.root / "work" / "keys"
    stored = keys / "signing.pem"
    assert stored.stat().st_mode & 0o077 == 0
    public = (keys / "signing.pub.pem").read_bytes()
    for path in keys.iterdir():
        path.unlink()  # a new one is made: the word of another installation does not count here
    before = console.state()

    for arguments in (("promote", "2", *PERSON), ("promote", "3", *GLASS), ("verify", "3")):
        code, _, err = console.run(*arguments)
        assert (code, console.state()) == (EXIT_INPUT_ERROR, before)
        assert "no trusted key has signed it" in err
    code, _, err = console.run("verify")  # the champion
    assert (code, "no trusted key has signed it" in err) == (EXIT_INPUT_ERROR, True)

    # Until its public key is named.
    config = console.world.config_path
    config.write_text(config.read_text() + '\n[promote]\ntrusted_keys = ["ada.pub.pem"]\n')
    code, _, err = console.run("verify", "3")
    assert (code, "ada.pub.pem cannot be read" in err) == (EXIT_INPUT_ERROR, True)
    (config.parent / "ada.pub.pem").write_bytes(public)
    assert console.run("verify", "3")[0] == 0


def test_a_package_that_was_sealed_again_behind_the_registrys_back_is_refused(console: Console) -> None:
    version = console.client.get_model_version(NAME, "2")
    package = Path(str(version.source)) / "artifacts" / "package"
    digest, before = version.tags["stlm.package_digest"], console.state()
    kept = {name: (package / name).read_bytes() for name in ("calibration.json", "manifest.json")}
    text = kept["calibration.json"].decode()
    (package / "calibration.json").write_text(text.replace('"threshold": 0.5', '"threshold": 9.5'))
    forged = seal_package(package)
    # Whoever can do that can write another record, and every tag, as well.
    (attached,) = Path(str(version.source)).parents[3].rglob(f"promotion/{digest[:16]}")
    copied = attached.parent / forged[:16]
    shutil.copytree(attached, copied)
    record = (copied / "record.json").read_bytes().replace(digest.encode(), forged.encode())
    (copied / "record.json").write_bytes(record)
    for tag, value in {"package_digest": forged, "record_sha256": hashlib.sha256(record).hexdigest()}.items():
        console.client.set_model_version_tag(NAME, "2", f"stlm.{tag}", value)
    shutil.rmtree(console.world.root / "work" / "models", ignore_errors=True)
    try:
        assert forged != digest
        code, _, err = console.run("promote", "2", *GLASS)
        assert (code, console.state()) == (EXIT_INPUT_ERROR, before)
        assert f"about package {digest}, not about {forged}" in err
    finally:  # the files are those of all tests here
        shutil.rmtree(copied)
        for name, content in kept.items():
            (package / name).write_bytes(content)


def test_wrong_input_is_one_line_and_no_change(console: Console) -> None:
    before = console.state()
    for arguments, message in (
        (["9", *PERSON], "{name} has no version 9"),
        (["3", *PERSON], "version 3 of {name} was judged REJECT; only PROMOTE takes over"),
        (["latest", *PERSON], "candidate 'latest': expected a version, or at least 12 hex digits"),
        (["0123456789ab", *PERSON], "no version of {name} and no night of {slug} has candidate 0123456789ab"),
        (["2", "--reason", " ", "--by", "Ada"], "why? give a --reason"),
        (["2", "--reason", "x", "--key", "a.b.c"], "unknown model key 'a.b.c'"),
        (["2", *PERSON, "--second", "Bob"], "a second name is for breaking the glass only"),
        (["3", *PERSON, "--break-glass"], "takes two people: 'Ada' and '' are not two"),
        (["3", *PERSON, "--break-glass", "--second", "ada "], "takes two people: 'Ada' and 'ada' are not two"),
        (["3", "--reason", "x", "--break-glass", "--second", "Bob"], "takes two names: give --by and --second"),
    ):
        code, out, err = console.run("promote", *arguments)
        assert (code, out, console.state()) == (EXIT_INPUT_ERROR, "", before), arguments
        assert message.format(name=NAME, slug=KEY.slug) in err
        assert err.count("\n") == 1


def _refused(console: Console, *arguments: str) -> str:
    before = console.state()
    code, out, err = console.run("promote", *arguments)
    assert (code, out, console.state()) == (EXIT_INPUT_ERROR, "", before)
    assert err.count("\n") == 1
    return err


def test_a_verdict_against_another_champion_or_golden_set_is_stale(console: Console) -> None:
    image = next((console.world.root / "golden" / "test" / "good").iterdir())
    content = image.read_bytes()
    image.unlink()
    assert "STALE_DECISION: version 2" in _refused(console, "2", *PERSON)
    shutil.move(console.world.root / "golden", console.world.root / "gone")
    assert "cannot be held against its golden set" in _refused(console, "2", *PERSON)
    shutil.move(console.world.root / "gone", console.world.root / "golden")
    image.write_bytes(content)

    assert console.run("promote", _key_of(4), *PERSON)[0] == 0
    err = _refused(console, "2", *PERSON)
    assert f"STALE_DECISION: version 2 of {NAME} was judged against version 1, the champion is version 4" in err
    assert "to bring it back: `stlm rollback --to 1`" in _refused(console, "1", *GLASS)


def test_a_freeze_holds_up_a_promotion_by_hand(console: Console) -> None:
    console.run("freeze", "--reason", "audit", "--by", "Eve")
    assert "is frozen: audit (by Eve" in _refused(console, "2", *PERSON)


def test_a_version_without_a_record_of_how_it_was_judged_is_refused(console: Console) -> None:
    console.client.delete_model_version_tag(NAME, "2", "stlm.record_sha256")
    assert "was registered without a record of how it was judged" in _refused(console, "2", *PERSON)
    console.client.set_model_version_tag(NAME, "2", "stlm.record_sha256", "0" * 64)
    assert "record.json is altered" in _refused(console, "2", *PERSON)


def test_where_the_key_has_approvers_only_they_promote(console: Console) -> None:
    path = console.world.config_path
    path.write_text(path.read_text().replace('recipe = "tiny"', 'recipe = "tiny"\napprovers = ["Bob", "Eve"]'))
    assert f"'Ada' may not promote for {KEY.slug}; who may: Bob, Eve" in _refused(console, "2", *PERSON)
    assert console.run("promote", "2", "--reason", "x", "--by", "Eve")[0] == 0


def test_a_broken_ledger_or_an_unreachable_registry_stops_it_in_one_line(console: Console) -> None:
    entry = console.ledger / "00000001.json"
    content = entry.read_bytes()
    entry.write_bytes(content.replace(b"verdict PROMOTE", b"verdict of Eve.."))
    assert "entry 2 or 1 is altered" in _refused(console, "2", *PERSON)
    entry.write_bytes(content)

    path = console.world.config_path
    path.write_text(path.read_text().replace("sqlite:///mlflow/mlflow.db", "http://127.0.0.1:9"))
    code, out, err = console.run("promote", "2", *PERSON)
    assert (code, out) == (75, "")
    assert "http://127.0.0.1:9 cannot be reached" in err


def test_a_lease_that_is_lost_on_the_way_leaves_the_champion(console: Console) -> None:
    started = []

    def take_over(name: str, args: tuple[object, ...]) -> None:
        if name == "put_if_absent" and str(args[0]).endswith("00000003.json") and not started:
            started.append(True)
            manager = console.manager
            manager.clock = ahead(60)
            manager.lease._clock = ahead(60)
            with manager.transaction("another"):
                pass

    with watched(after=take_over):
        code, out, err = console.run("promote", "2", *PERSON)
    assert (code, out) == (75, "")
    assert "was lost, it is now with" in err
    assert err.count("\n") == 1
    assert console.aliases == {"champion": 1, "anchor": 1}
    assert console.run("promote", "2", *PERSON)[0] == 0


def test_a_night_whose_package_was_altered_afterwards_is_not_promoted(console: Console, template: Path) -> None:
    package = template / "package-4" / "calibration.json"
    _flip(package, 5)
    try:
        assert "calibration.json is altered" in _refused(console, _key_of(4), *PERSON)
    finally:
        _flip(package, 5)
