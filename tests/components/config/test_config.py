"""One TOML file, read strictly."""

import ast
import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from components.config import GateSettings, PipelineConfig, load_config
from components.core.contracts import to_json
from components.core.errors import InputError
from components.local_stack.airflow_env import repository_root
from tests.helpers.tiny_nights import make_tiny_world

QUICK_START = repository_root() / "infra" / "quickstart.toml"


def test_the_quick_start_spells_out_every_default() -> None:
    config = load_config(QUICK_START)
    config = dataclasses.replace(
        config, promote=dataclasses.replace(config.promote, ledger="")
    )  # a place, as paths are
    defaults = PipelineConfig(paths=config.paths, mlflow=config.mlflow, models=config.models)
    raw = tomllib.loads(QUICK_START.read_text(encoding="utf-8"))
    for field in dataclasses.fields(PipelineConfig):
        if field.name not in {"paths", "mlflow", "models"}:
            assert to_json(getattr(config, field.name)) == to_json(getattr(defaults, field.name)), field.name
            assert set(raw[field.name]) == set(to_json(getattr(defaults, field.name))), field.name
    assert set(raw["paths"]) == set(to_json(config.paths))
    assert all(set(model) == set(to_json(config.models[0])) for model in raw["models"])


def test_every_setting_of_the_quick_start_is_explained() -> None:
    lines = QUICK_START.read_text(encoding="utf-8").splitlines()
    assert sum("#" in line for line in lines) > 30


def test_relative_paths_start_at_the_configuration_file(tmp_path: Path) -> None:
    config = make_tiny_world(tmp_path).config
    assert config.paths.work_dir == str(tmp_path / "work")
    assert config.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert config.models[0].golden == str(tmp_path / "golden")


