"""Only what the gate blessed takes over, byte for byte, and doing it again changes nothing."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.adapters.mlflow.registry import open_registry
from components.adapters.mlflow.tracking import open_run
from components.config import MlflowSettings
from components.core.contracts import Approval, Verdict
from components.core.errors import InputError, TransientError
from components.steps.promote.step import PromoteInputs, promote
from stlm.serving.package import seal_package
from stlm.serving.predictor import OnnxPredictor
from tests.helpers.model_package import KEY, new_mlflow
from tests.helpers.promotion import inputs_for, new_alias_manager

NAME = KEY.registered_model


@pytest.fixture
def mlflow(tmp_path: Path) -> MlflowSettings:
    return new_mlflow(tmp_path / "mlflow")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first night's candidate was promoted."""
    root = tmp_path_factory.mktemp("template")
    promote(inputs_for(root, new_mlflow(root / "mlflow")))
    return root


@pytest.fixture
def first_night(template: Path, tmp_path: Path, mlflow: MlflowSettings) -> MlflowSettings:
    """The same in this test's folders."""
    shutil.copyfile(template / "mlflow" / "mlflow.db", tmp_path / "mlflow" / "mlflow.db")
    shutil.copytree(template / "work", tmp_path / "work")
    return mlflow


@pytest.fixture
def client(mlflow: MlflowSettings) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow.tracking_uri, registry_uri=mlflow.tracking_uri)


def test_the_first_blessed_candidate_becomes_champion_with_its_whole_story(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient
) -> None:
    inputs = inputs_for(tmp_path, mlflow)

    outcome = promote(inputs)

    assert (outcome.outcome, outcome.version, outcome.champion_version) == ("PROMOTED", 1, 1)
    champion = open_registry(mlflow, inputs.run).champion(KEY)
    assert champion is not None
    assert champion.candidate_key == inputs.package.candidate_key
    assert OnnxPredictor(champion.package_dir).threshold == 0.5
    tags = client.get_model_version(NAME, "1").tags
    assert tags["stlm.data_revision"] == "a" * 40
    assert tags["stlm.dvc_md5"] == "b" * 32
    assert tags["stlm.partition"] == tags["stlm.promoted_at_partition"] == "2026-11-01"
    assert tags["stlm.evaluation_digest"] == "e" * 64
    assert tags["stlm.verdict"] == "PROMOTE"
    assert float(tags["stlm.threshold"]) == 0.5
    run = client.get_run(open_run(mlflow, inputs.run))
    assert run.data.tags["stlm.promotion"] == "PROMOTED"
    assert client.get_model_version(NAME, "1").run_id == run.info.run_id


def test_promoting_again_after_a_clear_ends_in_the_same_state(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient
) -> None:
    first_night = inputs_for(tmp_path, mlflow)
    promote(first_night)
    second_night = inputs_for(tmp_path, mlflow, seed=1, champion=1)

    outcomes = [promote(second_night).outcome, promote(second_night).outcome, promote(first_night).outcome]

    assert outcomes == ["PROMOTED", "ALREADY_PROMOTED", "ALREADY_PROMOTED"]
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    aliases = client.get_registered_model(NAME).aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 2, "previous": 1, "anchor": 1}


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.INCONCLUSIVE, Verdict.ERROR])
def test_without_a_blessing_nothing_is_registered_and_the_step_succeeds(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient, verdict: Verdict
) -> None:
    inputs = inputs_for(tmp_path, mlflow, verdict=verdict)

    outcome = promote(inputs)

    assert (outcome.outcome, outcome.version, outcome.champion_version) == ("REFUSED", None, None)
    assert outcome.detail == f"verdict {verdict.value}: image_auroc 0.61 is below 0.70"
    assert client.search_registered_models() == []
    assert client.get_run(open_run(mlflow, inputs.run)).data.tags["stlm.verdict"] == verdict.value


def test_a_refused_night_names_the_champion_that_stays(tmp_path: Path, first_night: MlflowSettings) -> None:
    outcome = promote(inputs_for(tmp_path, first_night, seed=1, champion=1, verdict=Verdict.REJECT))

    assert (outcome.outcome, outcome.champion_version) == ("REFUSED", 1)


def test_a_verdict_against_a_former_champion_moves_nothing(tmp_path: Path, first_night: MlflowSettings) -> None:
    outcome = promote(inputs_for(tmp_path, first_night, seed=1, champion=None))

    assert (outcome.outcome, outcome.version, outcome.champion_version) == ("STALE_DECISION", 2, 1)


def test_a_key_frozen_by_hand_in_mlflow_keeps_its_champion(
    tmp_path: Path, first_night: MlflowSettings, client: MlflowClient
) -> None:
    client.set_registered_model_tag(NAME, "stlm.frozen", "line is being rebuilt")

    outcome = promote(inputs_for(tmp_path, first_night, seed=1, champion=1))

    assert (outcome.outcome, outcome.version, outcome.champion_version) == ("FROZEN", 2, 1)
    assert "line is being rebuilt" in outcome.detail


def _asked(inputs: PromoteInputs, **said: str) -> PromoteInputs:
    about = {"candidate_key": inputs.package.candidate_key, "package_digest": inputs.package.digest}
    approval = Approval(**(about | {"answer": "APPROVED", "by": "ada", "at": "2026-11-01T08:00:00+00:00"} | said))  # type: ignore[arg-type]
    return dataclasses.replace(inputs, approvers=("ada", "bob"), approval=approval)


def test_a_candidate_that_an_approver_let_in_is_promoted_under_that_name(
    tmp_path: Path, mlflow: MlflowSettings
) -> None:
    inputs = _asked(inputs_for(tmp_path, mlflow))

    assert promote(inputs).outcome == "PROMOTED"

    manager = new_alias_manager(tmp_path / "work", mlflow)
    body = manager.snapshot()[0].entries[-1].body
    assert (body["by"], body["record"]["approver"]) == ("ada", "ada")
    assert body["record"]["approval"]["package_digest"] == inputs.package.digest


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ({"answer": "TIMED_OUT", "by": ""}, "none of ada, bob answered in time, which is a no"),
        pytest.param({"answer": "REJECTED"}, "ada said no", marks=pytest.mark.slow),
        pytest.param({"answer": "NOT_ASKED", "by": ""}, "none of ada, bob was asked", marks=pytest.mark.slow),
    ],
)
def test_without_a_yes_the_champion_is_untouched_and_the_step_succeeds(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient, said: dict[str, str], detail: str
) -> None:
    outcome = promote(_asked(inputs_for(tmp_path, mlflow), **said))

    assert (outcome.outcome, outcome.version, outcome.champion_version) == ("REFUSED", 1, None)
    assert outcome.detail == f"version 1 is registered; {detail}"
    assert client.get_registered_model(NAME).aliases == {}


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"candidate_key": "0" * 64}, r"ada answered about candidate 0{64}, package \w+; to be promoted is candidate"),
        ({"package_digest": "0" * 64}, r"ada answered about candidate \w+, package 0{64}; to be promoted is candidate"),
        ({"by": "eve"}, r"'eve' answered, who is none of ada, bob"),
    ],
)
def test_a_yes_to_something_else_or_by_somebody_else_is_bad_input(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient, said: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        promote(_asked(inputs_for(tmp_path, mlflow), **said))
    assert client.search_registered_models() == []


def test_where_people_let_in_and_nobody_was_asked_nothing_is_promoted(tmp_path: Path, mlflow: MlflowSettings) -> None:
    inputs = dataclasses.replace(inputs_for(tmp_path, mlflow), approvers=("ada",))
    with pytest.raises(InputError, match="is let in by ada, but nobody was asked"):
        promote(inputs)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("candidate_key", r"candidate is \w+, judged was 0{64}"),
        ("evaluation_digest", r"evaluation is e{64}, judged was 0{64}"),
        ("package_digest", r"package is \w+, judged was 0{64}"),
    ],
)
def test_a_verdict_about_something_else_is_bad_input(
    tmp_path: Path, mlflow: MlflowSettings, field: str, complaint: str
) -> None:
    inputs = inputs_for(tmp_path, mlflow)
    decision = dataclasses.replace(inputs.decision, **{field: "0" * 64})

    with pytest.raises(InputError, match=complaint):
        promote(dataclasses.replace(inputs, decision=decision))


def test_a_package_altered_after_the_verdict_is_bad_input(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient
) -> None:
    inputs = inputs_for(tmp_path, mlflow)
    (Path(inputs.package.package_dir) / "calibration.json").write_text("{}")

    with pytest.raises(InputError, match=r"calibration.json is altered"):
        promote(inputs)
    assert client.search_registered_models() == []


def test_a_package_resealed_after_the_verdict_is_bad_input(tmp_path: Path, mlflow: MlflowSettings) -> None:
    inputs = inputs_for(tmp_path, mlflow)
    (Path(inputs.package.package_dir) / "lineage.json").write_text('{"forged": true}')
    digest = seal_package(Path(inputs.package.package_dir))

    with pytest.raises(InputError, match=rf"has digest {digest}, expected"):
        promote(inputs)


def test_a_package_that_does_not_load_in_a_clean_process_is_not_registered(
    tmp_path: Path, mlflow: MlflowSettings, client: MlflowClient
) -> None:
    inputs = inputs_for(tmp_path, mlflow)
    (Path(inputs.package.package_dir) / "model.onnx").write_bytes(b"no graph")
    digest = seal_package(Path(inputs.package.package_dir))
    inputs = dataclasses.replace(
        inputs,
        package=dataclasses.replace(inputs.package, digest=digest),
        decision=dataclasses.replace(inputs.decision, package_digest=digest),
    )

    with pytest.raises(InputError, match=r"does not load in a clean process: .*model.onnx"):
        promote(inputs)
    assert client.search_registered_models() == []


def test_an_unreachable_registry_is_worth_a_retry(tmp_path: Path) -> None:
    nowhere = MlflowSettings(tracking_uri="http://127.0.0.1:9", artifact_root=str(tmp_path))

    with pytest.raises(TransientError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        promote(inputs_for(tmp_path, nowhere))