@pytest.mark.parametrize(
    "uri", ["s3://bucket/prefix", "http://127.0.0.1:5000", "postgresql+psycopg2://user@host/db", "sqlite:////srv/a.db"]
)
def test_addresses_are_left_alone(tmp_path: Path, uri: str) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(path.read_text().replace("sqlite:///mlflow/mlflow.db", uri).replace('"dvc-remote"', f'"{uri}"'))
    config = load_config(path)
    assert (config.mlflow.tracking_uri, config.paths.dvc_remote) == (uri, uri)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("retries = 1", "retires = 1", r"pipeline\.toml.*schedule: unknown field 'retires'"),
        ("retries = 1", 'cron = "hourly"', r"cron needs five fields, got 'hourly'"),
        ("retries = 1", 'timezone = "Mars/Olympus"', r"timezone must be one like .*, got 'Mars/Olympus'"),
        ("retries = 1", "lease_s = 0.0", r"lease_s must be positive, got 0\.0"),
        ("retries = 1", "lease_wait_s = -1.0", r"lease_wait_s must not be negative, got -1\.0"),
        ("num_threads = 1", "held_out_share = 1.0", r"held_out_share must be within \(0, 1\), got 1\.0"),
        ('device = "cpu"', 'device = "tpu"', r"fine_tune\.device: expected one of .*, got 'tpu'"),
        ('product = "tiles"', 'product = "Tiles"', r"product must be lower-case letters"),
        ("[gate]", "[gate]\nalpha = 0.5", r"alpha must be within \(0, 0\.5\), got 0\.5"),
        ("[[models]]", "[models]", r"models: expected a list"),
        ('recipe = "tiny"', 'approvers = ["ada", "ada"]', r"approvers: a name stands there twice"),
        ('recipe = "tiny"', 'approvers = [" "]', r"approvers must have names"),
        ('recipe = "tiny"', 'approvers = ["ada:admin"]', r"approvers: no name holds ':' or ','"),
        ('recipe = "tiny"', "approval_hours = 0.0", r"approval_hours must be positive, got 0\.0"),
        ('recipe = "tiny"', "shadow_nights = -1", r"shadow_nights must not be negative, got -1"),
        ('recipe = "tiny"', "shadow_alarm_rate = 1.5", r"shadow_alarm_rate must be within \[0, 1\], got 1\.5"),
        ("parity_images = 4", "probe_images = 0", r"probe_images must be at least 1, got 0"),
        ("[report]", "[report", r"pipeline\.toml"),
        (
            "[gate]",
            '[gate]\nsuperior_metric = "pixel_ap"',
            r"superior_metric 'pixel_ap' has no margin in gate\.anchor_m",
        ),
        ("[gate]", '[gate]\naccepted_golden = ["abc"]', r"accepted_golden must be 64 lower-case hex digits, got 'abc'"),
        ('recipe = "tiny"', 'recipe = "tinny"', r"recipe must be one of lite, tiny, .*, got 'tinny'"),
        (
            "[report]",
            '[collect]\nmanifest_name = "lot.json"\n[report]',
            r"toml: collect\.manifest_name is gone: a lot's",
        ),
        ("[report]", '[promote]\nalias = "live"\n[report]', r"promote\.alias is gone: the champion's alias is"),
        (
            "[report]",
            "[promote]\nrequire_approval = true\n[report]",
            r"require_approval is gone: name who decides in `app",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_config(path)


@pytest.mark.chaos("a password in the configuration's addresses", outcome="refused by the setting's name, without it")
@pytest.mark.parametrize("place", ["tracking_uri", "dvc_remote"])
def test_a_password_in_an_address_is_refused_without_repeating_it(tmp_path: Path, place: str) -> None:
    path = make_tiny_world(tmp_path).config_path
    old = {"tracking_uri": '"sqlite:///mlflow/mlflow.db"', "dvc_remote": '"dvc-remote"'}[place]
    path.write_text(path.read_text().replace(old, '"postgresql+psycopg2://stlm:hunter2@db/mlflow"'))
    with pytest.raises(InputError, match=rf"{place}: an address with a password in it.* environment") as refused:
        load_config(path)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floors": {"image_aurok": 0.5}}, r"floors: 'image_aurok' cannot be one, expected image_auroc, "),
        ({"floors": {"false_alarm_rate": 0.5}}, r"floors: 'false_alarm_rate' cannot be one"),
        ({"floors": {"recall": 1.5}}, r"floors\.recall must be within \[0, 1\], got 1\.5"),
        ({"margins": {"image_aurok": 0.1}}, r"margins: 'image_aurok' cannot be one"),
        ({"margins": {"image_auroc": -0.1}}, r"margins\.image_auroc must be finite and not negative, got -0\.1"),
        ({"anchor_margins": {"image_auroc": math.nan}}, r"anchor_margins\.image_auroc must be finite .*, got nan"),
        ({"anchor_margins": {"pro": 0.1}}, r"superior_metric 'image_auroc' has no margin in gate\.anchor_margins"),
        ({"max_flip_rate": 2.0}, r"max_flip_rate must be within \[0, 1\], got 2\.0"),
        ({"bootstrap_samples": 0}, r"bootstrap_samples must be at least 1, got 0"),
        ({"max_latency_ratio": -1.0}, r"max_latency_ratio must be positive, got -1\.0"),
    ],
)
def test_a_gate_that_could_not_judge_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateSettings(**settings)


def test_every_setting_is_read_by_a_step_a_dag_or_a_command() -> None:
    config = load_config(QUICK_START)
    tables = [getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "models"]
    settings = {field.name for table in [*tables, config.models[0]] for field in dataclasses.fields(table)}
    paths = [path for folder in ("components", "dags") for path in (repository_root() / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths if path.parent.name != "config"]

    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert settings - read == {"start_date"}  # read as ScheduleSettings.start


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = make_tiny_world(tmp_path).config_path
    path.write_text(
        path.read_text() + '[[models]]\nproduct = "tiles"\nline = "line1"\ncamera = "cam1"\ngolden = "golden"\n'
    )
    with pytest.raises(InputError, match=r"tiles\.line1\.cam1 stands there twice"):
        load_config(path)


def test_a_missing_file_and_an_unknown_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match=r"unknown model key 'a\.b\.c'; configured: tiles\.line1\.cam1"):
        make_tiny_world(tmp_path / "world").config.model("a.b.c")
